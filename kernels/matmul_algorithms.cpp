#include "kernels/matmul_algorithms.h"

#include <cstdio>
#include <sstream>

#include "kernels/build_config.h"
#include "kernels/core/stream.h"

namespace braid {

namespace cuda {
decltype(braid::matmul_algorithm_counts) matmul_algorithm_counts;
decltype(braid::tune_matmul) tune_matmul;
}  // namespace cuda

namespace {

constexpr std::string_view kShipped =
#include "kernels/matmul_algorithms.inc"
    ;

constexpr std::string_view kHead =
    "# Which of cuBLASLt's algorithms computes a dense product, by GPU and version of the library: dtypes of factors "
    "and of c,\n"
    "# transposes of a and b, c = or += a b, M N K; milliseconds of what the library proposes first and of this one; "
    "the\n"
    "# algorithm. Made by `braid bench step CONFIG --tune FILE`.\n";
constexpr std::string_view kLibrary = "cuBLASLt ";

char letter(Transpose transpose) { return transpose == Transpose::kYes ? 't' : 'n'; }

// One line of a table.
class LineReader {
 public:
  LineReader(const std::string& line, const std::string& source, int64_t number)
      : words_(line), where_(concat(source, ":", number)) {}

  template <class T>
  T next(const char* what) {
    T value;
    check<ConfigError>(bool(words_ >> value), where_, ": ", what, " is missing");
    return value;
  }
  void expect(const char* word) {
    const auto found = next<std::string>(word);
    check<ConfigError>(found == word, where_, ": expected ", word, ", not ", found);
  }
  DType dtype() {
    const auto name = next<std::string>("a dtype");
    for (DType dtype : {DType::kBF16, DType::kF32})
      if (name == name_of(dtype)) return dtype;
    throw ConfigError(concat(where_, ": ", name, " is no dtype of a product"));
  }
  Transpose transpose(char found) {
    check<ConfigError>(found == 't' || found == 'n', where_, ": transposes are two letters of t and n");
    return found == 't' ? Transpose::kYes : Transpose::kNo;
  }
  Product product() {
    Product p;
    p.factors = dtype();
    p.out = dtype();
    const auto transposes = next<std::string>("transposes");
    check<ConfigError>(transposes.size() == 2, where_, ": transposes are two letters of t and n");
    p.transpose_a = transpose(transposes[0]);
    p.transpose_b = transpose(transposes[1]);
    const auto sign = next<std::string>("= or +=");
    check<ConfigError>(sign == "=" || sign == "+=", where_, ": expected = or +=, not ", sign);
    p.accumulate = sign == "=" ? Accumulate::kNo : Accumulate::kYes;
    p.M = next<int64_t>("M");
    p.N = next<int64_t>("N");
    p.K = next<int64_t>("K");
    return p;
  }
  StoredAlgorithm algorithm() {
    StoredAlgorithm a;
    expect(":");
    a.proposed_ms = next<double>("the time of what is proposed");
    a.ms = next<double>("the time of what is stored");
    expect("ms");
    expect(":");
    size_t count = 0;
    words_ >> std::hex;
    for (; words_ >> std::ws, !words_.eof(); ++count) {
      check<ConfigError>(count < a.words.size(), where_, ": more than ", a.words.size(), " words");
      a.words[count] = next<uint64_t>("a hexadecimal word");
    }
    check<ConfigError>(count > 0, where_, ": the algorithm is missing");
    return a;
  }

 private:
  Loud<std::istringstream> words_;
  std::string where_;
};

AlgorithmScope parse_scope(const std::string& line, const std::string& where) {
  const size_t comma = line.rfind(", ");
  check<ConfigError>(line.back() == ']' && comma != std::string::npos && line.find(kLibrary, comma) == comma + 2, where,
                     ": expected [DEVICE, ", kLibrary, "VERSION]");
  AlgorithmScope scope{line.substr(1, comma - 1), 0};
  Loud<std::istringstream> version(line.substr(comma + 2 + kLibrary.size()));
  check<ConfigError>(bool(version >> scope.library), where, ": the version is no number");
  return scope;
}

}  // namespace

std::string Product::name() const {
  return concat(name_of(factors), " ", name_of(out), " ", letter(transpose_a), letter(transpose_b),
                accumulate == Accumulate::kYes ? " += " : " = ", M, " ", N, " ", K);
}

std::string AlgorithmScope::name() const { return concat(device, ", ", kLibrary, library); }

const AlgorithmTable& AlgorithmTable::shipped() {
  static const AlgorithmTable table = parse(kShipped, "kernels/matmul_algorithms.txt");
  return table;
}

AlgorithmTable AlgorithmTable::parse(std::string_view text, const std::string& source) {
  AlgorithmTable table;
  std::map<Product, StoredAlgorithm>* entries = nullptr;
  Loud<std::istringstream> lines{std::string(text)};
  std::string line;
  for (int64_t number = 1; std::getline(lines, line); ++number) {
    if (line.empty() || line[0] == '#') continue;
    const std::string where = concat(source, ":", number);
    if (line[0] == '[') {
      entries = &table.scopes[parse_scope(line, where)];
      continue;
    }
    check<ConfigError>(entries != nullptr, where, ": a product before the first [DEVICE, ", kLibrary, "VERSION]");
    LineReader reader(line, source, number);
    const Product product = reader.product();
    check<ConfigError>(entries->emplace(product, reader.algorithm()).second, where, ": ", product.name(),
                       " stands twice");
  }
  return table;
}

std::string AlgorithmTable::text() const {
  std::string text(kHead);
  for (const auto& [scope, entries] : scopes) {
    text += concat("[", scope.name(), "]\n");
    for (const auto& [product, algorithm] : entries) {
      char part[64];
      std::snprintf(part, sizeof part, " : %.4f %.4f ms :", algorithm.proposed_ms, algorithm.ms);
      text += product.name() + part;
      size_t count = algorithm.words.size();
      while (count > 1 && algorithm.words[count - 1] == 0) --count;
      for (size_t i = 0; i < count; ++i) {
        std::snprintf(part, sizeof part, " %llx", static_cast<unsigned long long>(algorithm.words[i]));
        text += part;
      }
      text += "\n";
    }
  }
  return text;
}

AlgorithmCounts matmul_algorithm_counts(const Context& ctx) {
  if constexpr (kWithCuda) {
    if (ctx.on_cuda()) return cuda::matmul_algorithm_counts(ctx);
  }
  return {};
}

void tune_matmul(Context& ctx, AlgorithmTable& table, const std::function<void(const std::string& line)>& report) {
  if constexpr (kWithCuda) {
    if (ctx.on_cuda()) return cuda::tune_matmul(ctx, table, report);
  }
  throw EnvironmentError("algorithms of products are chosen on a GPU, and this is none");
}

}  // namespace braid
