#include "data/batch.h"

namespace braid {
namespace {

// visit(t) for each token whose next token lies in the same document and is valid like itself.
template <class Visit>
void visit_tokens_with_next(const Segments& s, Visit&& visit) {
  for (int64_t d = 0; d < s.num_documents(); ++d)
    for (int64_t t = s.begin(d); t + 1 < s.end(d); ++t)
      if (s.valid[t] && s.valid[t + 1]) visit(t);
}

}  // namespace

TokenCounts count_tokens(const Batch& batch) {
  TokenCounts counts;
  counts.tokens = batch.segments.num_valid();
  for (int64_t target : batch.targets) counts.lm_targets += target >= 0;
  visit_tokens_with_next(batch.segments, [&](int64_t t) {
    ++counts.mtp_tokens;
    counts.mtp_targets += batch.targets[t + 1] >= 0;
  });
  return counts;
}

MtpShift shift_for_mtp(const Batch& batch) {
  const int64_t N = batch.segments.num_tokens();
  MtpShift shift{std::vector<int64_t>(N, -1), std::vector<int64_t>(N, -1), batch.segments};
  shift.segments.valid.assign(N, 0);
  visit_tokens_with_next(batch.segments, [&](int64_t t) {
    shift.next_tokens[t] = batch.tokens[t + 1];
    shift.next_targets[t] = batch.targets[t + 1];
    shift.segments.valid[t] = 1;
  });
  return shift;
}

}  // namespace braid
