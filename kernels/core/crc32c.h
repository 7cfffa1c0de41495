#pragma once

#include <cstddef>
#include <cstdint>

namespace braid {

// CRC-32C (Castagnoli, reflected polynomial 0x82f63b78) of some bytes; `before` is the CRC of the bytes in front of
// them, so crc32c(ab) = crc32c(b, crc32c(a)). By the CPU's instruction where the program is compiled for it. Source:
// RFC 3720, appendix B.4.
uint32_t crc32c(const void* data, size_t bytes, uint32_t before = 0);

// The same by tables, on any CPU: what the instruction is held to.
uint32_t crc32c_by_table(const void* data, size_t bytes, uint32_t before = 0);

// Of two pieces put together, from the CRC of each and the length of the second.
uint32_t crc32c_of_both(uint32_t first, uint32_t second, uint64_t second_bytes);

}  // namespace braid
