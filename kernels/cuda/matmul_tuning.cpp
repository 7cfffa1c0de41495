#include <algorithm>
#include <cstdio>
#include <cstring>
#include <numeric>
#include <set>

#include "kernels/core/copy.h"
#include "kernels/core/memory.h"
#include "kernels/core/turn_times.h"
#include "kernels/cuda/matmul_library.h"
#include "kernels/random.h"

// The fastest of cuBLASLt's algorithms for each product. Its heuristics propose at most 8, and the fastest is often one
// that they propose for another product, so those of all products are tried for each.
namespace braid::cuda {

decltype(braid::tune_matmul) tune_matmul;

namespace {

// Sums of partial results in an order that does not depend on timing, in fp32: bits stay the same from run to run.
constexpr uint32_t kReductions = CUBLASLT_REDUCTION_SCHEME_NONE | CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;

constexpr int kMostProposed = 64;

// Candidates go through these stages. A turn repeats the product for so long; the GPU's clock follows its power limit
// and temperature, so in every round all candidates get a turn, each time another one first, and what counts is the
// median over the rounds of the time as a part of that of the library's first choice.
struct Stage {
  int rounds;
  double turn_ms;
  size_t kept;  // and the library's first choice
};
constexpr Stage kStages[] = {{3, 1, 12}, {3, 5, 5}, {7, 20, 5}};

// Sums in another order, then rounded to the dtype of the output.
constexpr double kDifference32 = 1e-4, kDifference16 = 6e-3;

using Algorithm = cublasLtMatmulAlgo_t;

template <class T>
T attribute(const Algorithm& algorithm, cublasLtMatmulAlgoConfigAttributes_t name) {
  T value = 0;
  size_t written = 0;
  check_cublas(cublasLtMatmulAlgoConfigGetAttribute(&algorithm, name, &value, sizeof value, &written),
               "cublasLtMatmulAlgoConfigGet");
  return value;
}
template <class T>
bool set(Algorithm& algorithm, cublasLtMatmulAlgoConfigAttributes_t name, T value) {
  return cublasLtMatmulAlgoConfigSetAttribute(&algorithm, name, &value, sizeof value) == CUBLAS_STATUS_SUCCESS;
}

// What tells algorithms apart.
struct Config {
  int id = 0, split_k = 1;
  uint32_t tile = 0, stages = 0, reduction = 0, swizzle = 0, schedule = 0;
  uint16_t inner_shape = 0, cluster = 0;

  static Config of(const Algorithm& a) {
    return {attribute<int>(a, CUBLASLT_ALGO_CONFIG_ID),
            attribute<int>(a, CUBLASLT_ALGO_CONFIG_SPLITK_NUM),
            attribute<uint32_t>(a, CUBLASLT_ALGO_CONFIG_TILE_ID),
            attribute<uint32_t>(a, CUBLASLT_ALGO_CONFIG_STAGES_ID),
            attribute<uint32_t>(a, CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME),
            attribute<uint32_t>(a, CUBLASLT_ALGO_CONFIG_CTA_SWIZZLING),
            attribute<uint32_t>(a, CUBLASLT_ALGO_CONFIG_CUSTOM_OPTION),
            attribute<uint16_t>(a, CUBLASLT_ALGO_CONFIG_INNER_SHAPE_ID),
            attribute<uint16_t>(a, CUBLASLT_ALGO_CONFIG_CLUSTER_SHAPE_ID)};
  }
  // False where the library has no such algorithm for the product.
  bool make(const Gpu& gpu, const ProductCall& call, Algorithm& a) const {
    return call.init(gpu, id, a) && set(a, CUBLASLT_ALGO_CONFIG_SPLITK_NUM, split_k) &&
           set(a, CUBLASLT_ALGO_CONFIG_TILE_ID, tile) && set(a, CUBLASLT_ALGO_CONFIG_STAGES_ID, stages) &&
           set(a, CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME, reduction) &&
           set(a, CUBLASLT_ALGO_CONFIG_CTA_SWIZZLING, swizzle) &&
           set(a, CUBLASLT_ALGO_CONFIG_CUSTOM_OPTION, schedule) &&
           set(a, CUBLASLT_ALGO_CONFIG_INNER_SHAPE_ID, inner_shape) &&
           set(a, CUBLASLT_ALGO_CONFIG_CLUSTER_SHAPE_ID, cluster) && call.allows(gpu, a);
  }
  auto operator<=>(const Config&) const = default;
};

std::vector<Algorithm> proposals(const Gpu& gpu, const ProductCall& call) {
  return call.proposed(gpu, kMostProposed, kTableAlignment, kTableAlignment, kTableAlignment, kReductions);
}

class Tuning {
 public:
  Tuning(Context& ctx, const Product& product)
      : ctx_(ctx),
        gpu_(ctx.gpu()),
        product_(product),
        call_(product),
        head_start_(empty({int64_t{1} << 28}, DType::kU8)) {
    const bool a_turned = product.transpose_a == Transpose::kYes, b_turned = product.transpose_b == Transpose::kYes;
    a_ = normal(a_turned ? Shape{product.K, product.M} : Shape{product.M, product.K}, product.factors, 1);
    b_ = normal(b_turned ? Shape{product.N, product.K} : Shape{product.K, product.N}, product.factors, 2);
    c_ = empty({product.M, product.N}, product.out);
    other_c_ = empty(c_.shape(), product.out);
  }

