#pragma once

#include <cstdint>
#include <string>

namespace braid {

// What messages and records say of the process they come from.
std::string host_name();
std::string utc_now();         // 2026-01-31T23:59:59Z
int64_t now_ns();              // of steady_clock, the same for all processes of a host
std::string program_digest();  // SHA-256 of the executable; empty where the system does not show it

int allowed_cores();  // that this process may run on, by its affinity; at least 1

// What the quotas of its control groups (of a container, of a service) come to in cores, rounded up; INT_MAX where
// there is none. `root` stands in front of /proc and /sys, for tests.
int quota_cores(const std::string& root = "");

bool has_same_cores(int pid);  // may that process run on just those that this one may run on?

int usable_cores();  // the lesser of the two

}  // namespace braid
