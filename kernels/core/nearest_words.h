#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace braid {

// Insertions, deletions, replacements and swaps of neighbours that turn a into b.
size_t edit_distance(const std::string& a, const std::string& b);

// Words that are near enough to `word` to be what was meant: none, one, or up to three alike, in their order. Where
// spelling finds none, those of which it says a part: global_batch of global_batch_size.
std::vector<std::string> nearest_words(const std::string& word, const std::vector<std::string>& candidates);

// "a", "b" -> "a<separator>b"
std::string joined(const std::vector<std::string>& words, const char* separator);

}  // namespace braid