  // The library's first choice is always among the candidates, and is the first one.
  StoredAlgorithm best(const std::set<Config>& pool) {
    std::vector<Candidate> candidates;
    std::set<Config> known;
    auto add = [&](const Algorithm& algorithm) {
      if (known.insert(Config::of(algorithm)).second) candidates.push_back({algorithm});
    };
    add(call_.proposed(gpu_, 1, 256, 256, 256, CUBLASLT_REDUCTION_SCHEME_MASK).front());
    for (const Algorithm& algorithm : proposals(gpu_, call_))
      if (call_.allows(gpu_, algorithm)) add(algorithm);
    for (const Config& config : pool) {
      Algorithm algorithm;
      if (!known.contains(config) && config.make(gpu_, call_, algorithm)) add(algorithm);
    }
    for (Candidate& candidate : candidates) candidate.ms = turn_ms(candidate.algorithm, 1);
    for (const Stage& stage : kStages) {
      measure(candidates, stage);
      std::stable_sort(candidates.begin() + 1, candidates.end(), faster);
      candidates.resize(std::min(candidates.size(), stage.kept + 1));
    }
    const Candidate first = candidates[0];
    std::stable_sort(candidates.begin(), candidates.end(), faster);
    for (const Candidate& candidate : candidates) {
      if (!is_right(candidate.algorithm, first.algorithm)) continue;
      StoredAlgorithm result{{}, candidate.part * first.ms, first.ms};
      std::memcpy(result.words.data(), candidate.algorithm.data, sizeof candidate.algorithm.data);
      return result;
    }
    throw EnvironmentError(concat("no algorithm gives the same result twice for the product ", product_.name()));
  }

 private:
  struct Candidate {
    Algorithm algorithm;
    double ms = 0, part = 1;  // of the time of the library's first choice
  };
  static bool faster(const Candidate& x, const Candidate& y) { return x.part < y.part; }

  Tensor empty(Shape shape, DType dtype) {
    const int64_t bytes = shape.numel() * size_of(dtype);
    memory_.push_back(allocate_memory(Device::kCuda, bytes));
    check<OutOfMemoryError>(memory_.back() != nullptr, "no GPU memory for the factors of the product ",
                            product_.name());
    return Tensor(memory_.back().get(), dtype, shape, Device::kCuda);
  }
  Tensor normal(Shape shape, DType dtype, uint64_t seed) {
    Tensor t = empty(shape, dtype);
    fill_normal(ctx_, t, 0, 1, seed, 0, 0);
    return t;
  }

  void run(const Algorithm& algorithm, Tensor& c) {
    if (product_.accumulate == Accumulate::kYes) fill_normal(ctx_, c, 0, 1, 3, 0, 0);
    call_.run(gpu_, c.raw(), a_.raw(), b_.raw(), algorithm);
  }

