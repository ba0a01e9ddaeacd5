#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <thread>
#include <vector>

#include "base/atomic_file.h"
#include "base/byte_reader.h"
#include "base/checked.h"
#include "base/cpu_features.h"
#include "base/mapped_file.h"
#include "base/thread_pool.h"
#include "base/utf8.h"

namespace quipu {
namespace {

std::span<const std::byte> bytes_of(std::string_view text) { return std::as_bytes(std::span(text.data(), text.size())); }

std::string temporary_path(const char* name) { return testing::TempDir() + name; }

std::string read_all(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

TEST(CheckedSize, RemembersOverflowOfEveryStep) {
  EXPECT_EQ((CheckedSize(6) * CheckedSize(7)).value(), 42u);
  EXPECT_FALSE((CheckedSize(uint64_t{1} << 32) * CheckedSize(uint64_t{1} << 32)).ok());
  EXPECT_FALSE((CheckedSize(~uint64_t{0}) + CheckedSize(1)).ok());
  EXPECT_FALSE(CheckedSize(~uint64_t{0} - 3).padded_to(32).ok());
  EXPECT_EQ(CheckedSize(33).padded_to(32).value(), 64u);
  const CheckedSize overflowed = CheckedSize(~uint64_t{0}) + CheckedSize(1);
  EXPECT_FALSE((overflowed * CheckedSize(0)).ok()) << "a later zero must not hide the overflow";
}

TEST(ByteReader, RefusesToPassTheEndAndSaysWhere) {
  ByteReader reader("model.gguf", bytes_of(std::string_view("\x01\x00\x00\x00zz", 6)));
  EXPECT_EQ(*reader.number<uint32_t>("version"), 1u);
  const auto result = reader.number<uint64_t>("tensor count");
  ASSERT_FALSE(result.ok());
  EXPECT_EQ(result.error().error_class, ErrorClass::kBadInput);
  EXPECT_EQ(result.error().message,
            "model.gguf: tensor count at byte 4: needs 8 bytes, but only 2 of the file's 6 are left");
}

TEST(ByteReader, BoundsStringLengths) {
  const std::string_view huge("\xff\xff\xff\xff\xff\xff\xff\xff", 8);
  ByteReader reader("f", bytes_of(huge));
  EXPECT_FALSE(reader.string64("key", 65536).ok());
}

TEST(Printable, EscapesWhatCouldForgeALogLine) {
  EXPECT_EQ(printable("a\nb\x1b[0m\\\xff"), "a\\x0ab\\x1b[0m\\x5c\\xff");
  EXPECT_EQ(printable(std::string(100, 'a'), 4), "aaaa...");
}

TEST(Utf8, AcceptsOnlyStrictSequences) {
  for (const std::string_view good : {"a", "\xc3\xa9", "\xe2\x82\xac", "\xf0\x9f\x98\x80"}) {
    EXPECT_EQ(utf8_sequence_length(good), good.size());
    for (size_t cut = 1; cut < good.size(); ++cut) EXPECT_TRUE(utf8_is_incomplete(good.substr(0, cut)));
    EXPECT_FALSE(utf8_is_incomplete(good));
    std::string back;
    utf8_append(back, utf8_code_point(good));
    EXPECT_EQ(back, good);
  }
  for (const std::string_view bad : {"\x80", "\xc0\x80", "\xe0\x80\x80", "\xed\xa0\x80", "\xf4\x90\x80\x80", "\xff"}) {
    EXPECT_EQ(utf8_sequence_length(bad), 0u);
    EXPECT_FALSE(utf8_is_incomplete(bad));
  }
  EXPECT_EQ(utf8_lossy("a\xe2\x82z"), "a\xef\xbf\xbdz");
}

TEST(AtomicFile, LeavesTheOldFileUntilCommit) {
  const std::string path = temporary_path("quipu_atomic");
  std::ofstream(path) << "old";
  {
    auto file = AtomicFile::create(path);
    ASSERT_TRUE(file.ok());
    ASSERT_TRUE(file->write("half").ok());
  }
  EXPECT_EQ(read_all(path), "old");
  auto file = AtomicFile::create(path);
  ASSERT_TRUE(file.ok());
  ASSERT_TRUE(file->write("new").ok());
  ASSERT_TRUE(file->commit().ok());
  EXPECT_EQ(read_all(path), "new");
  std::remove(path.c_str());
}

TEST(MappedFile, RefusesWhatIsNotARegularFile) {
  EXPECT_FALSE(MappedFile::open("/").ok());
  EXPECT_FALSE(MappedFile::open("/dev/zero").ok());
  const auto missing = MappedFile::open("/no/such\nfile");
  ASSERT_FALSE(missing.ok());
  EXPECT_EQ(missing.error().message, "/no/such\\x0afile: cannot open: No such file or directory");
}

TEST(ThreadPool, RunsEveryTaskOnceWhateverTheThreads) {
  for (const int threads : {1, 2, 3, 8}) {
    ThreadPool pool(threads);
    for (const int64_t tasks : {0, 1, 2, 7, 1000}) {
      std::vector<std::atomic<int>> counts(static_cast<size_t>(tasks));
      pool.parallel_for(tasks, [&](int64_t i) { counts[static_cast<size_t>(i)].fetch_add(1); });
      for (const auto& count : counts) EXPECT_EQ(count.load(), 1);
    }
  }
}

TEST(ThreadPool, SurvivesManyShortRuns) {
  ThreadPool pool(4);
  std::atomic<int64_t> sum{0};
  for (int run = 0; run < 5000; ++run) pool.parallel_for(3, [&](int64_t i) { sum.fetch_add(i); });
  EXPECT_EQ(sum.load(), 5000 * 3);
}

// Waits for another task, but not for ever.
bool comes_true(const std::atomic<bool>& flag) {
  for (int i = 0; i < 10000 && !flag.load(); ++i) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  return flag.load();
}

TEST(ThreadPool, EveryThreadBeginsWithItsOwnShare) {
  ThreadPool pool(2);
  for (int run = 0; run < 20; ++run) {
    std::atomic<bool> third_began{false}, first_ended{false};
    std::atomic<int> kept{0};
    pool.parallel_for(4, [&](int64_t i) {
      if (i == 2) third_began = true;
      if (i == 0) {   // were task 1 the other thread's, each would wait for the other
        if (comes_true(third_began)) ++kept;
        first_ended = true;
      }
      if (i == 1 && comes_true(first_ended)) ++kept;
    });
    ASSERT_EQ(kept.load(), 2);
  }
}

TEST(ThreadPool, AThreadThatIsDoneTakesOver) {
  ThreadPool pool(2);
  std::atomic<bool> others_done{false};
  std::atomic<int> done{0};
  bool seen = false;
  pool.parallel_for(8, [&](int64_t i) {
    if (i == 0) {
      seen = comes_true(others_done);
    } else if (done.fetch_add(1) == 6) {
      others_done = true;
    }
  });
  EXPECT_TRUE(seen) << done.load() << " of 7 others were done while the first waited";
}

TEST(CpuFeatures, LevelsAreOrderedAndNamed) {
  const auto isas = available_isas();
  ASSERT_FALSE(isas.empty());
  EXPECT_EQ(isas.front(), Isa::kPortable);
  for (const Isa isa : isas) EXPECT_EQ(*isa_from_name(isa_name(isa)), isa);
  EXPECT_EQ(isa_from_name("sse9").error().error_class, ErrorClass::kUsage);
}

}  // namespace
}  // namespace quipu
