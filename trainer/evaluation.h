#pragma once

#include <functional>
#include <vector>

#include "data/token_dataset.h"
#include "model/model.h"
#include "parallel/process_mesh.h"
#include "trainer/metrics/metrics_writer.h"

namespace braid {

struct Evaluation {
  std::string name;            // of the source
  double loss = 0;             // mean cross entropy of the next token, nats
  double unigram_entropy = 0;  // of the same targets: what the best model without context reaches
  int64_t targets = 0;
  bool complete = true;  // false: it was left early, and the rest is not set
};

// Held-out loss over the first `sequences` rows (0 = all) of the dataset, shared between the ranks in micro-batches of
// the model's shape. Every rank calls it and gets the same values.   A dataset without rows gives targets = 0.
// `progress` is called with the number of rows that are done, over all ranks, after every micro-batch; `leave` before
// every one: the same answer on every rank, and true ends the evaluation there.
Evaluation evaluate(Context& ctx, Model& model, const ProcessMesh& mesh, const TokenDataset& dataset,
                    int64_t micro_batch_size, int64_t sequences,
                    const std::function<void(int64_t rows, int64_t all_rows)>& progress = {},
                    const std::function<bool()>& leave = {});

// {"step": …, "val/<set>/loss": …, "val/<set>/ppl": …}
MetricsLine validation_line(int64_t step, const std::vector<Evaluation>& evaluations);

}  // namespace braid