  // Milliseconds of one product, in a row of so many.
  double turn_ms(const Algorithm& algorithm, int turns) {
    const std::vector<double> times = turn_times_ms(ctx_, turns, Launch::kDirect, head_start_, [&](int) {
      call_.run(gpu_, c_.raw(), a_.raw(), b_.raw(), algorithm);
    });
    return std::accumulate(times.begin(), times.end(), 0.0) / turns;
  }

  static double median(std::vector<double> values) {
    std::nth_element(values.begin(), values.begin() + std::ssize(values) / 2, values.end());
    return values[values.size() / 2];
  }

  void measure(std::vector<Candidate>& candidates, const Stage& stage) {
    const size_t count = candidates.size();
    std::vector<std::vector<double>> ms(count), parts(count);
    for (int round = 0; round < stage.rounds; ++round) {
      for (size_t i = 0; i < count; ++i) {
        const size_t turn = (i + static_cast<size_t>(round) * count / static_cast<size_t>(stage.rounds)) % count;
        const int turns = std::max(1, static_cast<int>(stage.turn_ms / candidates[turn].ms));
        ms[turn].push_back(turn_ms(candidates[turn].algorithm, turns));
      }
      for (size_t i = 0; i < count; ++i) parts[i].push_back(ms[i].back() / ms[0].back());
    }
    for (size_t i = 0; i < count; ++i) {
      candidates[i].ms = median(ms[i]);
      candidates[i].part = median(parts[i]);
    }
  }

  bool is_right(const Algorithm& algorithm, const Algorithm& first) {
    run(first, other_c_);
    run(algorithm, c_);
    const ProductDifference to_first = difference_of_products(ctx_, other_c_, c_);
    const double most = product_.out == DType::kBF16 ? kDifference16 : kDifference32;
    if (!(to_first.difference <= most * most * to_first.square)) return false;  // nor NaN
    for (int again = 0; again < 3; ++again) {
      run(algorithm, other_c_);
      if (difference_of_products(ctx_, c_, other_c_).others != 0) return false;
    }
    return true;
  }

  Context& ctx_;
  const Gpu& gpu_;
  Product product_;
  ProductCall call_;
  std::vector<std::shared_ptr<std::byte>> memory_;
  Tensor head_start_, a_, b_, c_, other_c_;
};

// What the library proposes for any of these products without splitting K.
std::set<Config> pool_of(const Gpu& gpu, const std::vector<Product>& products) {
  std::set<Config> pool;
  for (const Product& product : products) {
    const ProductCall call(product);
    for (const Algorithm& algorithm : proposals(gpu, call)) {
      const Config config = Config::of(algorithm);
      if (config.split_k <= 1) pool.insert(config);
    }
  }
  return pool;
}

}  // namespace

void tune_matmul(Context& ctx, AlgorithmTable& table, const std::function<void(const std::string& line)>& report) {
  MatmulAlgorithms& algorithms = matmul_algorithms(ctx);
  const std::vector<Product> products = algorithms.products();
  const std::set<Config> pool = pool_of(ctx.gpu(), products);
  std::map<Product, StoredAlgorithm>& entries = table.scopes[algorithms.scope()];
  for (const Product& product : products) {
    auto entry = entries.find(product);
    if (entry == entries.end()) {
      entry = entries.emplace(product, Tuning(ctx, product).best(pool)).first;
      const StoredAlgorithm& best = entry->second;
      char line[160];
      std::snprintf(line, sizeof line, "%-40s %9.4f -> %9.4f ms, %6.1f TFLOP/s", product.name().c_str(),
                    best.proposed_ms, best.ms, product.flop() / best.ms * 1e-9);
      report(line);
    }
    Algorithm algorithm;
    std::memcpy(algorithm.data, entry->second.words.data(), sizeof algorithm.data);
    if (ProductCall(product).allows(ctx.gpu(), algorithm)) algorithms.take(product, algorithm);
  }
}

}  // namespace braid::cuda
