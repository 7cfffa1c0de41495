#!/usr/bin/env bash
# Builds Braid and runs all its tests.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
  cat <<'TEXT'
Usage: scripts/test.sh [--no-install] [--cpu] [ctest arguments ...]
Installs missing packages, builds the preset "release" in build/release (with CUDA if nvcc and NCCL are there) and runs
every test, the end-to-end tests under mpirun included. Without a GPU its tests are reported as skipped.
  --no-install   install nothing; fail if a package is missing
  --cpu          build without CUDA, though nvcc is there
  others         go to ctest, for example -R kernels or --repeat until-fail:3
TEXT
}

install_arguments=() cuda=AUTO
while :; do
  case ${1:-} in
    --no-install) install_arguments=(--no-install) ;;
    --cpu) cuda=OFF ;;
    -h | --help) usage; exit 0 ;;
    *) break ;;
  esac
  shift
done

say "Packages"
scripts/install_packages.sh "${install_arguments[@]}"
say "Build of everything (preset release, in build/release)"
mkdir -p build
prepare_cuda $cuda
quietly build/configure.log cmake --preset release -DBRAID_TESTS=ON -DBRAID_CUDA=$cuda
quietly build/build.log cmake --build --preset release --parallel "$(usable_cores)"
say "Tests"
prepare_mpi
prepare_threads
ctest --test-dir build/release --output-on-failure -j2 "$@"
