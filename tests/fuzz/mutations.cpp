// Stands in for libFuzzer where there is none: changes the seeds in ways that are the same every time.
//   fuzz_NAME_mutations COUNT [DIR]    the files in DIR, and inputs made of them and the seeds; a crash or another
//   exception than ours
//                                      is a failure
//   fuzz_NAME_mutations --seeds DIR    writes the seeds as files, for libFuzzer
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>

#include "kernels/core/error.h"
#include "kernels/core/file_text.h"
#include "tests/fuzz/fuzz_target.h"

namespace braid::fuzz {
namespace {

class Mutator {
 public:
  explicit Mutator(const std::vector<std::string>& seeds) : seeds_(seeds) {}

  std::string next() {
    std::string bytes = seeds_[below(seeds_.size())];
    for (size_t changes = 1 + below(4); changes > 0; --changes) change(bytes);
    return bytes;
  }

 private:
  size_t below(size_t bound) { return bound == 0 ? 0 : random_() % bound; }

  void change(std::string& bytes) {
    const size_t at = below(bytes.size()), room = bytes.size() - at;
    if (bytes.empty()) return;
    switch (below(8)) {
      case 0: bytes[at] ^= static_cast<char>(1 << below(8)); break;
      case 1: bytes[at] = static_cast<char>(below(256)); break;
      case 2: {  // a number that is far out
        constexpr int64_t kNumbers[] = {0,         -1,        1,       INT32_MAX,       INT32_MIN,
                                        INT64_MAX, INT64_MIN, 1 << 16, int64_t{1} << 40};
        const int64_t number =
            below(2) ? kNumbers[below(std::size(kNumbers))] : static_cast<int64_t>(below(2 * bytes.size()));
        std::memcpy(&bytes[at], &number, std::min<size_t>(room, size_t{1} << below(4)));
        break;
      }
      case 3: bytes.resize(at); break;
      case 4: bytes.erase(at, 1 + below(std::min<size_t>(room, 40))); break;
      case 5: bytes.insert(at, bytes.substr(below(bytes.size()), 1 + below(40))); break;
      case 6: bytes.insert(at, std::string(1 + below(4), static_cast<char>(below(256)))); break;
      default: {
        const std::string& other = seeds_[below(seeds_.size())];
        const size_t from = below(other.size());
        bytes.replace(at, std::min<size_t>(room, 1 + below(100)), other.substr(from, 1 + below(100)));
      }
    }
  }

  const std::vector<std::string>& seeds_;
  std::mt19937_64 random_{1};
};

// Was it taken, or refused?
bool is_taken(const std::string& bytes) {
  try {
    take(bytes);
    return true;
  } catch (const Error&) {
    return false;
  }
}

// What libFuzzer has found, in the order of their names.
std::vector<std::string> files_in(const std::string& folder) {
  std::vector<std::string> paths, texts;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) paths.push_back(entry.path());
  std::sort(paths.begin(), paths.end());
  for (const std::string& path : paths) texts.push_back(file_text(path));
  return texts;
}

int run(int64_t count, const std::string& folder) {
  std::vector<std::string> all = seeds();
  for (const std::string& seed : all) take(seed);
  const std::vector<std::string> corpus = folder.empty() ? std::vector<std::string>() : files_in(folder);
  all.insert(all.end(), corpus.begin(), corpus.end());
  Mutator mutator(all);
  int64_t taken = 0;
  for (int64_t i = -std::ssize(corpus); i < count; ++i) {
    const std::string bytes = i < 0 ? corpus[corpus.size() + i] : mutator.next();
    try {
      taken += is_taken(bytes);
    } catch (const std::exception& e) {
      std::ofstream("fuzz-finding", std::ios::binary) << bytes;
      std::fprintf(stderr, "input %lld, written to fuzz-finding: %s\n", static_cast<long long>(i), e.what());
      return 1;
    }
  }
  std::printf("%lld inputs: %lld taken, %lld refused\n", static_cast<long long>(count + std::ssize(corpus)),
              static_cast<long long>(taken), static_cast<long long>(count + std::ssize(corpus) - taken));
  return 0;
}

}  // namespace
}  // namespace braid::fuzz

int main(int argc, char** argv) {
  if (argc == 3 && std::string(argv[1]) == "--seeds") {
    int number = 0;
    for (const std::string& seed : braid::fuzz::seeds())
      std::ofstream(std::string(argv[2]) + "/seed-" + std::to_string(number++), std::ios::binary) << seed;
    return 0;
  }
  return braid::fuzz::run(argc > 1 ? std::atoll(argv[1]) : 1000, argc > 2 ? argv[2] : "");
}
