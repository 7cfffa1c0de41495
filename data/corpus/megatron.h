#pragma once

#include <string>

#include "data/corpus/dataset_manifest.h"

namespace braid {

// Writes a dataset, or shards (open_whole_dataset), as Megatron-LM's NAME.bin and NAME.idx, either of which `to` names:
// a sequence and a document for each document, with its end-of-document id; u16 below 65,500 ids, as Megatron chooses,
// else i32. The index appears last.   Returns what `from` holds.
// Errors: DataError, also for damaged input and for an id or a document that i32
// cannot hold; IoError, also if a file is there.
DatasetManifest write_megatron(const std::string& from, const std::string& to);

}  // namespace braid
