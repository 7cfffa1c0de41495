#!/usr/bin/env bash
# Speed and memory of `braid ckpt import` and `export` on a model with random weights, beside the speed at which dd
# writes as many bytes to the same disk and waits for them.
#   scripts/bench_convert.sh BUILD_FOLDER [WORK_FOLDER [NUM_LAYERS [ROUNDS]]]
# Needs a build with tests, GNU time and four times the model's size on the disk of WORK_FOLDER (default /tmp; its
# subfolder is removed at the end). 38 layers, the default, are 4.3 GB. Sources are dropped from the page cache first.
build=$(realpath "${1:?usage: bench_convert.sh BUILD_FOLDER [WORK_FOLDER [NUM_LAYERS [ROUNDS]]]}")
base=$(realpath "${2:-/tmp}")
source "$(dirname "$0")/common.sh"
layers=${3:-38}
rounds=${4:-3}  # medians are compared, as other users of the disk come and go
work=$(mktemp -d "$base/bench_convert.XXXXXX")
trap 'rm -rf "$work"' EXIT

drop_from_cache() { sync "$1"/*; for file in "$1"/*; do dd if="$file" iflag=nocache count=0 status=none; done; }

# Bytes per second, in MB/s, of dd alone.
disk_speed() {
  local start stop
  start=$(date +%s%N)
  dd if=/dev/zero of="$work/zeros" bs=8M count=$(((bytes + 8388607) / 8388608)) conv=fsync status=none
  stop=$(date +%s%N)
  rm "$work/zeros"
  awk "BEGIN { printf \"%.0f\", $bytes * 1e3 / ($stop - $start) }"
}

# measure NAME SOURCE RESULT COMMAND...: one line, and the speeds in files of that name
measure() {
  local name=$1 source=$2 result=$3 disk speed
  shift 3
  disk=$(disk_speed)
  rm -rf "$result"
  drop_from_cache "$source"
  /usr/bin/time -o "$work/time" -f '%e %U %S %M' "$@" >"$work/log" 2>&1 || { cat "$work/log" >&2; die "this failed: $*"; }
  read -r seconds user system peak_kb <"$work/time"
  speed=$(awk "BEGIN { printf \"%.0f\", $bytes / 1e6 / $seconds }")
  echo "$speed" >>"$work/$name.speeds"
  echo "$disk" >>"$work/$name.disk"
  echo "$name: $seconds s ($user user, $system system), $speed MB/s; dd $disk MB/s;" \
       "peak $((peak_kb / 1024)) MiB, $(grep '^memory bound' "$work/log")"
}

median() { sort -n "$1" | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'; }
summary() {
  awk -v name="$1" -v speed="$(median "$work/$1.speeds")" -v disk="$(median "$work/$1.disk")" \
      'BEGIN { printf "%s: median %d MB/s, dd %d MB/s, ratio %.2f\n", name, speed, disk, speed / disk }'
}

say "a model of $layers layers with random weights"
"$build/make_model_folder" "$work/hf" "$layers"
bytes=$(stat -c %s "$work/hf/model.safetensors")
echo "$bytes bytes"
for round in $(seq "$rounds"); do
  say "round $round: braid ckpt import --from hf --to ckpt; braid ckpt export --from ckpt --to out"
  measure import "$work/hf" "$work/ckpt" "$build/braid" ckpt import --from "$work/hf" --to "$work/ckpt"
  measure export "$work/ckpt" "$work/out" "$build/braid" ckpt export --from "$work/ckpt" --to "$work/out"
done
cmp "$work/hf/model.safetensors" "$work/out/model.safetensors" || die "what came out is not what went in"
say "what came out is what went in, byte for byte"
summary import
summary export
