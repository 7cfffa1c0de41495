#include "kernels/core/nearest_words.h"

#include <algorithm>

namespace braid {
namespace {

std::vector<std::string> parts_of(const std::string& word) {
  std::vector<std::string> parts(1);
  for (const char c : word) {
    if (c != '_' && c != '-') parts.back() += c;
    else if (!parts.back().empty()) parts.emplace_back();
  }
  if (parts.back().empty()) parts.pop_back();
  return parts;
}

// Does every part of `word` begin a part of `candidate`?
bool says_more(const std::string& candidate, const std::string& word) {
  const std::vector<std::string> wanted = parts_of(word), there = parts_of(candidate);
  return std::all_of(wanted.begin(), wanted.end(), [&](const std::string& w) {
    return std::any_of(there.begin(), there.end(), [&](const std::string& t) { return t.starts_with(w); });
  });
}

}  // namespace

size_t edit_distance(const std::string& a, const std::string& b) {
  std::vector<std::vector<size_t>> d(a.size() + 1, std::vector<size_t>(b.size() + 1));
  for (size_t i = 0; i <= a.size(); ++i) {
    for (size_t j = 0; j <= b.size(); ++j) {
      if (i == 0 || j == 0) {
        d[i][j] = i + j;
        continue;
      }
      d[i][j] = std::min({d[i - 1][j] + 1, d[i][j - 1] + 1, d[i - 1][j - 1] + (a[i - 1] != b[j - 1])});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
        d[i][j] = std::min(d[i][j], d[i - 2][j - 2] + 1);
    }
  }
  return d[a.size()][b.size()];
}

std::vector<std::string> nearest_words(const std::string& word, const std::vector<std::string>& candidates) {
  constexpr size_t kLongestWord = 64, kMostTies = 3, kShortestPart = 4;
  std::vector<std::string> nearest;
  if (word.size() > kLongestWord) return nearest;
  size_t smallest = std::max<size_t>(1, word.size() / 3);
  for (const std::string& candidate : candidates) {
    const size_t distance = edit_distance(word, candidate);
    if (distance > smallest) continue;
    if (distance < smallest) nearest.clear();
    smallest = distance;
    nearest.push_back(candidate);
  }
  if (nearest.empty() && word.size() >= kShortestPart)
    for (const std::string& candidate : candidates)
      if (says_more(candidate, word)) nearest.push_back(candidate);
  if (nearest.size() > kMostTies) nearest.resize(kMostTies);
  return nearest;
}

std::string joined(const std::vector<std::string>& words, const char* separator) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : separator) + word;
  return text;
}

}  // namespace braid
