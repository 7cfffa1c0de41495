#!/usr/bin/env bash
# Builds and runs all tests.
#   scripts/test.sh [--no-install] [ctest arguments …]      for example: scripts/test.sh -R kernels
set -euo pipefail
cd "$(dirname "$0")/.."

install_flag=
if [ "${1:-}" = "--no-install" ]; then
  install_flag=--no-install
  shift
fi
scripts/install_packages.sh $install_flag

cmake --preset release -DBRAID_TESTS=ON >/dev/null
cmake --build --preset release --parallel "$(nproc)"
ctest --preset release --parallel "$(nproc)" "$@"
