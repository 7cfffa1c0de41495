#include "trainer/bench/product_tuning.h"

#include <cstdio>
#include <filesystem>

#include "kernels/core/durable_file.h"
#include "kernels/core/file_text.h"
#include "kernels/matmul_algorithms.h"

namespace braid {

void tune_products(Context& ctx, const std::string& path) {
  AlgorithmTable table;
  if (std::filesystem::exists(path)) table = AlgorithmTable::parse(file_text(path), path);
  tune_matmul(ctx, table, [](const std::string& line) { std::fprintf(stderr, "%s\n", line.c_str()); });
  write_output(path, table.text());
}

}  // namespace braid
