#pragma once

#include <array>
#include <cstddef>

namespace braid {

// The words for an enum's values, in order from 0, for configs and messages. Specialise beside the enum:
//   template <> struct EnumNames<Scope> { static constexpr std::array kNames = {"micro_batch", "sequence"}; };
template <class E>
struct EnumNames;

template <class E>
constexpr const char* name_of_enum(E value) {
  return EnumNames<E>::kNames[static_cast<size_t>(value)];
}

}  // namespace braid
