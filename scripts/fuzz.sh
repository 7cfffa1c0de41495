#!/usr/bin/env bash
# Feeds libFuzzer's targets on all cores.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
  cat <<'TEXT'
Usage: scripts/fuzz.sh [--runs N] [--seconds S] [--cores N] [--bin FOLDER] [TARGET ...]
Builds the preset "fuzz" (clang) and runs every target N times in all (default 10000000), spread over the cores, but at most S seconds
(default 3600) each. Says executions and executions a second. build/fuzz/found/TARGET keeps what is found (exit code 1 then), the inputs
that reach something new, and "executions", a line a call: a later call goes on where they end.
  --cores N      takes N cores, not all
  --bin FOLDER   takes built programs from there, and builds nothing
TEXT
}

runs=10000000 seconds=3600 bin= cores=$(usable_cores)
while [[ ${1:-} == -* ]]; do
  case $1 in --runs | --seconds | --bin) [ $# -ge 2 ] || die "$1 needs a value" ;; esac
  case $1 in
    --runs) runs=$2; shift 2 ;;
    --seconds) seconds=$2; shift 2 ;;
    --cores) cores=$2; shift 2 ;;
    --bin) bin=$(realpath "$2"); shift 2 ;;
    -h | --help) usage; exit 0 ;;
    *) usage >&2; exit 2 ;;
  esac
done
targets=("$@")
[ $# -gt 0 ] || targets=(shard foreign_tokens dataset_json tokenizer_json bpe_encoder)
if [ -z "$bin" ]; then
  cmake --preset fuzz >/dev/null
  cmake --build --preset fuzz --parallel "$cores"
  bin=build/fuzz/tests/fuzz
fi
bin=$(realpath "$bin")
export BRAID_SOURCE=$PWD
[ ! -d /dev/shm ] || export TMPDIR=/dev/shm  # a disk makes some targets a hundred times slower
corpus=$PWD/tests/fuzz/corpus
status=0
for target in "${targets[@]}"; do
  folder=$PWD/build/fuzz/found/$target
  mkdir -p "$folder/corpus"
  cd "$folder"
  rm -f log-*
  touch executions
  before=$(awk '{ sum += $1 } END { print sum + 0 }' executions)
  if [ "$before" -ge "$runs" ]; then
    echo "$target: $before executions in all"
    cd - >/dev/null
    continue
  fi
  started=$SECONDS
  for ((core = 0; core < cores; ++core)); do
    "$bin/fuzz_${target}_libfuzzer" -runs=$(((runs - before) / cores + 1)) -seed=$((before + core + 1)) -max_total_time="$seconds" -timeout=60 -reload=60 \
      -rss_limit_mb=2048 corpus "$corpus/$target" >"log-$core" 2>&1 &
  done
  wait
  took=$((SECONDS - started > 0 ? SECONDS - started : 1))
  done_runs=$(sed -n 's/^Done \([0-9]*\) runs.*/\1/p' log-* | awk '{ sum += $1 } END { print sum + 0 }')
  echo "$done_runs $(date -u +%F) $cores cores, $took s" >>executions
  finished=$(cat log-* | grep -c '^Done ' || true)
  findings=$(find . -maxdepth 1 \( -name 'crash-*' -o -name 'timeout-*' -o -name 'oom-*' -o -name 'leak-*' \) | wc -l)
  echo "$target: $done_runs executions on $finished of $cores cores in $took s ($((done_runs / took)) a second)," \
    "$((before + done_runs)) in all, $findings findings in $folder"
  [ "$finished" = "$cores" ] && [ "$findings" = 0 ] || status=1
  cd - >/dev/null
done
exit $status
