#pragma once

#include <string>

namespace braid {

// What messages and records say of the process they come from.
std::string host_name();
std::string utc_now();         // 2026-01-31T23:59:59Z
std::string program_digest();  // SHA-256 of the executable; empty where the system does not show it

int usable_cores();  // that this process may run on, at least 1

}  // namespace braid
