#!/usr/bin/env bash
# Installs what Braid needs and this machine lacks, with apt. Debian 12, Ubuntu 24.04.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
  cat <<'TEXT'
Usage: scripts/install_packages.sh [--no-install]
Installs the packages that Braid needs and that are missing (apt-get, with sudo unless you are root).
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
'

if ! command -v dpkg-query >/dev/null; then
  echo "This is not Debian or Ubuntu, so nothing was checked or installed. Braid needs what these packages hold there:"
  printf '%s\n' "$packages" | sed '/^$/d; s/^/  /'
  exit 0
fi

missing=()
while read -r name purpose; do
  [ -n "$name" ] || continue
  [ "$(dpkg-query -W -f='${db:Status-Status}' "$name" 2>/dev/null)" = installed ] && continue
  [ ${#missing[@]} -gt 0 ] || echo "Missing packages:"
  printf '  %-20s%s\n' "$name" "$purpose"
  missing+=("$name")
done <<<"$packages"

if [ ${#missing[@]} = 0 ]; then
  echo "All packages that Braid needs are installed."
  exit 0
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
