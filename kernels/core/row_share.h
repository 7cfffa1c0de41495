#pragma once

#include <cstdint>

namespace braid {

// One of `count` equal shares of every row. A row is cut into 2 count equal parts, and share i holds the parts i and
// 2 count - 1 - i: attention's work grows along the row, and so every share has as much of it.
//   count 1: | 0 |      count 2: | 0 | 1 | 1 | 0 |      count 4: | 0 | 1 | 2 | 3 | 3 | 2 | 1 | 0 |
// In a batch of shares, the parts of a row that a share holds are rows of their own, one after the other.
struct RowShare {
  int64_t count = 1, index = 0;

  bool is_whole() const { return count == 1; }
  int64_t num_parts() const { return is_whole() ? 1 : 2 * count; }  // of a row
  int64_t parts_held() const { return is_whole() ? 1 : 2; }         // of them, by each share
  int64_t part(int64_t slot) const { return slot == 0 ? index : num_parts() - 1 - index; }
  int64_t holder(int64_t part) const { return part < count ? part : num_parts() - 1 - part; }
  int64_t slot(int64_t part) const { return part < count ? 0 : 1; }
};

}  // namespace braid
