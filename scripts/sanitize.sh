#!/usr/bin/env bash
# Tests under the sanitizers of the compiler.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
  cat <<'TEXT'
Usage: scripts/sanitize.sh address|thread [--build FOLDER] [ctest arguments ...]
  address  every test but the chaos (its library of faults and the sanitizer both replace the C library's), built with the
           address and undefined-behaviour sanitizers (preset cpu-asan); leaks are looked for where no mpirun is: Open MPI
           has its own
  thread   the tests of what has threads of its own (watchdog, saves beside the training, metrics, prefetch, readers of
           data, ranks that are threads), built with the thread sanitizer (preset cpu-tsan)
Ends with 1 if a test fails or a sanitizer reports anything. Others go to ctest, for example -j8 or -R data.
TEXT
}

threaded='trainer.run.watchdog trainer.checkpoint.checkpoint_saver trainer.metrics.background trainer.metrics.metrics_writer
  trainer.metrics.progress_bar data.batch_stream data.token_shard data.token_source data.corpus parallel.communicator'

kind=${1:-}
case $kind in
  address) preset=cpu-asan targets=(all) ;;
  thread) preset=cpu-tsan; read -r -d '' -a targets <<<"$threaded" || true ;;
  -h | --help) usage; exit 0 ;;
  *) usage >&2; exit 2 ;;
esac
shift
build=build/$preset
if [ "${1:-}" = --build ]; then
  [ -n "${2:-}" ] || { usage >&2; exit 2; }
  build=$2
  shift 2
fi

say "Build (preset $preset, in $build)"
mkdir -p "$build"
[ $kind = address ] || targets=("${targets[@]/%/_test}")
quietly "$build/configure.log" cmake --preset $preset -B "$build" -DBRAID_TESTS=ON
quietly "$build/build.log" cmake --build "$build" --parallel "$(usable_cores)" --target "${targets[@]}"

say "Tests"
prepare_mpi
export UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1
if [ $kind = address ]; then
  status=0
  ctest --test-dir "$build" --output-on-failure -j2 -E '^(e2e|chaos)\.' "$@" || status=1
  LSAN_OPTIONS=detect_leaks=0 ctest --test-dir "$build" --output-on-failure -j2 -R '^e2e\.' "$@" || status=1
  exit $status
else
  # The thread sanitizer does not know libgomp's barriers, so one thread computes, and what compares numbers of threads is left
  # out; so is what bounds memory, of which the sanitizer takes a multiple. Open MPI's TCP plug-in takes two locks in either order
  # while it starts. Addresses must be free, which kernels with much address randomisation do not promise.
  suppressions=$build/tsan-suppressions.txt
  echo 'deadlock:mca_btl_tcp.so' >"$suppressions"
  export TSAN_OPTIONS="halt_on_error=1:suppressions=$PWD/$suppressions"
  export GTEST_FILTER='-*EveryThreadCount*:*PassesThroughAStagingBuffer*'
  pattern=$(tr -s ' \n' '|' <<<"$threaded" | sed 's/|$//; s/\./\\./g')
  OMP_NUM_THREADS=1 setarch -R ctest --test-dir "$build" --output-on-failure -R "^($pattern)(\.|$)" "$@"
fi
