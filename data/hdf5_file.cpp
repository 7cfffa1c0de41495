#include "data/hdf5_file.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cctype>
#include <cstring>
#include <optional>
#include <span>

#include "kernels/core/error.h"

namespace braid {
namespace {

static_assert(std::endian::native == std::endian::little, "numbers of the file are copied as they are");

constexpr uint64_t kUndefined = ~uint64_t{0};  // address of what does not exist
constexpr uint64_t kMaxBlockBytes = 1 << 20;   // of metadata read at once; a shard needs a few hundred
constexpr size_t kMaxHeaderBlocks = 64;        // ends headers that continue in themselves
constexpr std::array<uint8_t, 8> kFileSignature = {0x89, 'H', 'D', 'F', '\r', '\n', 0x1a, '\n'};

enum MessageKind : int {
  kNil = 0x00,
  kDataspace = 0x01,
  kLinkInfo = 0x02,
  kDatatype = 0x03,
  kOldFillValue = 0x04,
  kFillValue = 0x05,
  kLink = 0x06,
  kExternalFiles = 0x07,
  kDataLayout = 0x08,
  kGroupInfo = 0x0A,
  kFilters = 0x0B,
  kAttribute = 0x0C,
  kOldModificationTime = 0x0E,
  kContinuation = 0x10,
  kSymbolTable = 0x11,
  kModificationTime = 0x12,
  kAttributeInfo = 0x15,
  kReferenceCount = 0x16,
};

enum TypeKind : int {
  kInteger = 0,
  kFloat = 1,
  kString = 3,
  kCompound = 6,
  kEnumeration = 8,
  kVariableLength = 9,
  kArray = 10,
};

// Bytes of the file, consumed from the front.
class Cursor {
 public:
  Cursor(std::string_view where, std::span<const uint8_t> bytes) : where_(where), bytes_(bytes) {}

  size_t left() const { return bytes_.size(); }
  std::span<const uint8_t> take(size_t count) {
    check<DataError>(count <= bytes_.size(), where_, ": is cut short: ", count, " bytes expected, ", bytes_.size(),
                     " left");
    const auto taken = bytes_.first(count);
    bytes_ = bytes_.subspan(count);
    return taken;
  }
  void skip(size_t count) { take(count); }
  uint64_t number(size_t bytes) {
    uint64_t value = 0;
    std::memcpy(&value, take(bytes).data(), bytes);
    return value;
  }
  void expect(std::string_view signature) {
    const auto found = take(signature.size());
    check<DataError>(std::equal(found.begin(), found.end(), signature.begin()), where_, ": the signature ", signature,
                     " is missing");
  }
  // A name that may end early with a zero byte. What cannot be printed becomes '?', for messages.
  std::string name(size_t bytes) {
    const auto found = take(bytes);
    std::string name(found.begin(), std::find(found.begin(), found.end(), 0));
    for (char& c : name)
      if (!std::isprint(static_cast<unsigned char>(c))) c = '?';
    return name;
  }

