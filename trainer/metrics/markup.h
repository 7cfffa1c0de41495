#pragma once

#include <string>
#include <string_view>

namespace braid {

// Text as it stands in XML and HTML. Control characters, which XML has no way to write, become spaces.
std::string escape_markup(std::string_view text);

}  // namespace braid
