#include "trainer/device/device_memory.h"

#include <cstdio>
#include <sstream>

#include "kernels/core/file_text.h"
#include "kernels/core/stream.h"

namespace braid {

std::string gib_text(int64_t bytes) {
  char text[32];
  std::snprintf(text, sizeof text, "%.3f GiB", double(bytes) / double(int64_t{1} << 30));
  return text;
}

std::vector<MemoryEstimate::Row> MemoryEstimate::rows() const {
  std::vector<Row> rows;
  for (const Row& row :
       {Row{"weights", weights}, Row{"gradients", gradients}, Row{"optimizer state", optimizer},
        Row{"activations", activations}, Row{"scratch", scratch.value_or(0)}, Row{"rows of other ranks", windows},
        Row{"copy to save from", saving}, Row{"libraries", libraries}})
    if (row.bytes > 0) rows.push_back(row);
  return rows;
}

int64_t MemoryEstimate::total() const {
  int64_t sum = 0;
  for (const Row& row : rows()) sum += row.bytes;
  return sum;
}

void check_gpu_memory(const MemoryEstimate& needs, const GpuMemory& memory, const std::string& device) {
  if (needs.total() <= memory.free_bytes) return;
  std::string message = concat("not enough GPU memory: ", gib_text(needs.total()), " are needed and ",
                               gib_text(memory.free_bytes), " of ", gib_text(memory.total_bytes), " are free on this ",
                               device, "; braid plan CONFIG says which settings need less");
  for (const MemoryEstimate::Row& need : needs.rows()) {
    char row[96];
    std::snprintf(row, sizeof row, "\n  %-20s %14s", need.what, gib_text(need.bytes).c_str());
    message += row;
  }
  throw OutOfMemoryError(message);
}

void check_host_memory(const MemoryEstimate& needs, int64_t ranks_of_host) {
  if (needs.offloaded == 0) return;
  const int64_t available = available_host_bytes(), of_rank = needs.offloaded + needs.saving_on_host;
  check<OutOfMemoryError>(available == 0 || of_rank <= available / ranks_of_host, "memory.offload: ", gib_text(of_rank),
                          " of host memory, with what saves take, are needed for each of ", ranks_of_host,
                          ranks_of_host == 1 ? " rank" : " ranks", ", and ", gib_text(available),
                          " are free on this host; optimizer.moment_dtype=int8 needs less");
}

int64_t available_host_bytes() {
  Loud<std::istringstream> file(file_text("/proc/meminfo"));
  for (std::string name, unit; file >> name;) {
    int64_t kib = 0;
    if (name == "MemAvailable:" && file >> kib) return kib << 10;
    std::getline(file, unit);
  }
  return 0;
}

int64_t library_bytes(int num_groups) { return (1 + num_groups) * (int64_t{704} << 20); }

}  // namespace braid
