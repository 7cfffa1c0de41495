#include "kernels/core/batch.h"

#include <algorithm>
#include <iterator>

#include "kernels/core/error.h"

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
  sources.resize(num_rows);
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

namespace {

// body(row of the share, first token of its part in the whole batch)
template <class Body>
void for_each_part(const RowShare& share, int64_t num_rows, int64_t row_tokens, Body&& body) {
  const int64_t held = share.parts_held(), part_tokens = row_tokens / share.num_parts();
  for (int64_t row = 0; row < num_rows; ++row)
    for (int64_t slot = 0; slot < held; ++slot)
      body(row * held + slot, row * row_tokens + share.part(slot) * part_tokens);
}

Segments share_of(const Segments& whole, const RowShare& share) {
  const int64_t part_tokens = whole.row_tokens / share.num_parts();
  Segments s{whole.num_rows * share.parts_held(), part_tokens, {0}, {}};
  for_each_part(share, whole.num_rows, whole.row_tokens, [&](int64_t row, int64_t begin) {
    const int64_t end = begin + part_tokens;
    // The document of the part's first token, and on from there.
    auto next = std::upper_bound(whole.offsets.begin(), whole.offsets.end(), begin);
    s.tokens_before.push_back(begin - *std::prev(next));
    for (; *next < end; ++next) s.offsets.push_back(row * part_tokens + *next - begin);
    s.offsets.push_back((row + 1) * part_tokens);
    s.tokens_behind.push_back(*next - end);
    s.valid.insert(s.valid.end(), whole.valid.begin() + begin, whole.valid.begin() + end);
  });
  return s;
}

int64_t num_targets(const std::vector<int64_t>& targets) {
  return std::count_if(targets.begin(), targets.end(), [](int64_t target) { return target >= 0; });
}

}  // namespace

Batch share_of(const Batch& whole, const RowShare& share) {
  if (share.is_whole()) return whole;
  check<ShapeError>(whole.row_tokens % share.num_parts() == 0, "rows of ", whole.row_tokens,
                    " tokens cannot be cut into ", share.num_parts(), " equal parts");
  Batch batch;
  batch.segments = share_of(whole.segments, share);
  batch.mtp.segments = share_of(whole.mtp.segments, share);
  batch.num_rows = batch.segments.num_rows;
  batch.row_tokens = batch.segments.row_tokens;
  for_each_part(share, whole.num_rows, whole.row_tokens, [&](int64_t, int64_t begin) {
    auto take = [&](std::vector<int64_t>& to, const std::vector<int64_t>& from) {
      to.insert(to.end(), from.begin() + begin, from.begin() + begin + batch.row_tokens);
    };
    take(batch.tokens, whole.tokens);
    take(batch.targets, whole.targets);
    take(batch.mtp.tokens, whole.mtp.tokens);
    take(batch.mtp.targets, whole.mtp.targets);
    batch.sources.push_back(whole.sources[begin / whole.row_tokens]);
  });
  batch.counts = {batch.segments.num_valid(), num_targets(batch.targets), batch.mtp.segments.num_valid(),
                  num_targets(batch.mtp.targets)};
  return batch;
}

const Tensor view_of(const std::vector<int64_t>& values) {
  return Tensor::of(const_cast<int64_t*>(values.data()), {static_cast<int64_t>(values.size())});
}

}  // namespace braid
