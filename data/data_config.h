#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace braid {

struct SourceConfig {
  std::string name;                 // metric names use it: val/<name>/loss
  std::vector<std::string> shards;  // HDF5 token shards; files, or folders of *.h5
  std::vector<std::string> text;    // text files or folders, tokenized into the run folder before the first step
  double weight = 1;                // share of the samples, relative to the other sources
  std::string dataset;              // folder that `braid data tokenize` made

  template <class Visit>
  void visit(Visit&& key) {
    key("name", name, "name of the source; its held-out loss is reported as val/<name>/loss");
    key("dataset", dataset, "folder made by `braid data tokenize`, holding dataset.json");
    key("shards", shards, "HDF5 token shards instead: files, or folders of *.h5");
    key("text", text, "text files or folders instead; tokenized into <run.dir>/data first");
    key("weight", weight, "share of the training samples, relative to the other sources");
  }
};

struct DataConfig {
  std::vector<SourceConfig> sources;
  double validation_fraction = 0.05;
  int64_t prefetch_steps = 2;

  template <class Visit>
  void visit(Visit&& key) {
    key("sources", sources, "what to train on; a list");
    key("validation_fraction", validation_fraction,
        "share of the documents that is held out for evaluation, in [0, 1)");
    key("prefetch_steps", prefetch_steps, "steps that the reader thread may be ahead of training");
  }
};

}  // namespace braid
