#include "train/metrics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "train/schedule.h"

namespace quipu {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;
using testing::Not;

class Metrics : public testing::Test {
 protected:
  Metrics()
      : folder_(fs::temp_directory_path() / ("quipu-metrics-" + std::to_string(getpid()) + "-" +
                                             testing::UnitTest::GetInstance()->current_test_info()->name())) {
    fs::create_directories(folder_);
  }
  ~Metrics() override { fs::remove_all(folder_); }
  std::string text(const std::string& name) const {
    std::ifstream in(folder_ / name, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
  }
  fs::path folder_;
};

TEST_F(Metrics, LinesAreJsonAndAResumedRunDropsWhatItWillDoAgain) {
  {
    auto log = MetricsLog::open(folder_, -1);
    for (int64_t step = 1; step <= 4; ++step)
      ASSERT_TRUE(log->add({step, {{"loss", 1.0 / static_cast<double>(step)}}}).ok());
    ASSERT_TRUE(log->add({5, {{"loss", std::nan("")}}}).ok());
  }
  EXPECT_THAT(text("metrics.jsonl"), HasSubstr("{\"step\":2,\"loss\":0.5}\n"));
  EXPECT_THAT(text("metrics.jsonl"), HasSubstr("{\"step\":5,\"loss\":null}\n"));
  std::ofstream(folder_ / "metrics.jsonl", std::ios::app) << "{\"step\": 3, half a li";
  auto log = MetricsLog::open(folder_, 2);
  EXPECT_EQ(log->history().size(), 2u);
  EXPECT_EQ(text("metrics.jsonl"), "{\"step\":1,\"loss\":1.0}\n{\"step\":2,\"loss\":0.5}\n");
  EXPECT_EQ(MetricsLog::open(folder_, -1)->history().size(), 0u) << "a fresh run begins anew";
}

TEST_F(Metrics, ChecksumsAreCastagnolis) {
  EXPECT_EQ(crc32c("123456789"), 0xE3069283u);  // RFC 3720, appendix B.4 and the usual check value
  EXPECT_EQ(crc32c(std::string(32, '\0')), 0x8A9136AAu);
  EXPECT_EQ(crc32c(std::string(32, '\xFF')), 0x62A8AB43u);
}

// Reads the records back by the format's own rules: nothing of the writer is used but its checksum, tested above.
TEST_F(Metrics, TensorBoardFilesHoldFramedEvents) {
  {
    auto log = TensorBoardLog::create(folder_, 1700000000.5);
    ASSERT_TRUE(log.ok());
    ASSERT_TRUE(log->add({300, {{"loss", 1.5}, {"held_out_loss", 2.5}}}, 1700000001.0).ok());
  }
  std::string bytes;
  for (const auto& entry : fs::directory_iterator(folder_)) {
    EXPECT_THAT(entry.path().filename().string(), HasSubstr("events.out.tfevents.1700000000"));
    bytes = text(entry.path().filename().string());
  }
  std::vector<std::string> events;
  size_t at = 0;
  while (at < bytes.size()) {
    uint64_t length = 0;
    uint32_t head = 0, body = 0;
    ASSERT_LE(at + 12, bytes.size());
    std::memcpy(&length, bytes.data() + at, 8);
    std::memcpy(&head, bytes.data() + at + 8, 4);
    ASSERT_LE(at + 16 + length, bytes.size());
    EXPECT_EQ(head, masked_crc32c(std::string_view(bytes).substr(at, 8)));
    std::memcpy(&body, bytes.data() + at + 12 + length, 4);
    events.push_back(bytes.substr(at + 12, length));
    EXPECT_EQ(body, masked_crc32c(events.back()));
    at += 16 + length;
  }
  ASSERT_EQ(events.size(), 2u);
  EXPECT_THAT(events[0], HasSubstr("brain.Event:2"));
  const double time = 1700000001.0;
  std::string expected("\x09", 1);
  expected.append(reinterpret_cast<const char*>(&time), 8);
  expected += "\x10\xAC\x02";  // step = 300
  const float losses[2] = {1.5f, 2.5f};
  std::string first = "\x0A\x0Atrain/loss\x15", second = "\x0A\x0Dheld_out/loss\x15";
  first.append(reinterpret_cast<const char*>(&losses[0]), 4);
  second.append(reinterpret_cast<const char*>(&losses[1]), 4);
  const std::string summary = "\x0A" + std::string(1, static_cast<char>(first.size())) + first + "\x0A" +
                              std::string(1, static_cast<char>(second.size())) + second;
  expected += "\x2A" + std::string(1, static_cast<char>(summary.size())) + summary;
  EXPECT_EQ(events[1], expected);
}

TEST_F(Metrics, TheReportStandsAlone) {
  std::vector<MetricsLine> history;
  for (int64_t step = 1; step <= 5000; ++step)
    history.push_back({step, {{"loss", 5.0 / std::sqrt(static_cast<double>(step))}}});
  history.push_back({5000, {{"held_out_loss", 0.25}}});
  ASSERT_TRUE(
      write_html_report(folder_ / "report.html", {"A <run> & more", {{"data", "some \"corpus\""}}}, history).ok());
  const std::string page = text("report.html");
  EXPECT_THAT(page, HasSubstr("A &lt;run&gt; &amp; more"));
  EXPECT_THAT(page, HasSubstr("<polyline"));
  EXPECT_THAT(page, HasSubstr("held out <b>0.25</b>"));
  for (const char* foreign : {"<script", "http:", "https:", "@import", "url("})
    EXPECT_THAT(page, Not(HasSubstr(foreign)));
  EXPECT_LT(page.size(), 100000u) << "long runs are thinned";
}

TEST(Schedule, FollowsItsThreeShapes) {
  OptimizerSection o;
  o.warmup_steps = 10;
  o.final_fraction = 0.1;
  o.schedule = ScheduleKind::kConstant;
  EXPECT_DOUBLE_EQ(schedule_factor(o, 0, 110), 0.1);
  EXPECT_DOUBLE_EQ(schedule_factor(o, 9, 110), 1);
  EXPECT_DOUBLE_EQ(schedule_factor(o, 109, 110), 1);
  o.schedule = ScheduleKind::kCosine;
  EXPECT_DOUBLE_EQ(schedule_factor(o, 10, 110), 1);
  EXPECT_DOUBLE_EQ(schedule_factor(o, 60, 110), 0.55);
  EXPECT_NEAR(schedule_factor(o, 110, 110), 0.1, 1e-12);
  o.schedule = ScheduleKind::kWsd;
  o.decay_steps = 100;
  o.final_fraction = 0;
  EXPECT_DOUBLE_EQ(schedule_factor(o, 99, 200), 1);
  EXPECT_DOUBLE_EQ(schedule_factor(o, 100, 200), 0.9);
  EXPECT_DOUBLE_EQ(schedule_factor(o, 124, 200), 0.5);
  EXPECT_DOUBLE_EQ(schedule_factor(o, 199, 200), 0);
}

}  // namespace
}  // namespace quipu
