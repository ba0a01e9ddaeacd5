#include "formats/read_ahead.h"

#include <gtest/gtest.h>

#include <chrono>
#include <fstream>

namespace quipu {
namespace {

// A file of `count` tensors of 1 MiB, and one tensor of the caller's memory.
TensorFile file_of(int count, const std::string& path) {
  constexpr size_t kBytes = size_t{1} << 20;
  std::ofstream(path, std::ios::binary) << std::string(kBytes * static_cast<size_t>(count), 'x');
  auto mapped = MappedFile::open(path);
  CHECK(mapped.ok());
  std::vector<NamedTensor> tensors;
  for (int i = count - 1; i >= 0; --i) {
    tensors.push_back({std::to_string(i), {DType::kF32, {kBytes / 4}, (*mapped)->bytes().subspan(kBytes * static_cast<size_t>(i), kBytes)}, *mapped});
  }
  tensors.push_back({"memory", {DType::kF32, {kBytes / 4}, (*mapped)->bytes().first(kBytes)}, nullptr});
  return TensorFile(path, std::move(tensors));
}

// Waits until so many MiB are asked for, a minute at most; then a moment longer for more.
uint64_t settled(const ReadAhead& ahead, uint64_t expected) {
  for (int i = 0; i < 60000 && ahead.asked() >> 20 < expected; ++i) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  return ahead.asked() >> 20;
}

TEST(ReadAhead, AsksForAWindowAndForAsMuchAgainAsIsTaken) {
  const TensorFile file = file_of(8, testing::TempDir() + "read_ahead_test.bin");
  ReadAhead ahead(file, uint64_t{3} << 20);
  EXPECT_EQ(settled(ahead, 3), 3u);
  ahead.took(uint64_t{2} << 20);
  EXPECT_EQ(settled(ahead, 5), 5u);
  ahead.took(uint64_t{6} << 20);
  EXPECT_EQ(settled(ahead, 8), 8u);   // all of the file, nothing of the memory
}

TEST(ReadAhead, EndsWhileItWaits) {
  const TensorFile file = file_of(4, testing::TempDir() + "read_ahead_end_test.bin");
  ReadAhead ahead(file, uint64_t{2} << 20);
  EXPECT_EQ(settled(ahead, 2), 2u);
}

}  // namespace
}  // namespace quipu
