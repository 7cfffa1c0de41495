// What reading costs: bench_data_reader make|start|read, see the usage below. Not part of the tests; docs/benchmarks.md
// has its figures.
#include <fcntl.h>
#include <hdf5.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "data/batch_stream.h"
#include "data/token_dataset.h"
#include "kernels/core/error.h"
#include "tests/data/shard_attributes.h"

namespace braid {
namespace {

namespace fs = std::filesystem;

constexpr const char* kUsage =
    "bench_data_reader make DIR SHARDS DOCUMENTS TOKENS [FIRST]\n"
    "                                                     shards FIRST (0) and on, of so many documents each, of about "
    "TOKENS tokens (log-normal, sigma 1);\n"
    "                                                     the tokens are holes, the offsets are not\n"
    "bench_data_reader start DIR ROW_TOKENS [ROWS]        opens them twice, without and with the stored index; finds "
    "random rows\n"
    "bench_data_reader read DIR ROW_TOKENS STEPS          reads batches of 64 rows, from the disk and again from "
    "memory (of a dataset\n"
    "                                                     with tokens)\n"
    "bench_data_reader wait DIR ROW_TOKENS STEPS RATE     takes such batches, read ahead, at so many tokens a second: "
    "how long it waits for them\n";

double cpu_seconds() {
  rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  return double(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
         1e-6 * double(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec);
}

struct Stopwatch {
  std::chrono::steady_clock::time_point begin = std::chrono::steady_clock::now();
  double cpu_begin = cpu_seconds();
  double wall() const { return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count(); }
  double cpu() const { return cpu_seconds() - cpu_begin; }
};

double peak_mb() {
  rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  return double(usage.ru_maxrss) / 1024;
}

void make_shard(const std::string& path, int64_t documents, double tokens, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::lognormal_distribution<double> length(std::log(tokens) - 0.5, 1);
  std::vector<int64_t> offsets = {0};
  for (int64_t d = 0; d < documents; ++d) offsets.push_back(offsets.back() + 1 + static_cast<int64_t>(length(random)));
  const hid_t file = H5Fcreate(path.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT),
              root = H5Gopen2(file, "/", H5P_DEFAULT);
  const auto dataset = [&](const char* name, hid_t type, hsize_t size, const void* values) {
    const hid_t space = H5Screate_simple(1, &size, nullptr), creation = H5Pcreate(H5P_DATASET_CREATE);
    H5Pset_alloc_time(creation, H5D_ALLOC_TIME_EARLY);
    H5Pset_fill_time(creation, H5D_FILL_TIME_NEVER);
    const hid_t id = H5Dcreate2(root, name, type, space, H5P_DEFAULT, creation, H5P_DEFAULT);
    if (values) H5Dwrite(id, H5T_NATIVE_INT64, H5S_ALL, H5S_ALL, H5P_DEFAULT, values);
    H5Dclose(id), H5Pclose(creation), H5Sclose(space);
  };
  dataset("tokens", H5T_STD_U16LE, offsets.back(), nullptr);
  dataset("document_offsets", H5T_STD_U64LE, offsets.size(), offsets.data());
  testing::ShardAttributes{"none", "none", 1000, 0, offsets.back(), documents}.write(root);
  H5Gclose(root), H5Fclose(file);
}

std::vector<std::string> shards_of(const std::string& folder) {
  std::vector<std::string> paths;
  for (const auto& entry : fs::directory_iterator(folder))
    if (entry.path().extension() == ".h5") paths.push_back(entry.path());
  std::sort(paths.begin(), paths.end());
  return paths;
}

void start(const std::string& folder, int64_t row_tokens, int64_t rows) {
  const std::vector<std::string> paths = shards_of(folder);
  for (const char* name : {"first", "later"}) {
    const Stopwatch watch;
    const TokenDataset train("bench", paths, row_tokens, Split::kTrain, 0.05);
    std::printf("%s start: %.2f s of CPU, %.2f s, peak %.0f MB%s; %.4g documents, %.4g tokens, %lld rows\n", name,
                watch.cpu(), watch.wall(), peak_mb(), train.source().was_stored() ? ", stored" : "",
                double(train.source().num_documents()), double(train.num_tokens()),
                static_cast<long long>(train.size()));
    BatchPlan plan;
    plan.global_batch_size = plan.micro_batch_size = 1;
    plan.mixture = Mixture(std::vector<MixtureInterval>{{0, {1.0}}});
    const std::vector<TokenDataset> datasets = {train};
    for (int round = 0; round < 2; ++round) {  // the second finds the offsets in memory
      const Stopwatch seek;
      int64_t pieces = 0;
      for (int64_t r = 0; r < rows; ++r)
        pieces +=
            static_cast<int64_t>(train.source().row(Split::kTrain, planned_row(datasets, plan, r * 7919).row).size());
      std::printf("  %lld rows at random steps: %.1f us of CPU, %.1f us a row; %.1f pieces\n",
                  static_cast<long long>(rows), 1e6 * seek.cpu() / double(rows), 1e6 * seek.wall() / double(rows),
                  double(pieces) / double(rows));
    }
  }
}

// The next reads come from the disk.
void forget_cached(const std::vector<std::string>& paths) {
  for (const std::string& path : paths) {
    const int fd = ::open(path.c_str(), O_RDONLY);
    ::fsync(fd);
    ::posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    ::close(fd);
  }
}

BatchPlan plan_of_64_rows() {
  BatchPlan plan;
  plan.global_batch_size = plan.micro_batch_size = 64;
  plan.mixture = Mixture(std::vector<MixtureInterval>{{0, {1.0}}});
  return plan;
}

void read(const std::string& folder, int64_t row_tokens, int64_t steps) {
  const std::vector<std::string> paths = shards_of(folder);
  const std::vector<TokenDataset> datasets = {TokenDataset("bench", paths, row_tokens, Split::kTrain, 0.05)};
  for (const bool is_cold : {true, false}) {
    if (is_cold) forget_cached(paths);
    const Stopwatch watch;
    int64_t tokens = 0;
    for (int64_t step = 0; step < steps; ++step)
      for (const Batch& batch : BatchStream::read_step(datasets, plan_of_64_rows(), step).micro_batches)
        tokens += batch.num_rows * batch.row_tokens;
    std::printf("%s: %.4g tokens/s, %.4g a second of CPU\n", is_cold ? "cold" : "warm", double(tokens) / watch.wall(),
                double(tokens) / watch.cpu());
  }
}

// As a training does: a step takes its time, and then the next batch is wanted. The first has nothing to hide behind
// and is not counted.
void wait(const std::string& folder, int64_t row_tokens, int64_t steps, double tokens_per_s) {
  const std::vector<std::string> paths = shards_of(folder);
  const std::vector<TokenDataset> datasets = {TokenDataset("bench", paths, row_tokens, Split::kTrain, 0.05)};
  for (const bool is_cold : {true, false}) {
    if (is_cold) forget_cached(paths);
    BatchStream stream(datasets, plan_of_64_rows(), 0);
    stream.next_step();
    const double before = stream.wait_seconds();
    const Stopwatch watch;
    double most = 0;
    int64_t tokens = 0;
    for (int64_t step = 1; step <= steps; ++step) {
      std::this_thread::sleep_for(std::chrono::duration<double>(64 * double(row_tokens) / tokens_per_s));
      const double waited = stream.wait_seconds();
      for (const Batch& batch : stream.next_step().micro_batches) tokens += batch.num_rows * batch.row_tokens;
      most = std::max(most, stream.wait_seconds() - waited);
    }
    const double waited = stream.wait_seconds() - before;
    std::printf(
        "%s: %.4g tokens/s, %.4f %% of the time waited for data, %.2f ms at most in a step, CPU %.2f s of %.2f\n",
        is_cold ? "cold" : "warm", double(tokens) / watch.wall(), 100 * waited / watch.wall(), 1e3 * most, watch.cpu(),
        watch.wall());
  }
}

int run(const std::vector<std::string>& a) {
  const auto number = [&](size_t i) { return std::atoll(a[i].c_str()); };
  if ((a.size() == 5 || a.size() == 6) && a[0] == "make") {
    fs::create_directories(a[1]);
    const int64_t first = a.size() == 6 ? number(5) : 0;
    for (int64_t s = first; s < first + number(2); ++s)
      make_shard(concat(a[1], "/", 100000 + s, ".h5"), number(3), double(number(4)), s);
  } else if (a.size() >= 3 && a[0] == "start") {
    start(a[1], number(2), a.size() > 3 ? number(3) : 1000);
  } else if (a.size() == 4 && a[0] == "read") {
    read(a[1], number(2), number(3));
  } else if (a.size() == 5 && a[0] == "wait") {
    wait(a[1], number(2), number(3), double(number(4)));
  } else {
    std::fputs(kUsage, stderr);
    return 2;
  }
  return 0;
}

}  // namespace
}  // namespace braid

int main(int argc, char** argv) {
  try {
    return braid::run({argv + 1, argv + argc});
  } catch (const braid::Error& e) {
    std::fprintf(stderr, "bench_data_reader: %s\n", e.what());
    return static_cast<int>(e.code());
  }
}
