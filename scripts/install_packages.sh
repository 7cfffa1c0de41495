#!/usr/bin/env bash
# Installs what Braid needs and this machine lacks, with apt. Debian 12 and 13, Ubuntu 24.04.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
  cat <<'TEXT'
Usage: scripts/install_packages.sh [--no-install]
Installs the packages that Braid needs and that are missing (apt-get, with sudo unless you are root). What is there by other
means (cmake from pip, libraries from modules) is found and not installed again.
  --no-install   install nothing: list what is missing, and fail if that is anything
TEXT
}

install=true
while [ $# -gt 0 ]; do
  case $1 in
    --no-install) install=false ;;
    -h | --help) usage; exit 0 ;;
    *) usage >&2; die "unknown option $1" ;;
  esac
  shift
done

packages='
g++                 C++20 compiler
cmake               build
ninja-build         build
pkg-config          finds libraries
openmpi-bin         mpirun, which starts several ranks
libopenmpi-dev      messages between ranks
libhdf5-dev         token shards
libyaml-cpp-dev     configs
libcli11-dev        command line
nlohmann-json3-dev  metrics and checkpoints
libfmt-dev          text output
libdnnl-dev         matrix products
libssl-dev          SHA-256 of checkpoints and data
libpcre2-dev        patterns of tokenizers
libutf8proc-dev     normal form of text
libzstd-dev         text in .zst
zlib1g-dev          text in .gz
libgtest-dev        tests
python3             tests of faults
'

# What a package brings, for machines where it came from elsewhere (pip, modules, a build by hand): a command, a module of
# pkg-config, or a package or library that CMake finds. A package without a line here is looked for by its name alone.
capability() {
  case $1 in
    g++) echo "command ${CXX:-c++} g++ clang++" ;;
    cmake) echo command cmake ;;
    ninja-build) echo command ninja ;;
    pkg-config) echo command pkg-config pkgconf ;;
    openmpi-bin) echo command mpirun ;;
    libopenmpi-dev) echo command mpicc ;;
    libhdf5-dev) echo cmake HDF5 ;;
    libyaml-cpp-dev) echo cmake yaml-cpp ;;
    libcli11-dev) echo cmake CLI11 ;;
    nlohmann-json3-dev) echo cmake nlohmann_json ;;
    libfmt-dev) echo cmake fmt ;;
    libdnnl-dev) echo library dnnl ;;
    libssl-dev) echo cmake OpenSSL ;;
    libgtest-dev) echo cmake GTest ;;
    python3) echo command python3 ;;
    libpcre2-dev) echo pkg-config libpcre2-8 ;;
    libutf8proc-dev) echo pkg-config libutf8proc ;;
    libzstd-dev) echo pkg-config libzstd ;;
    zlib1g-dev) echo pkg-config zlib ;;
  esac
}

# Does CMake find the package? All are asked for at once, the first time that one is.
cmake_finds() {
  if [ -z "${cmake_found+set}" ]; then
    local probe
    probe=$(mktemp -d)
    {
      echo 'cmake_minimum_required(VERSION 3.25)'
      echo 'project(probe C CXX)'
      local name kind what
      while read -r name _; do
        read -r kind what <<<"$(capability "${name:-none}")"
        case $kind in
          cmake) echo "find_package($what QUIET)" ;;
          library) echo "find_library(file_of_$what $what)"; echo "if(file_of_$what)"; echo "  set($what""_FOUND 1)"; echo 'endif()' ;;
          *) continue ;;
        esac
        echo "string(TOUPPER $what upper)"
        echo "if($what""_FOUND OR \${upper}_FOUND)"
        echo "  message(STATUS \"probe found $what\")"
        echo 'endif()'
      done <<<"$packages"
    } >"$probe/CMakeLists.txt"
    cmake_found=$(cmake -S "$probe" -B "$probe/build" 2>/dev/null | sed -n 's/^-- probe found //p' || true)
    rm -rf "$probe"
  fi
  grep -qxF -- "$1" <<<"$cmake_found"
}

is_there() {
  local kind words word
  [ "$(dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null)" = installed ] && return
  read -r kind words <<<"$(capability "$1")"
  for word in $words; do
    case $kind in
      command) command -v "$word" >/dev/null && return ;;
      pkg-config) pkg-config --exists "$word" 2>/dev/null && return ;;
      cmake | library) command -v cmake >/dev/null && cmake_finds "$word" && return ;;
    esac
  done
  return 1
}

missing=()
while read -r name purpose; do
  [ -n "$name" ] || continue
  is_there "$name" && continue
  [ ${#missing[@]} -gt 0 ] || echo "Missing packages:"
  printf '  %-20s%s\n' "$name" "$purpose"
  missing+=("$name")
done <<<"$packages"

if [ ${#missing[@]} = 0 ]; then
  echo "Everything that Braid needs is here."
  exit 0
fi
if ! command -v apt-get >/dev/null; then
  die "this is not Debian or Ubuntu: install what the packages above hold there, or put it on the PATH and CMAKE_PREFIX_PATH"
fi
$install || die "packages are missing and --no-install was given; install them with: apt-get install ${missing[*]}"

as_root=()
if [ "$(id -u)" != 0 ]; then
  command -v sudo >/dev/null || die "needs root to install packages, and there is no sudo; as root: apt-get install ${missing[*]}"
  as_root=(sudo)
fi
echo "Installing them with ${as_root[*]:+${as_root[*]} }apt-get."
apt=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -o Acquire::Retries=3)
"${apt[@]}" update
"${apt[@]}" install -y --no-install-recommends "${missing[@]}"
