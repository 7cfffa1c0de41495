#include "trainer/device/device_memory.h"

#include <algorithm>
#include <cstdio>

#include "kernels/lm_head_loss.h"

namespace braid {
namespace {

constexpr int64_t kMiB = int64_t{1} << 20, kGiB = int64_t{1} << 30;

std::string gib(int64_t bytes) {
  char text[32];
  std::snprintf(text, sizeof text, "%.3f GiB", double(bytes) / double(kGiB));
  return text;
}

}  // namespace

void check_gpu_memory(const std::vector<MemoryNeed>& needs, const GpuMemory& memory, const std::string& device) {
  int64_t total = 0;
  for (const MemoryNeed& need : needs) total += need.bytes;
  if (total <= memory.free_bytes) return;
  std::string message =
      concat("not enough GPU memory: ", gib(total), " are needed and ", gib(memory.free_bytes), " of ",
             gib(memory.total_bytes), " are free on this ", device,
             "; lower train.micro_batch_size or train.seq_length, or share the model between more ranks\n");
  for (const MemoryNeed& need : needs) {
    char row[96];
    std::snprintf(row, sizeof row, "  %-20s %14s\n", need.what.c_str(), gib(need.bytes).c_str());
    message += row;
  }
  message.pop_back();  // the last line's end
  throw OutOfMemoryError(message);
}

int64_t scratch_bound_bytes(const RunConfig& config, int64_t R) {
  const ModelConfig& m = config.model;
  const DType dtype = dtype_of_precision(config.precision);
  const int64_t s = size_of(dtype), w = size_of(wide_dtype(dtype));
  const int64_t T = config.train.seq_length, N = config.train.micro_batch_size * T, C = m.hidden_size;
  const int64_t E = m.num_experts, K = m.num_experts_per_tok, F = m.moe_intermediate_size;
  const int64_t Fs = m.shared_expert_intermediate_size;

  // Gradients of the residual stream; the MTP block holds its own and those of its joined input.
  const int64_t stream = (config.mtp.on() ? 7 : 3) * N * C * s;

  // Backward of the experts and of the exchange, then of the router and the shared expert.
  const int64_t EP = config.parallel.expert;
  const int64_t exchange = EP > 1 ? (std::min(EP, K) + EP) * N * C * s : 0;  // copies of tokens sent and received
  const int64_t experts = 3 * R * F * s + R * (F / 128 + 1) * w;
  const int64_t shared = N * E * s + 3 * N * Fs * s;
  const int64_t moe = 2 * R * C * s + (R + N * K) * w + std::max({exchange, experts, shared});

  // Gradients of projections and inputs, and what the delta rule keeps between its kernels.
  const GdnDims g = m.gdn();
  const int64_t keys = g.key_heads * g.key_dim, values = g.value_heads * g.value_dim;
  const int64_t states = (N / Segments::kChunkTokens + 1) * g.value_heads * g.key_dim * g.value_dim;
  const int64_t rule = N * g.value_heads * (2 * Segments::kChunkTokens * s + w) + 2 * N * values * s + 2 * states * s;
  const int64_t convolution = N * g.conv_channels() * w;
  const int64_t delta_net = 2 * N * values * s + N * (g.qkvz_columns() + g.ba_columns()) * s +
                            N * (2 * keys + values) * s + 2 * N * g.value_heads * w + std::max(rule, convolution);

  // Gradients of projections and inputs, and cuDNN's workspace: a matrix of T x T per head that is worked on.
  const AttentionDims a = m.attention();
  const int64_t matrices = 2 * T * T * a.query_heads;
  const int64_t workspace = std::max(std::min(config.train.micro_batch_size * matrices, kGiB), matrices / a.kv_heads);
  const int64_t attention = N * a.head_dim * (5 * a.query_heads + 3 * a.kv_heads) * s + 2 * N * a.query_heads * w +
                            (dtype == DType::kBF16 ? workspace : 0);

  // A chunk of logits.
  const int64_t logits = std::min(N, kLmHeadMostTokens) * m.vocab_size * s + N * 8;

  const int64_t most = stream + std::max({moe, delta_net, attention, logits});
  return most + most / 16 + 64 * kMiB;  // sums of tiles, sorts, alignment
}

int64_t library_bytes(int num_ranks) { return num_ranks > 1 ? 1536 * kMiB : 512 * kMiB; }

}  // namespace braid
