#include "trainer/metrics/metrics_writer.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <bit>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <random>

#include "tests/file_testing.h"
#include "trainer/metrics/line_file.h"

namespace braid {
namespace {

using namespace braid::testing;
namespace fs = std::filesystem;

class MetricsWriterTest : public FolderTest {
 protected:
  std::string read(const std::string& name) const { return bytes_of(path(name)); }
  void append(const std::string& name, const std::string& text) const {
    std::ofstream(path(name), std::ios::binary | std::ios::app) << text;
  }
};

MetricsLine train_line(int64_t step, double loss) {
  MetricsLine line;
  line.set("step", step);
  line.set("train/loss_lm", loss);
  return line;
}

double read_back(double value) {
  MetricsLine line;
  line.set("x", value);
  return nlohmann::json::parse(line.to_json()).at("x").get<double>();
}

TEST(MetricsLine, KeepsTheOrderOfItsFields) {
  MetricsLine line = train_line(7, 5.5);
  line.set("tokens", int64_t{9007199254740993});
  line.set("a \"quoted\" name\n", 2.0);
  EXPECT_EQ(line.to_json(),
            R"({"step": 7, "train/loss_lm": 5.5, "tokens": 9007199254740993, "a \"quoted\" name\n": 2.0})");
}

TEST(MetricsLine, NumbersReadBackToTheSameBits) {
  std::vector<double> values = {0.0, -0.0, 1.0, -3.0, 1e22, 0.1, 1 / 3.0, 9007199254740993.0};
  using Limits = std::numeric_limits<double>;
  for (double v : {Limits::max(), Limits::lowest(), Limits::min(), Limits::denorm_min(), 3 * Limits::denorm_min()})
    values.push_back(v);
  std::mt19937_64 random(1);
  for (int i = 0; i < 20000; ++i) values.push_back(std::bit_cast<double>(random()));
  for (int i = 0; i < 1000; ++i) values.push_back(std::bit_cast<double>(random() >> 12));  // denormal
  int finite = 0;
  for (double value : values) {
    if (!std::isfinite(value)) continue;
    ++finite;
    ASSERT_EQ(std::bit_cast<uint64_t>(read_back(value)), std::bit_cast<uint64_t>(value)) << std::hexfloat << value;
  }
  EXPECT_GT(finite, 20000);
}

TEST(MetricsLine, WritesNullForWhatIsNotFinite) {
  for (double value : {std::numeric_limits<double>::quiet_NaN(), HUGE_VAL, -HUGE_VAL})
    EXPECT_EQ(train_line(1, value).to_json(), R"({"step": 1, "train/loss_lm": null})");
}

TEST(MetricsLine, ANameThatIsNotUtf8StopsNothing) {
  MetricsLine line;
  line.set("val/\xff/loss", 1.5);
  EXPECT_EQ(nlohmann::json::parse(line.to_json()).size(), 1u);
}

TEST_F(MetricsWriterTest, CsvHasTheColumnsOfTheFirstTrainingLine) {
  MetricsWriter writer(folder_, 0);
  writer.write_train(train_line(1, 5.5));
  MetricsLine reordered;
  reordered.set("new", 3.0);
  reordered.set("train/loss_lm", std::nan(""));
  reordered.set("step", int64_t{2});
  writer.write_train(reordered);
  MetricsLine validation;
  validation.set("step", int64_t{2});
  validation.set("val/x/loss", 4.0);
  writer.write_jsonl(validation);
  EXPECT_EQ(read("metrics.csv"), "step,train/loss_lm\n1,5.5\n2,\n");
  EXPECT_EQ(read("metrics.jsonl"),
            "{\"step\": 1, \"train/loss_lm\": 5.5}\n{\"new\": 3.0, \"train/loss_lm\": null, \"step\": 2}\n"
            "{\"step\": 2, \"val/x/loss\": 4.0}\n");
  EXPECT_EQ(writer.waiting_lines(), 0);
}

TEST_F(MetricsWriterTest, ResumeCutsLaterStepsAndATornLastLine) {
  MetricsLine validation;
  validation.set("step", int64_t{2});
  validation.set("val/x/loss", 4.0);
  {
    MetricsWriter writer(folder_, 0);
    for (int64_t step = 1; step <= 3; ++step) {
      writer.write_train(train_line(step, 6.0 - double(step)));
      if (step == 2) writer.write_jsonl(validation);
    }
  }
  append("metrics.jsonl", R"({"step": 2, "train/lo)");
  append("metrics.csv", "2,4.");
  {
    MetricsWriter writer(folder_, 2);
    EXPECT_EQ(read("metrics.jsonl"),
              "{\"step\": 1, \"train/loss_lm\": 5.0}\n{\"step\": 2, \"train/loss_lm\": 4.0}\n"
              "{\"step\": 2, \"val/x/loss\": 4.0}\n");
    EXPECT_EQ(read("metrics.csv"), "step,train/loss_lm\n1,5.0\n2,4.0\n");
    writer.write_train(train_line(3, 3.5));
  }
  EXPECT_EQ(read("metrics.csv"), "step,train/loss_lm\n1,5.0\n2,4.0\n3,3.5\n");
  EXPECT_NE(read("metrics.jsonl").find("{\"step\": 3, \"train/loss_lm\": 3.5}\n"), std::string::npos);
}

TEST_F(MetricsWriterTest, ResumeAtTheLastStepCutsOnlyWhatIsTorn) {
  MetricsWriter(folder_, 0).write_train(train_line(1, 5.0));
  const std::string jsonl = read("metrics.jsonl"), csv = read("metrics.csv");
  append("metrics.jsonl", R"({"step": 1})");  // whole, but for its end
  append("metrics.csv", "1,2");
  MetricsWriter writer(folder_, 1);
  EXPECT_EQ(read("metrics.jsonl"), jsonl);
  EXPECT_EQ(read("metrics.csv"), csv);
}

TEST_F(MetricsWriterTest, ResumeAfterPowerLossCutsWhatIsNotALine) {
  MetricsWriter(folder_, 0).write_train(train_line(1, 5.0));
  const std::string jsonl = read("metrics.jsonl"), csv = read("metrics.csv");
  append("metrics.jsonl", std::string(100, '\0') + "\n");
  append("metrics.csv", "2\n2,4.0,1.0\n");
  MetricsWriter writer(folder_, 5);
  EXPECT_EQ(read("metrics.jsonl"), jsonl);
  EXPECT_EQ(read("metrics.csv"), csv);
}

TEST_F(MetricsWriterTest, ATornHeaderIsWrittenAgain) {
  append("metrics.csv", "step,train/lo");
  MetricsWriter writer(folder_, 0);
  writer.write_train(train_line(1, 5.0));
  EXPECT_EQ(read("metrics.csv"), "step,train/loss_lm\n1,5.0\n");
}

TEST_F(MetricsWriterTest, AnUnreadableLineStaysAndSoDoTheGoodOnesBehindIt) {
  {
    MetricsWriter writer(folder_, 0);
    for (int64_t step = 1; step <= 4; ++step) writer.write_train(train_line(step, 5.0));
  }
  for (const char* name : {"metrics.jsonl", "metrics.csv"}) {
    std::string text = read(name);
    const size_t second = text.find('\n', text.find("2")) - 4;  // within the line of step 2
    text[second] = '\1';
    text[second - 1] = '{';
    std::ofstream(path(name), std::ios::binary) << text;
  }
  const std::string jsonl = read("metrics.jsonl"), csv = read("metrics.csv");
  MetricsWriter writer(folder_, 3);
  EXPECT_EQ(read("metrics.jsonl"), jsonl.substr(0, jsonl.find("{\"step\": 4")));
  EXPECT_EQ(read("metrics.csv"), csv.substr(0, csv.find("4,")));
}

TEST_F(MetricsWriterTest, KnowsTheStepOfTheLastValidation) {
  EXPECT_EQ(MetricsWriter(folder_, 0).last_validation_step(), 0);
  {
    MetricsWriter writer(folder_, 0);
    for (int64_t step = 1; step <= 4; ++step) {
      writer.write_train(train_line(step, 5.0));
      MetricsLine validation;
      validation.set("step", step);
      validation.set("val/x/loss", 4.0);
      if (step % 2 == 0) writer.write_jsonl(validation);
    }
  }
  EXPECT_EQ(MetricsWriter(folder_, 4).last_validation_step(), 4);
  EXPECT_EQ(MetricsWriter(folder_, 3).last_validation_step(), 2);
}

TEST_F(MetricsWriterTest, WhatAFailingFileDoesNotTakeIsAnErrorOfFlush) {
  fs::create_symlink("/dev/full", path("metrics.jsonl"));
  MetricsWriter writer(folder_, 0);
  for (int64_t step = 1; step <= 3; ++step) writer.write_train(train_line(step, 5.0));
  EXPECT_EQ(writer.waiting_lines(), 3);
  EXPECT_EQ(read("metrics.csv"), "step,train/loss_lm\n1,5.0\n2,5.0\n3,5.0\n");
  EXPECT_EQ(message_of<IoError>([&] { writer.flush(); }),
            path("metrics.jsonl") + ": 3 lines of metrics cannot be written: No space left on device");
}

TEST_F(MetricsWriterTest, LinesThatFoundNoRoomAreWrittenOnceThereIsSome) {
  MetricsWriter writer(folder_, 0);
  {
    const FileSizeLimit full_disk(20);
    writer.write_train(train_line(1, 5.0));
    EXPECT_THROW(writer.flush(), IoError);
  }
  EXPECT_EQ(writer.waiting_lines(), 2);
  EXPECT_EQ(read("metrics.jsonl"), "") << "a part of a line is left";

  writer.write_train(train_line(2, 4.0));
  writer.flush();
  EXPECT_EQ(read("metrics.jsonl"), "{\"step\": 1, \"train/loss_lm\": 5.0}\n{\"step\": 2, \"train/loss_lm\": 4.0}\n");
  EXPECT_EQ(read("metrics.csv"), "step,train/loss_lm\n1,5.0\n2,4.0\n");
  EXPECT_EQ(writer.waiting_lines(), 0);
}

TEST_F(MetricsWriterTest, APipeThatNobodyReadsIsNotWaitedFor) {
  ASSERT_EQ(mkfifo(path("metrics.jsonl").c_str(), 0600), 0);
  expect_contains(message_of<IoError>([&] { LineFile file(path("metrics.jsonl")); }), "is a pipe that nobody reads");
  const int reader = open(path("metrics.jsonl").c_str(), O_RDONLY | O_NONBLOCK);
  LineFile file(path("metrics.jsonl"));
  EXPECT_TRUE(file.append("line"));
  char text[8] = "";
  EXPECT_EQ(::read(reader, text, sizeof text), 5);
  EXPECT_STREQ(text, "line\n");
  close(reader);
}

TEST_F(MetricsWriterTest, SaysWhichFileCannotBeOpened) {
  EXPECT_EQ(message_of<IoError>([&] { MetricsWriter writer(path("absent"), 0); }),
            path("absent/metrics.jsonl") + ": cannot be opened for writing: No such file or directory");
}

}  // namespace
}  // namespace braid
