#include "trainer/report/report.h"

#include <cmath>
#include <fstream>

#include "kernels/core/error.h"
#include "tests/file_testing.h"

namespace braid {
namespace {

using testing::expect_contains;

class ReportTest : public testing::FolderTest {
 protected:
  // A run folder as training writes it, `offset` above the others.
  std::string make_run(const std::string& name, int64_t steps, double offset, const std::string& order, int layers = 2,
                       int experts = 8) const {
    const std::string dir = path(name);
    std::filesystem::create_directories(dir);
    std::ofstream metrics(dir + "/metrics.jsonl"), loads(dir + "/expert_loads.jsonl");
    metrics.precision(17);
    for (int64_t step = 1; step <= steps; ++step) {
      metrics << "{\"step\": " << step << ", \"tokens\": " << step * 512
              << ", \"train/loss_lm\": " << 5.0 / double(step) + offset
              << ", \"train/grad_norm\": 1.5, \"train/lr\": 0.001, "
              << "\"perf/tokens_per_s\": 1000.5, \"perf/step_ms\": 500.0, \"data/code/epoch\": " << 0.05 * double(step)
              << ", \"data/code/tokens\": " << step * 384 << ", \"data/code/loss\": " << 4.0 / double(step) + offset
              << ", \"data/a/b,c/epoch\": 0.25, \"data/a/b,c/tokens\": " << step * 128
              << ", \"data/a/b,c/loss\": " << (step % 2 ? "null" : std::to_string(offset)) << "}\n";
      if (step % 10 == 0)
        metrics << "{\"step\": " << step << ", \"val/books/loss\": " << 2 + offset << ", \"val/books/ppl\": 7.4}\n";
      if (step % std::max<int64_t>(1, steps / 200) != 0) continue;
      loads << "{\"step\": " << step;
      for (int layer = 0; layer < layers; ++layer) {
        loads << ", \"layer_0" << layer << "\": [0";
        for (int e = 1; e < experts; ++e) loads << ", " << 10 + e;
        loads << "]";
      }
      loads << "}\n";
    }
    testing::write_bytes(dir + "/data_order.txt", order + "\n");
    testing::write_bytes(dir + "/build.txt", "0.1.0+abc\n");
    testing::write_bytes(
        dir + "/events.jsonl",
        "{\"step\":0,\"event\":\"started\",\"time\":\"2026-01-01T00:00:00Z\",\"text\":\"on <2> ranks\"}\n");
    testing::write_bytes(dir + "/config.resolved.yaml",
                         "run: {steps: 40}\noptimizer: {lr: " + std::to_string(1e-3 + offset) + "}\n");
    return dir;
  }
};

TEST_F(ReportTest, ReadsARunFolder) {
  const RunData run = read_run(make_run("a", 40, 0, "o"));
  EXPECT_EQ(run.name, "a");
  ASSERT_EQ(run.train.size(), 40u);
  EXPECT_DOUBLE_EQ(run.train.back().seconds, 20);
  EXPECT_EQ(run.held_out.at("books").size(), 4u);
  EXPECT_EQ(run.held_out.at("books")[1].tokens, 20 * 512);
  EXPECT_EQ(run.loads.size(), 40u);
  EXPECT_TRUE(run.finished());
  EXPECT_NEAR(run.final_loss(), (5.0 / 39 + 5.0 / 40) / 2, 1e-12);
  EXPECT_EQ(run.final_held_out_loss(), 2);
  EXPECT_EQ(run.median_tokens_per_s(), 1000.5);
  ASSERT_EQ(run.sources.size(), 2u);
  const SourceData &code = run.sources.at("code"), &rare = run.sources.at("a/b,c");
  EXPECT_DOUBLE_EQ(code.epochs, 2);
  EXPECT_EQ(code.tokens, 40 * 384);
  EXPECT_NEAR(code.final_loss(), (4.0 / 39 + 4.0 / 40) / 2, 1e-12);
  ASSERT_EQ(rare.loss.size(), 40u);
  EXPECT_TRUE(std::isnan(rare.loss[38]) && std::isnan(rare.loss[0]));
  EXPECT_EQ(rare.final_loss(), 0);  // of step 40 alone
}

TEST_F(ReportTest, ReadsASourceThatCameLateOrLeftEarly) {
  const std::string dir = make_run("a", 0, 0, "o");
  testing::write_bytes(dir + "/metrics.jsonl",
                       "{\"step\": 1, \"train/loss_lm\": 2.0, \"data/x/loss\": 2.0}\n"
                       "{\"step\": 2, \"train/loss_lm\": 3.0, \"data/x/loss\": null, \"data/y/loss\": 3.0}\n");
  const RunData run = read_run(dir);
  ASSERT_EQ(run.sources.at("x").loss.size(), 2u);
  EXPECT_EQ(run.sources.at("x").loss[0], 2);
  EXPECT_TRUE(std::isnan(run.sources.at("x").final_loss()));
  ASSERT_EQ(run.sources.at("y").loss.size(), 2u);
  EXPECT_EQ(run.sources.at("y").final_loss(), 3);
}

TEST_F(ReportTest, ReadsARunThatIsBeingWritten) {
  const std::string dir = make_run("a", 10, 0, "o");
  std::ofstream(dir + "/metrics.jsonl", std::ios::app) << "{\"step\": 11, \"tok";
  EXPECT_EQ(read_run(dir).train.size(), 10u);
  EXPECT_FALSE(read_run(dir).finished());
}

TEST_F(ReportTest, SaysWhatIsNoRun) {
  expect_contains(testing::message_of<IoError>([&] { read_run(path("absent")); }), "absent/metrics.jsonl: is missing");
  const std::string dir = make_run("a", 3, 0, "o");
  testing::write_bytes(dir + "/metrics.jsonl", "{\"step\": 1}\nnonsense\n{\"step\": 2}\n");
  expect_contains(testing::message_of<DataError>([&] { read_run(dir); }), "metrics.jsonl:2:");
}

TEST_F(ReportTest, GivesRunsNamesThatDiffer) {
  std::vector<RunData> runs = {read_run(make_run("x/run", 3, 0, "o")), read_run(make_run("y/run", 3, 0, "o"))};
  make_names_differ(runs);
  EXPECT_EQ(runs[0].name, "x/run");
  EXPECT_EQ(runs[1].name, "y/run");
}

TEST_F(ReportTest, HasEveryPart) {
  std::vector<RunData> runs = {read_run(make_run("a", 40, 0, "o")), read_run(make_run("b<&>", 40, 0.25, "o"))};
  const std::string html = report_as_html(runs, "A & B");
  for (const char* part : {"<title>A &amp; B</title>",
                           "b&lt;&amp;&gt;",
                           "Training loss by tokens",
                           "Training loss by time",
                           "Held-out loss by tokens: books",
                           "<h2>Data</h2>",
                           "Training loss by tokens: code",
                           "Training loss by tokens: a/b,c",
                           "<td>code</td><td>15.4k</td><td>75.0 %</td><td>2.00</td><td>0.1013</td>",
                           "Training loss minus that of A",
                           "0.2500 ± 0.0000",
                           "same order",
                           "<code>optimizer.lr</code>",
                           "Tokens per second",
                           "Expert load",
                           "data:image/png;base64,",
                           "Experts without a token at step 40: 1 of 8 in layer_00, 1 of 8 in layer_01",
                           "on &lt;2&gt; ranks",
                           "prefers-color-scheme:dark",
                           "name=viewport",
                           "0.1.0+abc"})
    expect_contains(html, part);
  EXPECT_EQ(html.find("<script"), std::string::npos);
  EXPECT_EQ(html.find("http"), std::string::npos);  // it asks for nothing from anywhere
}

TEST_F(ReportTest, GivesNoIntervalToRunsWithOtherData) {
  std::vector<RunData> runs = {read_run(make_run("a", 40, 0, "o1")), read_run(make_run("b", 40, 0.25, "o2"))};
  const std::string html = report_as_html(runs, "x");
  expect_contains(html, "another order");
  EXPECT_EQ(html.find("0.2500 ±"), std::string::npos);
}

TEST_F(ReportTest, StaysBelowItsLimitForManyLongRunsOfAWideModel) {
  std::vector<RunData> runs;
  for (int i = 0; i < 3; ++i) runs.push_back(read_run(make_run("r" + std::to_string(i), 2000, i, "o", 48, 512)));
  while (runs.size() < 24) {
    runs.push_back(runs[runs.size() % 3]);
    runs.back().name += "again";
  }
  const std::string html = report_as_html(runs, "many");
  EXPECT_LT(html.size(), kMostReportBytes);
  expect_contains(html, ">X</text>");  // the letter of the last run
}

TEST_F(ReportTest, CsvHasARowPerStepOfEveryRun) {
  const std::string csv = report_as_csv({read_run(make_run("a", 10, 0, "o")), read_run(make_run("b", 2, 1, "o"))});
  expect_contains(
      csv,
      "run,step,tokens,seconds,train_loss,grad_norm,lr,tokens_per_s,val_books,\"data_a/b,c_loss\",data_code_loss\n");
  expect_contains(csv, "a,10,5120,5,0.5,1.5,0.001,1000.5,2,0,0.4\n");
  expect_contains(csv, "b,1,512,0.5,6,1.5,0.001,1000.5,,,5\n");
  expect_contains(csv, "b,2,1024,1,3.5,1.5,0.001,1000.5,,1,3\n");
}

}  // namespace
}  // namespace braid
