#include "kernels/core/batch.h"

namespace braid {

TokenCounts& TokenCounts::operator+=(const TokenCounts& other) {
  tokens += other.tokens;
  lm_targets += other.lm_targets;
  mtp_tokens += other.mtp_tokens;
  mtp_targets += other.mtp_targets;
  return *this;
}

void Batch::complete() {
  const int64_t N = segments.num_tokens();
  counts = {};
  counts.tokens = segments.num_valid();
  for (int64_t target : targets) counts.lm_targets += target >= 0;

  mtp = {std::vector<int64_t>(N, -1), std::vector<int64_t>(N, -1), segments};
  mtp.segments.valid.assign(N, 0);
  for (int64_t d = 0; d < segments.num_documents(); ++d) {
    for (int64_t t = segments.begin(d); t + 1 < segments.end(d); ++t) {
      if (!segments.valid[t] || !segments.valid[t + 1]) continue;
      mtp.tokens[t] = tokens[t + 1];
      mtp.targets[t] = targets[t + 1];
      mtp.segments.valid[t] = 1;
      counts.mtp_tokens += 1;
      counts.mtp_targets += targets[t + 1] >= 0;
    }
  }
}

const Tensor view_of(const std::vector<int64_t>& values) {
  return Tensor::of(const_cast<int64_t*>(values.data()), {static_cast<int64_t>(values.size())});
}

}  // namespace braid
