#pragma once

#include <cstdint>
#include <set>
#include <string>
#include <vector>

namespace braid {

// Where tokens come from: one of dataset, shards and text.
struct TokenFiles {
  std::string name;                 // metric names use it: val/<name>/loss
  std::string dataset;              // folder that `braid data tokenize` made
  std::vector<std::string> shards;  // HDF5 token shards; files, or folders of *.h5
  std::vector<std::string> text;    // text files or folders, tokenized into the run folder before the first step

  template <class Visit>
  void visit(Visit&& key) {
    key("name", name, "name of the source; its held-out loss is reported as val/<name>/loss");
    key("dataset", dataset, "folder made by `braid data tokenize`, holding dataset.json");
    key("shards", shards, "HDF5 token shards instead: files, or folders of *.h5");
    key("text", text, "text files or folders instead; tokenized into <run.dir>/data first");
  }
};

struct WeightChange {
  int64_t from_step = 0;
  double weight = 0;

  template <class Visit>
  void visit(Visit&& key) {
    key("from_step", from_step, "first step with this weight");
    key("weight", weight, "share from there on; 0 = the source rests");
  }
};

struct SourceConfig : TokenFiles {
  double weight = 1;  // share of the samples, relative to the other sources
  std::vector<WeightChange> weight_changes;
  int64_t tokens = 0;  // the budget

  // Its share at a step, counted from 1: the budget, or the weight that holds there.
  double weight_at(int64_t step) const {
    if (tokens > 0) return static_cast<double>(tokens);
    double now = weight;
    for (const WeightChange& change : weight_changes)
      if (change.from_step <= step) now = change.weight;
    return now;
  }

  template <class Visit>
  void visit(Visit&& key) {
    TokenFiles::visit(key);
    key("weight", weight, "share of the training samples, relative to the other sources");
    key("weight_changes", weight_changes, "other weights from later steps on; a source goes on where it was");
    key("token_budget", tokens,
        "budget instead of a weight: tokens that the run takes from this source, train.seq_length for a sample; for "
        "all sources or none");
  }
};

// Samples of the run that no step trains on.
struct LeftOutConfig {
  int64_t after_step = 0, rows = 0;

  template <class Visit>
  void visit(Visit&& key) {
    key("after_step", after_step, "behind the samples of so many steps");
    key("rows", rows, "how many");
  }
};

struct DataConfig {
  std::vector<SourceConfig> sources;

  // The steps from which a weight holds, ascending from 1.
  std::set<int64_t> steps_of_weights() const {
    std::set<int64_t> steps = {1};
    for (const SourceConfig& source : sources)
      for (const WeightChange& change : source.weight_changes) steps.insert(change.from_step);
    return steps;
  }

  double validation_fraction = 0.05;
  std::vector<TokenFiles> validation_sets;
  int64_t prefetch_steps = 2;
  std::vector<LeftOutConfig> left_out;

  template <class Visit>
  void visit(Visit&& key) {
    key("sources", sources, "what to train on; a list");
    key("validation_fraction", validation_fraction,
        "share of the documents that is held out for evaluation, in [0, 1)");
    key("validation_sets", validation_sets, "more to evaluate on, whole; none of it may be part of a source");
    key("prefetch_steps", prefetch_steps, "steps that the reader thread may be ahead of training");
    key("left_out", left_out,
        "samples that no step trains on, in the order of after_step: what run.rewind_steps of another run left out, to "
        "train the same again");
  }
};

}  // namespace braid
