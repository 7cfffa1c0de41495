#!/usr/bin/env bash
# Installs what building and testing Braid needs on Debian 12 or Ubuntu 24.04, and nothing that is there already.
#   scripts/install_packages.sh [--no-install]     --no-install: only say what is missing; exits 10 if anything is
set -euo pipefail

packages=(
  "g++:compiler"
  "cmake:build"
  "ninja-build:build"
  "pkg-config:finds OpenBLAS for the build"
  "git:the commit that a build is made from"
  "openmpi-bin:mpirun"
  "libopenmpi-dev:communication between ranks"
  "libhdf5-dev:token shards"
  "libyaml-cpp-dev:configs"
  "libcli11-dev:command line"
  "nlohmann-json3-dev:metrics and checkpoints"
  "libfmt-dev:console lines"
  "libopenblas-dev:matrix products"
  "libssl-dev:SHA-256 of checkpoints and shards"
  "libgtest-dev:tests"
)

missing=()
for entry in "${packages[@]}"; do
  name=${entry%%:*}
  dpkg-query -W -f='${Status}' "$name" 2>/dev/null | grep -q 'ok installed' && continue
  missing+=("$name")
  echo "missing: $name (${entry#*:})"
done
[ ${#missing[@]} -eq 0 ] && exit 0

if [ "${1:-}" = "--no-install" ]; then
  echo "install them with: apt-get install ${missing[*]}" >&2
  exit 10
fi
command -v apt-get >/dev/null || { echo "apt-get is not here; install by hand: ${missing[*]}" >&2; exit 10; }
as_root=()
if [ "$(id -u)" != 0 ]; then
  command -v sudo >/dev/null || { echo "installing needs root or sudo: ${missing[*]}" >&2; exit 10; }
  as_root=(sudo)
fi
echo "installing ${missing[*]}"
"${as_root[@]}" apt-get update -qq
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