 private:
  std::string where_;
  std::span<const uint8_t> bytes_;
};

// Bob Jenkins' lookup3, the checksum of HDF5's metadata.
uint32_t lookup3(std::span<const uint8_t> bytes) {
  uint32_t a = 0xdeadbeef + static_cast<uint32_t>(bytes.size()), b = a, c = a;
  auto add_block = [&](size_t count) {
    std::array<uint32_t, 3> words = {};
    std::memcpy(words.data(), bytes.data(), count);
    bytes = bytes.subspan(count);
    a += words[0], b += words[1], c += words[2];
  };
  auto mix = [](uint32_t& x, uint32_t y, uint32_t& z, int bits) { x = (x - z) ^ std::rotl(z, bits), z += y; };
  while (bytes.size() > 12) {
    add_block(12);
    mix(a, b, c, 4), mix(b, c, a, 6), mix(c, a, b, 8), mix(a, b, c, 16), mix(b, c, a, 19), mix(c, a, b, 4);
  }
  if (bytes.empty()) return c;
  add_block(bytes.size());
  auto finish = [](uint32_t& x, uint32_t y, int bits) { x = (x ^ y) - std::rotl(y, bits); };
  finish(c, b, 14), finish(a, c, 11), finish(b, a, 25), finish(c, b, 16), finish(a, c, 4), finish(b, a, 14);
  finish(c, b, 24);
  return c;
}

// The last four bytes are the checksum of the others.
void verify_checksum(const std::string& where, std::span<const uint8_t> bytes) {
  uint32_t stored = 0;
  std::memcpy(&stored, bytes.data() + bytes.size() - 4, 4);
  check<DataError>(lookup3(bytes.first(bytes.size() - 4)) == stored, where, ": its checksum is wrong");
}

Hdf5Type parse_type(Cursor c) {
  Hdf5Type type;
  type.kind = static_cast<int>(c.number(1) & 15);
  const uint64_t bits = c.number(3);
  type.bytes = static_cast<int64_t>(c.number(4));
  if (type.kind == kInteger || type.kind == kFloat) type.is_big_endian = bits & 1;
  if (type.kind == kInteger) {
    type.is_signed = bits & 8;
    type.first_bit = static_cast<int64_t>(c.number(2));
    type.num_bits = static_cast<int64_t>(c.number(2));
  }
  return type;
}

struct Shape {
  bool is_scalar = false;
  std::vector<uint64_t> sizes;
};

Shape parse_shape(const std::string& where, Cursor c) {
  const uint64_t version = c.number(1), rank = c.number(1);
  check<DataError>(version == 1 || version == 2, where, ": dataspace version ", version, " is not supported");
  c.skip(1);
  Shape shape;
  if (version == 1) {
    c.skip(5);
    shape.is_scalar = rank == 0;
  } else {
    shape.is_scalar = c.number(1) == 0;
  }
  for (uint64_t i = 0; i < rank; ++i) shape.sizes.push_back(c.number(8));
  return shape;
}

Hdf5Attribute parse_attribute(const std::string& path, Cursor c) {
  const uint64_t version = c.number(1), flags = c.number(1);
  check<DataError>(1 <= version && version <= 3, path, ": attribute version ", version, " is not supported");
  const size_t name_bytes = c.number(2), type_bytes = c.number(2), shape_bytes = c.number(2);
  if (version == 3) c.skip(1);  // character set
  auto padding = [&](size_t bytes) { return version == 1 ? (8 - bytes % 8) % 8 : 0; };
  Hdf5Attribute attribute;
  attribute.name = c.name(name_bytes);
  c.skip(padding(name_bytes));
  const std::string where = concat(path, ": attribute ", attribute.name);
  check<OtherHdf5>(version == 1 || flags == 0, where, ": its type or shape is shared, which is not supported");
  attribute.type = parse_type({where, c.take(type_bytes)});
  c.skip(padding(type_bytes));
  attribute.is_scalar = parse_shape(where, {where, c.take(shape_bytes)}).is_scalar;
  c.skip(padding(shape_bytes));
  if (attribute.is_scalar) {
    const auto value = c.take(attribute.type.bytes);
    attribute.value.assign(value.begin(), value.end());
  }
  return attribute;
}

Hdf5Link parse_link(const std::string& path, Cursor c) {
  const uint64_t version = c.number(1), flags = c.number(1);
  check<DataError>(version == 1, path, ": link version ", version, " is not supported");
  const uint64_t kind = flags & 8 ? c.number(1) : 0;
  if (flags & 4) c.skip(8);   // creation order
  if (flags & 16) c.skip(1);  // character set
  const size_t name_bytes = c.number(size_t{1} << (flags & 3));
  Hdf5Link link;
  link.name = c.name(name_bytes);
  link.kind = kind == 0 ? "object" : kind == 1 ? "soft link" : kind == 64 ? "external link" : "user-defined link";
  if (kind == 0) link.address = c.number(8);
  return link;
}

// Link and attribute info: where they are stored if they are too many for the object header.
void check_not_dense(const std::string& where, const char* what, Cursor c) {
  c.skip(1);
  const uint64_t flags = c.number(1);
  if (flags & 1) c.skip(std::string_view(what) == "links" ? 8 : 2);  // highest creation order
  check<OtherHdf5>(c.number(8) == kUndefined, where, ": too many ", what, ": they are stored outside its header");
}

}  // namespace

bool Hdf5Type::is_integer() const { return kind == kInteger && first_bit == 0 && num_bits == 8 * bytes; }
bool Hdf5Type::is_fixed_string() const { return kind == kString; }

std::string Hdf5Type::description() const {
  const char* order = is_big_endian ? "big-endian " : "";
  switch (kind) {
    case kInteger:
      return concat(order, is_signed ? "signed " : "unsigned ", 8 * bytes, "-bit integers",
                    is_integer() ? "" : concat(", only ", num_bits, " bits of which count"));
    case kFloat: return concat(order, 8 * bytes, "-bit floats");
    case kString: return concat("strings of ", bytes, " bytes");
    case kCompound: return "records";
    case kEnumeration: return "enumerators";
    case kVariableLength: return "strings or sequences of variable length";
    case kArray: return "arrays";
    default: return concat("type class ", kind);
  }
}

Hdf5File::Hdf5File(const RawFile& file) : file_(file) {
  const std::string where = file.path() + ": root group";
  bool is_group = false;
  for (const Message& message : read_object_header(where, read_superblock())) {
    Cursor body(where, message.body);
    switch (message.kind) {
      case kGroupInfo:
      case kOldModificationTime:
      case kModificationTime:
      case kReferenceCount: break;
      case kLinkInfo:
        check_not_dense(where, "links", body);
        is_group = true;
        break;
      case kLink: links_.push_back(parse_link(where, body)); break;
      case kSymbolTable: {
        const uint64_t tree = body.number(8), heap = body.number(8);
        read_symbol_table(tree, heap);
        is_group = true;
        break;
      }
      case kAttribute: attributes_.push_back(parse_attribute(file.path(), body)); break;
      case kAttributeInfo: check_not_dense(where, "attributes", body); break;
      default: throw DataError(concat(where, ": header message of kind ", message.kind, " is not supported"));
    }
  }
  check<DataError>(is_group, where, ": is not a group");
}

std::vector<uint8_t> Hdf5File::read(std::string_view what, uint64_t position, uint64_t bytes) const {
  const auto size = static_cast<uint64_t>(file_.size());
  check<DataError>(bytes <= kMaxBlockBytes && position <= size && bytes <= size - position, what, ": ", bytes,
                   " bytes at byte ", position, " cannot be read from a file of ", size, " bytes");
  std::vector<uint8_t> block(bytes);
  file_.read(block.data(), static_cast<int64_t>(bytes), static_cast<int64_t>(position));
  return block;
}

// Returns the address of the root group.
uint64_t Hdf5File::read_superblock() const {
  constexpr uint64_t kVersion0Bytes = 96, kVersion2Bytes = 48;
  const std::string& path = file_.path();
  const int64_t size = file_.size();
  check<DataError>(size > 0, path, ": is empty (0 bytes), not an HDF5 file");
  const std::vector<uint8_t> start = read(path, 0, std::min<uint64_t>(size, kFileSignature.size() + 1));
  const size_t known = std::min(start.size(), kFileSignature.size());
  check<DataError>(std::equal(start.begin(), start.begin() + static_cast<int64_t>(known), kFileSignature.begin()), path,
                   ": is not an HDF5 file: it does not start with the HDF5 signature");
  const int version = start.size() > known ? start[known] : 0;
  check<OtherHdf5>(version == 0 || version == 2 || version == 3, path, ": superblock version ", version,
                   " is not supported, expected 0, 2 or 3");
  const uint64_t bytes = version == 0 ? kVersion0Bytes : kVersion2Bytes;
  check<DataError>(bytes <= static_cast<uint64_t>(size), path, ": is truncated: its superblock needs ", bytes,
                   " bytes, the file has ", size);

  const std::vector<uint8_t> block = read(path, 0, bytes);
  const std::string where = path + ": superblock";
  Cursor c(where, block);
  c.skip(kFileSignature.size() + 1);
  if (version == 0) c.skip(4);  // versions of other parts
  const uint64_t offset_bytes = c.number(1), length_bytes = c.number(1);
  check<OtherHdf5>(offset_bytes == 8 && length_bytes == 8, where, ": expected offsets and lengths of 8 bytes, found ",
                   offset_bytes, " and ", length_bytes);
  uint64_t base, end_of_file, extension, root;
  if (version == 0) {
    c.skip(1 + 2 + 2 + 4);  // reserved, two sizes of trees, flags that nobody sets
    base = c.number(8);
    c.skip(8);  // free space
    end_of_file = c.number(8);
    extension = c.number(8);
    c.skip(8);  // name of the root group
    root = c.number(8);
  } else {
    const uint64_t flags = c.number(1);
    check<DataError>(flags == 0, where, ": the writer did not close the file properly (consistency flags ", flags, ")");
    base = c.number(8);
    extension = c.number(8);
    end_of_file = c.number(8);
    root = c.number(8);
  }
  check<DataError>(end_of_file == static_cast<uint64_t>(size), path, ": is ",
                   end_of_file > static_cast<uint64_t>(size) ? "truncated" : "longer than its superblock says", ": ",
                   end_of_file, " bytes expected, the file has ", size);
  if (version != 0) verify_checksum(where, block);
  check<OtherHdf5>(base == 0, where, ": expected base address 0, found ", base);
  check<OtherHdf5>(extension == kUndefined, where, ": extensions and drivers are not supported, found one at byte ",
                   extension);
  return root;
}

// All messages of an object, those of continuation blocks included.
std::vector<Hdf5File::Message> Hdf5File::read_object_header(const std::string& where, uint64_t address) const {
  std::vector<Message> messages;
  struct Block {
    uint64_t position, bytes;
  };
  std::vector<Block> blocks;
  const std::vector<uint8_t> start = read(where, address, 16);
  const bool is_version2 = std::memcmp(start.data(), "OHDR", 4) == 0;
  int flags = 0;

  auto parse_messages = [&](Cursor c) {
    const size_t head_bytes = is_version2 ? (flags & 4 ? 6 : 4) : 8;
    while (c.left() >= head_bytes) {
      const auto kind = static_cast<int>(c.number(is_version2 ? 1 : 2));
      const size_t bytes = c.number(2);
      const bool is_shared = c.number(1) & 2;
      c.skip(head_bytes - (is_version2 ? 4 : 5));
      Cursor body(where, c.take(bytes));
      if (kind == kNil) continue;
      check<OtherHdf5>(!is_shared, where, ": a shared header message is not supported");
      if (kind == kContinuation) {
        const uint64_t position = body.number(8), length = body.number(8);
        blocks.push_back({position, length});
        check<DataError>(blocks.size() <= kMaxHeaderBlocks, where, ": its header continues more than ",
                         kMaxHeaderBlocks, " times");
      } else {
        const auto rest = body.take(body.left());
        messages.push_back({kind, {rest.begin(), rest.end()}});
      }
    }
  };

  Cursor c(where, start);
  if (is_version2) {
    c.skip(4);
    const uint64_t version = c.number(1);
    flags = static_cast<int>(c.number(1));
    check<DataError>(version == 2, where, ": object header version ", version, " is not supported");
    // The fields before the messages: times, limits for attributes, and the number of bytes of the messages.
    const uint64_t before = 6 + (flags & 0x20 ? 16 : 0) + (flags & 0x10 ? 4 : 0),
                   size_bytes = uint64_t{1} << (flags & 3);
    const std::vector<uint8_t> size_field = read(where, address + before, size_bytes);
    const uint64_t bytes = Cursor(where, size_field).number(size_bytes);
    check<DataError>(bytes <= kMaxBlockBytes / 2, where, ": an object header of ", bytes, " bytes is too large");
    const std::vector<uint8_t> block = read(where, address, before + size_bytes + bytes + 4);
    verify_checksum(where, block);
    parse_messages({where, std::span(block).subspan(before + size_bytes, bytes)});
  } else {
    const uint64_t version = c.number(1);
    check<DataError>(version == 1, where, ": object header version ", version, " is not supported");
    c.skip(1 + 2 + 4);  // reserved, number of messages, reference count
    const uint64_t bytes = c.number(4);
    const std::vector<uint8_t> block = read(where, address + start.size(), bytes);
    parse_messages({where, block});
  }
  for (size_t i = 0; i < blocks.size(); ++i) {
    const std::vector<uint8_t> block = read(where, blocks[i].position, blocks[i].bytes);
    std::span<const uint8_t> content = block;
    if (is_version2) {
      check<DataError>(block.size() >= 8, where, ": a continuation of ", block.size(), " bytes is too short");
      Cursor(where, content).expect("OCHK");
      verify_checksum(where, content);
      content = content.subspan(4, block.size() - 8);
    }
    parse_messages({where, content});
  }
  return messages;
}

// The links of a group in the format of superblock 0. Two links fit into one leaf of the tree.
void Hdf5File::read_symbol_table(uint64_t tree_address, uint64_t heap_address) {
  const std::string where = file_.path() + ": symbol table of the root group";
  const std::vector<uint8_t> tree = read(where, tree_address, 48);
  Cursor t(where, tree);
  t.expect("TREE");
  const uint64_t kind = t.number(1), level = t.number(1), num_leaves = t.number(2);
  check<OtherHdf5>(kind == 0 && level == 0 && num_leaves <= 1, where, ": holds more than a shard has (tree of kind ",
                   kind, ", level ", level, ", ", num_leaves, " leaves)");
  if (num_leaves == 0) return;
  t.skip(8 + 8 + 8);  // siblings, first key
  const uint64_t leaf_address = t.number(8);

  const std::vector<uint8_t> heap = read(where, heap_address, 32);
  Cursor h(where, heap);
  h.expect("HEAP");
  h.skip(4);
  const uint64_t names_bytes = h.number(8);
  h.skip(8);  // free list
  const std::vector<uint8_t> names = read(where, h.number(8), names_bytes);

  constexpr uint64_t kEntryBytes = 40;
  const std::vector<uint8_t> head = read(where, leaf_address, 8);
  Cursor l(where, head);
  l.expect("SNOD");
  l.skip(2);
  const uint64_t num_entries = l.number(2);
  const std::vector<uint8_t> entries = read(where, leaf_address + head.size(), num_entries * kEntryBytes);
  Cursor e(where, entries);
  for (uint64_t i = 0; i < num_entries; ++i) {
    Hdf5Link link;
    Cursor name(where, names);
    name.skip(e.number(8));
    link.name = name.name(name.left());
    link.address = e.number(8);
    link.kind = e.number(4) == 2 ? "soft link" : "object";
    e.skip(4 + 16);
    links_.push_back(std::move(link));
  }
}

Hdf5Dataset Hdf5File::dataset(const Hdf5Link& link) const {
  const std::string where = concat(file_.path(), ": ", link.name);
  check<OtherHdf5>(link.kind == "object", where, ": expected a dataset, found ",
                   link.kind == "external link" ? "an " : "a ", link.kind);
  const std::vector<Message> messages = read_object_header(where, link.address);
  // The body of the only message of this kind.
  auto find = [&](int kind) -> std::optional<Cursor> {
    std::optional<Cursor> found;
    for (const Message& message : messages) {
      if (message.kind != kind) continue;
      check<DataError>(!found, where, ": its header has several messages of kind ", kind);
      found.emplace(where, message.body);
    }
    return found;
  };
  for (const Message& message : messages) {
    switch (message.kind) {
      case kDataspace:
      case kDatatype:
      case kDataLayout:
      case kOldFillValue:
      case kFillValue:
      case kOldModificationTime:
      case kModificationTime:
      case kReferenceCount: break;
      case kSymbolTable:
      case kLinkInfo: throw OtherHdf5(concat(where, ": expected a dataset, found a group"));
      case kFilters: throw OtherHdf5(concat(where, ": expected plain data, found filters (compression or checksums)"));
      case kExternalFiles: throw OtherHdf5(concat(where, ": expected its data in this file, found external files"));
      case kAttribute: throw OtherHdf5(concat(where, ": expected no attributes"));
      case kAttributeInfo: check_not_dense(where, "attributes", {where, message.body}); break;
      default: throw DataError(concat(where, ": header message of kind ", message.kind, " is not supported"));
    }
  }
  auto type = find(kDatatype), shape_message = find(kDataspace), layout = find(kDataLayout);
  check<DataError>(type && shape_message && layout, where, ": expected a dataset, found an object without ",
                   !type            ? "type"
                   : !shape_message ? "shape"
                                    : "storage");

  const uint64_t layout_version = layout->number(1);
  check<OtherHdf5>(layout_version == 3 || layout_version == 4, where, ": layout version ", layout_version,
                   " is not supported");
  const uint64_t storage = layout->number(1);
  constexpr std::array kStorages = {"compact", "contiguous", "chunked", "virtual"};
  check<OtherHdf5>(storage == 1, where, ": expected contiguous storage, found ",
                   storage < kStorages.size() ? kStorages[storage] : "an unknown one");
  const uint64_t position = layout->number(8), stored_bytes = layout->number(8);

  Hdf5Dataset dataset;
  dataset.type = parse_type(*type);
  const Shape shape = parse_shape(where, *shape_message);
  check<OtherHdf5>(shape.sizes.size() == 1, where, ": expected 1 dimension, found ", shape.sizes.size());
  const auto file_bytes = static_cast<uint64_t>(file_.size()), bytes = static_cast<uint64_t>(dataset.type.bytes);
  const uint64_t size = shape.sizes[0];
  check<DataError>(bytes > 0 && size <= file_bytes / bytes, where, ": ", size, " elements of ", bytes,
                   " bytes do not fit into a file of ", file_bytes, " bytes");
  if (size == 0) return dataset;
  check<DataError>(position != kUndefined, where, ": its ", size, " elements were never written");
  check<DataError>(stored_bytes == size * bytes && position <= file_bytes && stored_bytes <= file_bytes - position,
                   where, ": expected its ", size, " elements of ", bytes, " bytes inside the file, found ",
                   stored_bytes, " bytes at byte ", position, " of ", file_bytes);
  dataset.size = static_cast<int64_t>(size);
  dataset.position = static_cast<int64_t>(position);
  return dataset;
}

}  // namespace braid
