#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace braid {

// One input of `braid data tokenize`: a file of JSON lines, one document a line, or a text that is one document.
struct TextInput {
  std::string path;  // "-": standard input, JSON lines
  bool is_json_lines = false;
  int64_t bytes = 0;                                                          // on the disk, 0 for standard input
  std::string name() const { return path == "-" ? "standard input" : path; }  // in messages
};

struct InputList {
  std::vector<TextInput> files;       // in the order named, those of a folder sorted by path; each file once
  int64_t met_again = 0;              // files left out because a link or a second name led to them once more
  std::vector<std::string> no_files;  // what else folders hold, with the reason: broken links, pipes, devices
};

// Folders are replaced by all files below them that end in `suffix`, linked folders followed. Files that end in .jsonl,
// .ndjson or .json (with .gz or .zst behind it) are JSON lines, all others texts.
// Errors: DataError naming a path that does not exist or cannot be listed, or a folder without such files.
InputList list_inputs(const std::vector<std::string>& paths, const std::string& suffix = "");

// Errors: DataError naming the first of no_files.
std::vector<std::string> paths_of(const InputList& inputs);

// What is made is no part of what it is made from.   Errors: DataError if `out` is to lie in a folder of `inputs`.
void check_outside(const std::string& out, const std::vector<std::string>& inputs);

// The bytes of a file from front to back, decompressed if it begins as gzip or zstd files do.
class ByteSource {
 public:
  explicit ByteSource(const std::string& path);  // "-": standard input
  ~ByteSource();
  ByteSource(const ByteSource&) = delete;
  ByteSource& operator=(const ByteSource&) = delete;

  // Appends up to `bytes`; false at the end.   Errors: DataError naming the file: unreadable, damaged, cut short.
  bool read(std::string& out, size_t bytes);
  int64_t bytes_taken() const;  // of the file itself, for progress

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// The text of a line of JSON; nothing, and `why` not, if it has none. What is not UTF-8 is repaired and counted.
std::optional<std::string> text_of_line(std::string_view line, const std::string& key, int64_t& repaired,
                                        std::string& why);

// Calls text(std::string_view) for one document after the other, unreadable(std::string) with place and reason for each
// that is none.   Errors: DataError.
void for_each_text(const InputList& inputs, const std::string& key, const std::function<void(std::string_view)>& text,
                   const std::function<void(const std::string&)>& unreadable);

// Why bytes are not text: "holds a NUL byte at 7, …", "is UTF-16, …", "is a gzip file, …", "is a Parquet file, …";
// empty if they may be.
std::string why_not_text(std::string_view bytes);

}  // namespace braid
