#pragma once

#include <array>
#include <compare>
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <string_view>

#include "kernels/matmul.h"

// Which of a library's algorithms computes a dense product, chosen by measurement once and stored, so that every run of
// a program chooses alike.
namespace braid {

// A product as far as that choice goes: c (M, N) [+]= op(a) op(b), over K.
struct Product {
  DType factors = DType::kBF16, out = DType::kBF16;
  Transpose transpose_a = Transpose::kNo, transpose_b = Transpose::kNo;
  Accumulate accumulate = Accumulate::kNo;
  int64_t M = 0, N = 0, K = 0;

  double flop() const { return 2.0 * double(M) * double(N) * double(K); }
  std::string name() const;  // "BF16 F32 tn += 12288 2048 32768"
  auto operator<=>(const Product&) const = default;
};

// Products smaller than this, or of fp32, take what the library proposes.
inline bool is_worth_tuning(const Product& p) { return p.factors == DType::kBF16 && p.flop() >= 1e8; }

// What a library calls one of its algorithms, and the milliseconds it took where it was chosen, beside those of the
// library's own proposal.
struct StoredAlgorithm {
  std::array<uint64_t, 8> words = {};  // cublasLtMatmulAlgo_t, which is valid for one version of the library
  double ms = 0, proposed_ms = 0;
};

// A device by its name, and a version of the library.
struct AlgorithmScope {
  std::string device;
  int64_t library = 0;
  auto operator<=>(const AlgorithmScope&) const = default;
  std::string name() const;  // "NVIDIA H200, cuBLASLt 130100"
};

// As text, one line per product under a line for each scope:
//   [NVIDIA H200, cuBLASLt 130100]
//   BF16 F32 tn += 12288 2048 32768 : 2.4228 2.3347 ms : 42 18 23
struct AlgorithmTable {
  std::map<AlgorithmScope, std::map<Product, StoredAlgorithm>> scopes;

  // The one that this program was built with.
  static const AlgorithmTable& shipped();
  // Lines that are empty or begin with '#' say nothing. Errors: ConfigError naming `source` and the line.
  static AlgorithmTable parse(std::string_view text, const std::string& source);
  std::string text() const;
};

// Of the products worth tuning that a context has computed so far; none on a CPU.
struct AlgorithmCounts {
  int64_t stored = 0, proposed = 0;  // from the shipped table, or the first that the library proposes
};
AlgorithmCounts matmul_algorithm_counts(const Context& ctx);

// For each of these products that `table` does not hold yet, times the library's algorithms on random numbers, and puts
// in the fastest that computes the same and gives the same bits every time. Each is timed in turns of some 20 ms, so
// that the GPU's power limit shows as it does in training. This context takes the table's algorithms from now on.
// `report` gets a line for each product that was timed. Errors: EnvironmentError on a CPU; OutOfMemoryError.
void tune_matmul(Context& ctx, AlgorithmTable& table, const std::function<void(const std::string& line)>& report);

}  // namespace braid
