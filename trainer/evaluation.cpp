#include "trainer/evaluation.h"

#include <algorithm>
#include <cmath>

namespace braid {
namespace {

// A row of padding: nothing valid, nothing to predict. Keeps every rank in step when rows run out.
void append_empty_row(Batch& batch, int64_t row_tokens) {
  batch.num_rows += 1;
  batch.row_tokens = row_tokens;
  batch.tokens.insert(batch.tokens.end(), row_tokens, 0);
  batch.targets.insert(batch.targets.end(), row_tokens, -1);
  Segments& s = batch.segments;
  s.num_rows += 1;
  s.row_tokens = row_tokens;
  if (s.offsets.empty()) s.offsets.push_back(0);
  s.offsets.push_back(s.offsets.back() + row_tokens);
  s.valid.insert(s.valid.end(), row_tokens, 0);
}

double entropy(const std::vector<int64_t>& histogram, int64_t total) {
  double sum = 0;
  for (int64_t count : histogram)
    if (count > 0) sum -= double(count) / double(total) * std::log(double(count) / double(total));
  return sum;
}

}  // namespace

Evaluation evaluate(Context& ctx, Model& model, const ProcessMesh& mesh, const TokenDataset& dataset,
                    int64_t micro_batch_size, int64_t sequences,
                    const std::function<void(int64_t rows, int64_t all_rows)>& progress,
                    const std::function<bool()>& leave) {
  Evaluation result;
  result.name = dataset.name();
  const int64_t rows = sequences > 0 ? std::min(sequences, dataset.size()) : dataset.size();
  const RowShare share = mesh.share();
  const int64_t row_tokens = model.num_tokens() * share.count / micro_batch_size;
  const int64_t stride = micro_batch_size * mesh.num_data_ranks(), own = micro_batch_size * mesh.data_rank();
  double loss_sum = 0;
  std::vector<int64_t> histogram(model.config().vocab_size, 0);
  for (int64_t first = own; first - own < rows; first += stride) {
    if (leave && leave()) {
      result.complete = false;
      return result;
    }
    Batch batch;
    for (int64_t row = first; row < first + micro_batch_size; ++row) {
      if (row < rows) dataset.append_row(row, batch);
      else append_empty_row(batch, row_tokens);
    }
    batch.complete();
    if (!share.is_whole()) batch = share_of(batch, share);
    model.forward(ctx, batch);
    loss_sum += model.losses(ctx).lm;
    for (int64_t target : batch.targets)
      if (target >= 0) ++histogram[target];
    if (progress) progress(std::min(rows, first - own + stride), rows);
  }
  mesh.world().all_reduce(ctx, Tensor::of(&loss_sum, {1}), ReduceOp::kSum);
  mesh.world().all_reduce(ctx, Tensor::of(histogram.data(), {static_cast<int64_t>(histogram.size())}), ReduceOp::kSum);

  for (int64_t count : histogram) result.targets += count;
  if (result.targets > 0) {
    result.loss = loss_sum / double(result.targets);
    result.unigram_entropy = entropy(histogram, result.targets);
  }
  return result;
}

MetricsLine validation_line(int64_t step, const std::vector<Evaluation>& evaluations) {
  MetricsLine line;
  line.set("step", step);
  for (const Evaluation& e : evaluations) {
    if (e.targets == 0) continue;
    line.set("val/" + e.name + "/loss", e.loss);
    line.set("val/" + e.name + "/ppl", std::exp(e.loss));
  }
  return line;
}

}  // namespace braid
