#!/usr/bin/env bash
# Disks that are slow, stand still or fail while a training reads its shards, or any other command its files: the file is
# named, by whichever rank reads it.
source "$(dirname "$0")/common.sh" "$@"
faulty=$4
text=$WORK/text/text.txt
"$BRAID" data tokenize --tokenizer bytes --out "$WORK/shards" --shard-tokens 60000 "$text" >/dev/null 2>&1
run=(data.sources="[{name: fixed, dataset: $WORK/shards}]" precision=fp32 run.steps=12 checkpoint.interval_steps=5 eval.interval_steps=0 data.prefetch_steps=1)
with_disk() {  # with_disk RANK NTH DEED COMMAND...: from its NTH call that opens or reads a shard on
  BRAID_CALLS="rank=$1,on=read,where=/shards/shard-,nth=$2,do=$3" "${@:4}"
}
two_ranks() { mpirun -n 2 -x LD_PRELOAD="$faulty" "$BRAID" train "$TINY" "${run[@]}" "$@"; }
train 2 "$WORK/golden" "${run[@]}"

waits() {  # the reads of a rank stand for seven seconds, and go on: told of, and the same bits
  with_disk 1 70 wait=7 two_ranks "run.dir=$WORK/waits" >"$WORK/waits.log" 2>&1 || { cat "$WORK/waits.log" >&2; fail "a slow disk ends the run"; }
  grep -qE "^WARNING: rank 1 of .*, step [0-9]+: /.*/shards/shard-[0-9]+.h5: no answer of its disk for [5-7] s: read [0-9]+ bytes at byte [0-9]+$" "$WORK/waits.log" ||
    { cat "$WORK/waits.log" >&2; fail "a slow disk is not named"; }
  grep -qE "^WARNING: rank 1 of .*/shard-[0-9]+.h5: its disk answered again within [0-9]+ s$" "$WORK/waits.log" || fail "the end of a wait is not told"
  [ "$(grep -c '"code":0,"kind":"slow disk","rank":1,.*"file":"[^"]*/shard-[0-9]*.h5","message":' "$WORK/waits/errors.jsonl")" -ge 2 ] ||
    { cat "$WORK/waits/errors.jsonl" >&2; fail "errors.jsonl does not name a slow disk"; }
  same_numbers "${1}" "$WORK/waits" "a slow disk"
}
stands() {  # for ever: the watchdog names the file
  local status=0
  with_disk 1 70 wait=100 two_ranks "run.dir=$WORK/stands" run.hang_timeout=4 >"$WORK/stands.log" 2>&1 || status=$?
  [ $status = 5 ] && grep -qE "^braid: rank 1 of .* does nothing for [0-9]+ s: phase data, step [0-9]+, .*, waits for a disk for [0-9]+ s: .*/shard-[0-9]+.h5, read [0-9]+ bytes at byte [0-9]+; rank 0 waits in " \
    "$WORK/stands.log" || { cat "$WORK/stands.log" >&2; fail "a disk that stands still is not named ($status)"; }
}
starts() {  # before there is a step
  local status=0
  with_disk 0 1 wait=100 two_ranks "run.dir=$WORK/starts" run.hang_timeout=4 >"$WORK/starts.log" 2>&1 || status=$?
  [ $status = 5 ] && grep -qE "^braid: rank 0 of .* does nothing for [0-9]+ s: phase start, .*, waits for a disk for [0-9]+ s: .*/shard-[0-9]+.h5, (open|read .*); rank 1 waits in " \
    "$WORK/starts.log" || { cat "$WORK/starts.log" >&2; fail "a disk that stands still in the start is not named ($status)"; }
}
tells() {  # tells NTH FILE WHAT COMMAND...: the same of other commands, whose NTH call for such a file takes seven seconds
  local ranks="" log=$WORK/tells.log
  [ "$4" != mpirun ] || ranks='rank 0 of [^ ]*: '
  BRAID_CALLS="rank=0,on=read,where=$2,nth=$1,do=wait=7" "${@:4}" >"$log" 2>&1 || { cat "$log" >&2; fail "a slow disk ends ${*:4}"; }
  grep -qE "^WARNING: $ranks/.*$2[^ ]*: no answer of its disk for [5-7] s: $3$" "$log" &&
    grep -qE "^WARNING: $ranks/.*$2[^ ]*: its disk answered again within [0-9]+ s$" "$log" || { cat "$log" >&2; fail "${*:4} names no slow disk"; }
}
alone=(env "LD_PRELOAD=$faulty" "$BRAID")
aside waits "$WORK/golden"
aside stands
aside starts
aside tells 1 /shards/shard- 'open|read .*' "${alone[@]}" eval "$WORK/golden"
aside tells 9 /shards/shard- 'read [0-9]+ bytes at byte [0-9]+' mpirun -n 2 -x LD_PRELOAD="$faulty" -x BRAID_CALLS "$BRAID" eval "$WORK/golden"
aside tells 5 /golden/checkpoints/ 'open|read .*' "${alone[@]}" generate "$WORK/golden" --tokens 1
aside tells 3 /shards/shard- 'read [0-9]+ bytes at byte [0-9]+' "${alone[@]}" data verify "$WORK/shards"
aside tells 1 /text/text.txt open "${alone[@]}" data tokenize --tokenizer bytes --out "$WORK/again" "$text"
aside tells 2 /text/text.txt 'read [0-9]+ bytes at byte 0' "${alone[@]}" data demo --out "$WORK/demo" --text "$text"
aside tells 3 /shards/shard-00000.h5 read "${alone[@]}" data convert --from "$WORK/shards/shard-00000.h5" --to "$WORK/converted" --tokenizer bytes
asides_end
pass "a slow disk is told of and changes no bit; one that stands still is named, also in the start, and by other commands"

expect_error 3 "^braid: rank 1: .*/shard-[0-9]+.h5: cannot read [0-9]+ bytes at byte [0-9]+: Input/output error" with_disk 1 70 5,times=1000 two_ranks "run.dir=$WORK/fails"
with_disk 1 70 5,times=2 two_ranks "run.dir=$WORK/twice" >"$WORK/twice.log" 2>&1 || { cat "$WORK/twice.log" >&2; fail "two errors of a disk end the run"; }
same_numbers "$WORK/golden" "$WORK/twice" "a disk that fails twice"
pass "a disk that fails ends the run with 3 and names the shard; one that fails twice changes no bit"
echo "$checks passed, 0 failed"
