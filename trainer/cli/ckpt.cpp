#include <CLI/CLI.hpp>
#include <cmath>
#include <cstdio>
#include <memory>
#include <set>
#include <vector>

#include "trainer/checkpoint/checkpoint.h"
#include "trainer/cli/commands.h"
#include "trainer/cli/session.h"

namespace braid {
namespace {

// A whole logical tensor in memory.
struct LoadedTensor {
  std::vector<uint64_t> memory;
  Tensor tensor;
  LoadedTensor(const CheckpointReader& reader, const CheckpointReader::LogicalTensor& t) {
    memory.resize(size_t(t.shape.numel() * size_of(t.dtype) + 7) / 8);
    tensor = Tensor(memory.data(), t.dtype, t.shape);
    CheckpointSlice slice{t.name, t.shape, 0, t.shape.numel(), tensor};
    reader.read(slice);
  }
  double at(int64_t i) const {
    switch (tensor.dtype()) {
      case DType::kF64: return tensor.data<double>()[i];
      case DType::kF32: return tensor.data<float>()[i];
      case DType::kI64: return double(tensor.data<int64_t>()[i]);
      case DType::kI32: return tensor.data<int32_t>()[i];
      case DType::kU8: return tensor.data<uint8_t>()[i];
      case DType::kBF16: break;
    }
    throw CheckpointError("a bf16 tensor has no value to compare on the CPU");
  }
};

int inspect(const std::string& path) {
  const CheckpointReader reader = open_checkpoint(path);
  const CheckpointInfo& info = reader.info();
  int64_t bytes = 0;
  for (const auto& t : reader.tensors()) bytes += t.shape.numel() * size_of(t.dtype);
  std::printf(
      "%s\nstep %lld, %lld tokens\nwritten by %lld ranks, expert parallel %lld, braid %s\n%zu tensors, %lld bytes\n",
      reader.path().c_str(), static_cast<long long>(info.step), static_cast<long long>(info.tokens),
      static_cast<long long>(info.num_ranks), static_cast<long long>(info.expert_parallel), info.build_id.c_str(),
      reader.tensors().size(), static_cast<long long>(bytes));
  return 0;
}

int verify(const std::string& path) {
  const CheckpointReader reader = open_checkpoint(path);
  reader.verify();
  for (const auto& t : reader.tensors()) {
    if (!is_float(t.dtype)) continue;
    const LoadedTensor loaded(reader, t);
    for (int64_t i = 0; i < t.shape.numel(); ++i)
      check<CheckpointError>(std::isfinite(loaded.at(i)), reader.path(), ": tensor ", t.name, " element ", i, " is ",
                             loaded.at(i));
  }
  std::printf("%s: %zu tensors, every digest matches, every number is finite\n", reader.path().c_str(),
              reader.tensors().size());
  return 0;
}

// sqrt(sum (a - b)^2 / sum a^2); infinite where shapes differ or something is not a number
double difference(const LoadedTensor& a, const LoadedTensor& b) {
  double error = 0, norm = 0;
  for (int64_t i = 0; i < a.tensor.numel(); ++i) {
    const double d = a.at(i) - b.at(i);
    error += d * d;
    norm += a.at(i) * a.at(i);
  }
  if (error == 0) return 0;
  const double relative = std::sqrt(error / norm);
  return std::isnan(relative) ? INFINITY : relative;
}

int diff(const std::string& path_a, const std::string& path_b, double rtol) {
  const CheckpointReader a = open_checkpoint(path_a), b = open_checkpoint(path_b);
  std::set<std::string> only_b;
  for (const auto& t : b.tensors()) only_b.insert(t.name);
  int64_t differing = 0, beyond = 0;
  double largest = 0;
  auto report = [&](const std::string& name, const std::string& what) {
    if (++beyond <= 20) std::printf("%s: %s\n", name.c_str(), what.c_str());
  };
  for (const auto& t : a.tensors()) {
    if (only_b.erase(t.name) == 0) {
      report(t.name, "only in the first");
      continue;
    }
    CheckpointReader::LogicalTensor other;
    for (const auto& candidate : b.tensors())
      if (candidate.name == t.name) other = candidate;
    if (other.shape != t.shape || other.dtype != t.dtype) {
      report(t.name, concat(name_of(t.dtype), ' ', t.shape.to_string(), " against ", name_of(other.dtype), ' ',
                            other.shape.to_string()));
      continue;
    }
    const LoadedTensor x(a, t), y(b, t);
    if (x.memory == y.memory) continue;
    ++differing;
    const double relative = difference(x, y);
    largest = std::max(largest, relative);
    if (relative > rtol || rtol == 0) report(t.name, concat("relative RMS difference ", relative));
  }
  for (const std::string& name : only_b) report(name, "only in the second");
  std::printf("%zu tensors compared, %lld not bit-equal, largest relative RMS difference %.3g, %lld beyond the bound\n",
              a.tensors().size(), static_cast<long long>(differing), largest, static_cast<long long>(beyond));
  return beyond == 0 ? 0 : 1;
}

}  // namespace

void add_ckpt_command(CLI::App& app, Action& action) {
  struct Options {
    std::string a, b;
    double rtol = 0;
  };
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("ckpt", "Show, check and compare checkpoints");
  command->require_subcommand(1);
  const std::string what = "checkpoint folder, or run folder (its newest checkpoint)";

  CLI::App* inspect_command = command->add_subcommand("inspect", "Step, layout, size and build of a checkpoint");
  inspect_command->add_option("checkpoint", options->a, what)->required();
  inspect_command->callback([options, &action] { action = [options] { return inspect(options->a); }; });

  CLI::App* verify_command = command->add_subcommand("verify", "Check every digest and that every number is finite");
  verify_command->add_option("checkpoint", options->a, what)->required();
  verify_command->callback([options, &action] { action = [options] { return verify(options->a); }; });

  CLI::App* diff_command =
      command->add_subcommand("diff", "Compare two checkpoints tensor by tensor; exit 1 if they differ");
  diff_command->add_option("a", options->a, what)->required();
  diff_command->add_option("b", options->b, what)->required();
  diff_command->add_option("--rtol", options->rtol, "relative RMS difference allowed per tensor; 0 = the same bits")
      ->check(CLI::NonNegativeNumber);
  diff_command->callback(
      [options, &action] { action = [options] { return diff(options->a, options->b, options->rtol); }; });
}

}  // namespace braid
