#pragma once

#include <gtest/gtest.h>
#include <pty.h>
#include <unistd.h>

#include <cstdio>
#include <string>

namespace braid::testing {

// What body(FILE*) writes to a terminal of `columns`; 0 is one that does not know its width.
template <class Body>
std::string text_on_terminal(unsigned short columns, Body&& body) {
  winsize size = {};
  size.ws_col = columns;
  int master = -1, slave = -1;
  EXPECT_EQ(openpty(&master, &slave, nullptr, nullptr, &size), 0);
  std::FILE* out = fdopen(slave, "w");
  body(out);
  std::fclose(out);
  // What was written may arrive in pieces; behind the last one the closed terminal gives an error.
  std::string text;
  char piece[4096];
  for (ssize_t bytes; (bytes = ::read(master, piece, sizeof piece)) > 0;) text.append(piece, bytes);
  close(master);
  return text;
}

}  // namespace braid::testing
