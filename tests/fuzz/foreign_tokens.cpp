// Files of other frameworks, but HDF5's, which libhdf5 reads in a process of its own: the first byte says which.
#include <cstring>
#include <stdexcept>

#include "data/corpus/foreign_tokens.h"
#include "kernels/core/error.h"
#include "tests/fuzz/fuzz_target.h"

namespace braid::fuzz {
namespace {

template <class T>
std::string raw(const std::vector<T>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
}

const std::string kBin = raw<uint16_t>({1, 2, 3, 9, 4, 9});

}  // namespace

std::vector<std::string> seeds() {
  const std::string index = std::string("MMIDIDX\0\0", 9) + raw<uint64_t>({1}) + '\x08' + raw<int64_t>({3, 3}) +
                            raw<int32_t>({2, 2, 2}) + raw<int64_t>({0, 4, 8}) + raw<int64_t>({0, 2, 3});
  std::vector<int32_t> header(256);
  header[0] = 20240520, header[1] = 1, header[2] = 6;
  std::string dictionary = "{'descr': '<u2', 'fortran_order': False, 'shape': (6,), }";
  dictionary.resize(117, ' ');
  return {concat('i', index), concat('d', raw<int64_t>({3, 3, 6})), concat('m', raw(header), kBin),
          concat('m', std::string("\x93NUMPY\x01\0", 8), raw<uint16_t>({118}), dictionary, '\n', kBin)};
}

void take(std::string_view bytes) {
  const char kind = bytes.empty() ? 'm' : bytes[0];
  const std::string_view rest = bytes.substr(bytes.empty() ? 0 : 1);
  if (rest.starts_with("\x89HDF")) return;
  std::string path;
  if (kind == 'i') as_file("tokens.bin", kBin), path = as_file("tokens.idx", rest);
  else if (kind == 'd') path = as_file("tokens.ds", kBin), as_file("tokens.ds.index", rest);
  else path = as_file("tokens.dat", rest);
  const ForeignTokens tokens = open_foreign_tokens(path, "u16");
  if (tokens.count < 0 || tokens.count > static_cast<int64_t>(bytes.size()) + 100)
    throw std::logic_error("more tokens than the file can hold");
  std::vector<uint32_t> ids;
  tokens.read(0, tokens.count, ids);
  for (size_t d = 0; d < tokens.offsets.size(); ++d)
    if (tokens.offsets[d] < (d == 0 ? 0 : tokens.offsets[d - 1]) || tokens.offsets[d] > tokens.count)
      throw std::logic_error("offsets outside the tokens");
}

}  // namespace braid::fuzz
