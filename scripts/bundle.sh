#!/usr/bin/env bash
# A folder that runs on GPU hosts without Braid's packages: programs, tests, libraries, configs, golden models, gpu_check.sh.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

build=build/bundle

usage() {
  cat <<TEXT
Usage: scripts/bundle.sh [--build FOLDER] [--only-build] [FOLDER | FILE.tgz]
Builds Braid with CUDA for any x86-64-v3 or armv8 CPU, with all tests, and puts what another host needs into FOLDER or
FILE.tgz (default build/braid-bundle.tgz). There: unpack, then scripts/gpu_check.sh, or bin/braid.
The host needs the driver, the CUDA libraries (cublasLt, nvrtc), cuDNN, NCCL, Open MPI and a C++ runtime that is not older
than this one's. Libraries in lib/ are always used, those in lib/spare only where the host has none of that name
(scripts/gpu_check.sh arranges it; by hand: LD_LIBRARY_PATH).
  --build FOLDER   build folder; default $build
  --only-build     build, and make no bundle
Settings that CMake knows go into the environment variable BUNDLE_CMAKE, for example BUNDLE_CMAKE=-DCMAKE_CUDA_ARCHITECTURES=80
TEXT
}

target=build/braid-bundle.tgz only_build=false
while [ $# -gt 0 ]; do
  case $1 in
    --build) [ $# -ge 2 ] || die "$1 needs a value"; build=$(from_caller "$2"); shift ;;
    --only-build) only_build=true ;;
    -h | --help) usage; exit 0 ;;
    -*) usage >&2; die "unknown option $1" ;;
    *) target=$(from_caller "$1") ;;
  esac
  shift
done

say "Build in $build"
prepare_cuda
mkdir -p "$build"
read -r -a settings <<<"${BUNDLE_CMAKE:-}"
# Shared libraries of our own: a hundred programs need one copy of the kernels.
quietly "$build/configure.log" cmake -S . -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DBRAID_CUDA=ON -DBRAID_NATIVE=OFF \
  -DBRAID_TESTS=ON -DBUILD_SHARED_LIBS=ON '-DCMAKE_BUILD_RPATH=$ORIGIN/../lib' "${settings[@]}"
quietly "$build/build.log" cmake --build "$build" --parallel "$(usable_cores)"
if $only_build; then exit 0; fi

say "Bundle"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
root=$work/braid
mkdir -p "$root"/{bin,lib/spare,tests,scripts}
while read -r program; do strip -o "$root/bin/$(basename "$program")" "$program"; done < <(
  find "$build" -path "$build/CMakeFiles" -prune -o -type f -perm -u+x \( -name braid -o -name make_model_folder -o -name '*_test' \) -print)
[ -x "$root/bin/braid" ] || die "$build holds no program braid"
while read -r library; do strip -o "$root/lib/$(basename "$library")" "$library"; done < <(find "$build" -name 'libbraid_*.so')

# Libraries of the system. Never taken: the C and C++ runtime, what belongs to the driver, to CUDA and to MPI (whose parts
# must be those of the mpirun that starts us). C++ libraries differ between distributions, so ours are used.
of_host='ld-linux|libc|libm|libdl|librt|libpthread|libresolv|libstdc\+\+|libgcc_s|libgomp|libcuda|libcudart|libcublas|libcublasLt|libcudnn|libnvrtc|libnvJitLink|libnccl|libmpi|libopen-rte|libopen-pal|libhwloc|libpmix|libevent|libevent_[a-z]*|libudev|libucp|libuct|libucs|libucm|libfabric|libibverbs|librdmacm'
always='libyaml-cpp|libfmt'
own=$(cd "$root/lib" && ls libbraid_*.so)
{ ldd "$build/braid"; find "$build" -name '*_test' -type f -perm -u+x -exec ldd {} +; } |
  awk '$2 == "=>" && $3 ~ "^/" { print $1, $3 } $0 ~ "not found" { print "missing", $1 }' | sort -u >"$work/libraries"
while read -r name path; do
  [ "$name" != missing ] || die "$path, which a program needs, is not on this machine"
  if grep -qxF "$name" <<<"$own" || grep -qE "^($of_host)[.-]" <<<"$name"; then continue; fi
  if grep -qE "^($always)\." <<<"$name"; then cp -L "$path" "$root/lib/$name"; else cp -L "$path" "$root/lib/spare/$name"; fi
done <"$work/libraries"

cp -r configs docs kernels model "$root/"  # the sources of two folders are the text that the tiny config trains on
cp -r tests/golden tests/e2e "$root/tests/"
cp scripts/{common.sh,gpu_check.sh,gpu_small_data.sh,lean_state_accuracy.sh,passkey.sh,passkey_text.py} "$root/scripts/"
cp LICENSE "$root/"
{
  echo "Braid $("$build/braid" --version | head -1)"
  echo "commit $(git describe --always --dirty --abbrev=12 2>/dev/null || echo unknown)"
  echo "built $(date -u +%Y-%m-%dT%H:%M:%SZ) on $(. /etc/os-release && echo "$PRETTY_NAME"), $(${CUDACXX:-nvcc} --version | tail -1)"
  echo "CUDA architectures $(sed -n 's/^CMAKE_CUDA_ARCHITECTURES:[^=]*=//p' "$build/CMakeCache.txt" | grep . || echo "90a (default)")"
  echo "cuDNN $(grep -q 'kWithCudnn = true' "$build/kernels/build_config.h" && echo yes || echo no)"
  (cd "$root" && find . -type f ! -name MANIFEST -print0 | sort -z | xargs -0 sha256sum)
} >"$root/MANIFEST"

case $target in
  *.tgz | *.tar.gz)
    mkdir -p "$(dirname "$target")"
    tar -C "$work" -c --sort=name --owner=0 --group=0 --numeric-owner braid | gzip -6 >"$target"
    echo "$target: $(($(stat -c %s "$target") / 1000000)) MB; unpacks to braid/"
    ;;
  *)
    if [ -e "$target" ] && [ -n "$(ls -A "$target")" ] && [ ! -f "$target/MANIFEST" ]; then
      die "$target is there already and holds something else than a bundle"
    fi
    rm -rf "$target"
    mkdir -p "$(dirname "$target")"
    cp -r "$root" "$target"
    echo "$target: $(du -sm "$target" | cut -f1) MB"
    ;;
esac
