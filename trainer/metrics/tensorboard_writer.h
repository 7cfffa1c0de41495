#pragma once

#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#include "trainer/metrics/metrics_writer.h"

namespace braid {

// Event files that TensorBoard reads: a file per start of a run, <folder>/events.out.tfevents.<seconds>.<host>.<pid>,
// of records (length, masked CRC-32C of it, bytes, masked CRC-32C of them), each an Event message, written by hand.
// Source: TensorFlow's TFRecord format; event.proto and summary.proto of TensorBoard.
class TensorBoardWriter {
 public:
  // Steps after `last_step` in files of earlier starts are declared void, as TensorBoard does when a program restarts.
  // Errors: IoError.
  TensorBoardWriter(const std::string& folder, int64_t last_step);
  ~TensorBoardWriter();
  TensorBoardWriter(const TensorBoardWriter&) = delete;
  TensorBoardWriter& operator=(const TensorBoardWriter&) = delete;

  // Every field but "step", as a scalar of that step. What is not finite stays so. False if the file took no more.
  bool write(const MetricsLine& line);
  // Counts of items 0, 1, …; the buckets of the histogram are the items. False if the file took no more.
  bool write_histogram(int64_t step, const std::string& name, const std::vector<int64_t>& counts);

  const std::string& path() const { return path_; }

 private:
  bool write_event(int64_t step, const std::string& fields);
  std::string path_;
  std::FILE* file_ = nullptr;
};

}  // namespace braid
