// The files of a run folder that hold lines beside the metrics: expert loads and events.
#include <fstream>

#include "kernels/core/error.h"
#include "tests/file_testing.h"
#include "trainer/metrics/expert_loads.h"
#include "trainer/metrics/run_events.h"

namespace braid {
namespace {

class RunFiles : public testing::FolderTest {
 protected:
  void append(const std::string& name, const std::string& text) const {
    std::ofstream(path(name), std::ios::binary | std::ios::app) << text;
  }
};

ExpertLoads loads_of_step(int64_t step) { return {step, {"layer_00", "mtp"}, {{step, 0, 7}, {1, 2, 3}}}; }

TEST_F(RunFiles, ExpertLoadsReadBack) {
  {
    ExpertLoadsWriter writer(folder_, 0);
    for (int64_t step = 1; step <= 3; ++step) ASSERT_TRUE(writer.write(loads_of_step(step)));
  }
  append("expert_loads.jsonl", "{\"step\": 4, \"layer_0");
  const auto all = read_expert_loads(folder_);
  ASSERT_EQ(all.size(), 3u);
  EXPECT_EQ(all[1].step, 2);
  EXPECT_EQ(all[1].layers, loads_of_step(2).layers);
  EXPECT_EQ(all[1].counts, loads_of_step(2).counts);
}

TEST_F(RunFiles, ResumeCutsLaterExpertLoads) {
  {
    ExpertLoadsWriter writer(folder_, 0);
    for (int64_t step = 1; step <= 3; ++step) ASSERT_TRUE(writer.write(loads_of_step(step)));
  }
  append("expert_loads.jsonl", "{\"st");
  ASSERT_TRUE(ExpertLoadsWriter(folder_, 2).write(loads_of_step(3)));
  const auto all = read_expert_loads(folder_);
  ASSERT_EQ(all.size(), 3u);
  EXPECT_EQ(all.back().step, 3);
}

TEST_F(RunFiles, ExpertLoadsAreWrittenAboutTwoHundredTimesInARunOfAnyLength) {
  for (const int64_t steps : {1, 7, 200, 399, 1000, 123457}) {
    int64_t count = 0;
    for (int64_t step = 1; step <= steps; ++step) count += ExpertLoadsWriter::is_due(step, steps);
    EXPECT_GE(count, std::min<int64_t>(steps, ExpertLoadsWriter::kLines)) << steps;
    EXPECT_LE(count, 2 * ExpertLoadsWriter::kLines) << steps;
    EXPECT_TRUE(ExpertLoadsWriter::is_due(1, steps) && ExpertLoadsWriter::is_due(steps, steps));
  }
}

TEST_F(RunFiles, WhatIsNoExpertLoadIsRefused) {
  append("expert_loads.jsonl", "{\"step\": 1, \"layer_00\": [1, 2]}\n{\"step\": 2, \"layer_00\": \"many\"}\n");
  testing::expect_contains(testing::message_of<DataError>([&] { read_expert_loads(folder_); }),
                           "expert_loads.jsonl:2:");
}

// What is no JSON may only be the last line, which is still being written.
TEST_F(RunFiles, ADamagedLineBeforeTheLastIsRefused) {
  append("expert_loads.jsonl", "{\"step\": 1, \"layer_00\n{\"step\": 2, \"layer_00\": [1, 2]}\n");
  testing::expect_contains(testing::message_of<DataError>([&] { read_expert_loads(folder_); }),
                           "expert_loads.jsonl:1: is not a line of expert loads");
}

TEST_F(RunFiles, ALineWithoutAStepIsRefused) {
  append("expert_loads.jsonl", "{\"step\": 1, \"layer_00\": [1, 2]}\n{\"layer_00\": [1, 2]}\n");
  testing::expect_contains(testing::message_of<DataError>([&] { read_expert_loads(folder_); }),
                           "expert_loads.jsonl:2: is not a line of expert loads");
}

TEST_F(RunFiles, EventsReadBack) {
  EXPECT_TRUE(read_run_events(folder_).empty());
  ASSERT_TRUE(append_run_event(folder_, {0, "started", "on 2 ranks", ""}));
  ASSERT_TRUE(append_run_event(folder_, {20, "resumed", "a \"quoted\"\nline", ""}));
  append("events.jsonl", "{\"step\"");
  const auto events = read_run_events(folder_);
  ASSERT_EQ(events.size(), 2u);
  EXPECT_EQ(events[0].event, "started");
  EXPECT_EQ(events[1].step, 20);
  EXPECT_EQ(events[1].text, "a \"quoted\"\nline");
  EXPECT_EQ(events[1].time.size(), std::string("2026-01-31T23:59:59Z").size());
}

TEST_F(RunFiles, AnEventThatCannotBeWrittenIsNoError) {
  EXPECT_FALSE(append_run_event(path("absent"), {0, "started", "", ""}));
}

}  // namespace
}  // namespace braid
