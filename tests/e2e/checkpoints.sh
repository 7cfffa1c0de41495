#!/usr/bin/env bash
# What a run does with its checkpoints when something is wrong with them, and the tools for them.
source "$(dirname "$0")/common.sh" "$@"

common=(schedule.kind=constant checkpoint.interval_steps=4 checkpoint.keep=0 eval.interval_steps=0 train.micro_batch_size=2)
train 2 "$WORK/straight" run.steps=16 "${common[@]}"

# A branch: gone on from an older checkpoint and started again, it goes on with itself, not with what was left.
run=$WORK/branch
train 2 "$run" run.steps=12 "${common[@]}"
train 2 "$run" run.steps=8 "${common[@]}" --resume-from "$run/checkpoints/step-000000004"
grep -q "set aside as .*/.abandoned-step-000000012" "$run.log" || fail "the branch that was left is not named"
train 2 "$run" run.steps=12 "${common[@]}" --resume
grep -q 'resumed after step 8 ' "$run.log" || fail "the branch was not gone on with"
"$BRAID" ckpt diff "$WORK/straight/checkpoints/step-000000012" "$run" >/dev/null || fail "a branch: other weights"
pass "a branch goes on with itself, and has the same bits"

expect_error 2 "$run: is a run folder, expected one of its checkpoints, such as $run/checkpoints/step-000000012\$" \
  mpirun -n 2 "$BRAID" train "$TINY" "run.dir=$run" run.steps=16 "${common[@]}" --resume-from "$run"

# Damage: the newest checkpoint is passed over loudly, or refused.
damage() { printf '\x5a' | dd of="$1" bs=1 seek=$(($(stat -c %s "$1") - 3)) conv=notrunc status=none; }
damage "$run/checkpoints/step-000000012/rank-00001.safetensors"
expect_error 4 'step-000000012/rank-00001.safetensors: tensor .* do not match their digest' \
  mpirun -n 2 "$BRAID" train "$TINY" "run.dir=$run" run.steps=16 "${common[@]}" --resume=strict
train 2 "$run" run.steps=16 "${common[@]}" --resume
grep -q 'WARNING: the checkpoint .*step-000000012 is damaged and passed over' "$run.log" || fail "no warning"
grep -q 'resumed after step 8 ' "$run.log" || fail "the checkpoint before the damaged one was not taken"
same_numbers "$WORK/straight" "$run" "after a damaged checkpoint"
"$BRAID" ckpt diff "$WORK/straight" "$run" >/dev/null || fail "after a damaged checkpoint: other weights"
pass "a damaged checkpoint is passed over loudly for the one before it, with the same bits in the end"

# A disk that takes no checkpoints: the run goes on until the third in a row, or ends at once if it is told to. The limit holds for all
# files, so ranks talk through the loopback device: what Open MPI 5 shares between them is a larger file.
full() {
  local status=0
  OMPI_MCA_btl=self,tcp OMPI_MCA_btl_tcp_if_include=lo mpirun -n 2 bash -c 'trap "" XFSZ; ulimit -f 1200; exec "$@"' full "$BRAID" train "$TINY" "run.dir=$1" run.steps=16 \
    "${common[@]}" "${@:2}" --quiet >"$1.log" 2>&1 || status=$?
  [ $status = 9 ] || { cat "$1.log" >&2; fail "exit code $status instead of 9 on a full disk"; }
}
full "$WORK/full"
[ "$(grep -c 'could not be saved, the run goes on' "$WORK/full.log")" = 2 ] || fail "not two warnings before the end, of a run that is --quiet"
[ "$(grep -c '"event":"save_failed",.*of step \(4\|8\) could not be saved: ' "$WORK/full/events.jsonl")" = 2 ] || fail "events.jsonl does not tell of two failed saves"
grep -q 'the checkpoint of step 12 could not be saved, the 3rd in a row: .*rank-0000.*bytes needed' "$WORK/full.log" ||
  { cat "$WORK/full.log" >&2; fail "the third failure does not say what is wrong"; }
pass "two failed saves are reported, the third ends the run with 9"
full "$WORK/full-stop" checkpoint.on_failure=stop
grep -q 'the checkpoint of step 4 could not be saved: ' "$WORK/full-stop.log" || fail "on_failure=stop goes on"
pass "checkpoint.on_failure=stop ends the run at the first"

# A kill while saving leaves something behind, which the next start clears away.
mkdir -p "$run/checkpoints/.tmp-step-000000020" "$run/checkpoints/.trash-step-000000002"
train 2 "$run" run.steps=16 "${common[@]}" --resume
[ -z "$(find "$run/checkpoints" -name '.t*')" ] || fail "left-overs are still there after a start"
pass "left-overs are cleared at the start"

# The tools.
"$BRAID" ckpt ls "$run" | grep -q '^step-000000016 .* newest$' || fail "ckpt ls does not show the newest"
"$BRAID" ckpt ls "$run" --json | python3 -c '
import json, sys
rows = {row["name"]: row for row in json.load(sys.stdin)["checkpoints"]}
assert rows["step-000000016"]["state"] == "newest" and rows["step-000000016"]["ranks"] == 2, rows
assert rows[".corrupt-step-000000012"]["state"] == "for gc" and rows[".abandoned-step-000000012"]["state"] == "for gc", rows
' || fail "ckpt ls --json"
"$BRAID" ckpt verify "$run" --deep --json | python3 -c '
import json, sys
answer = json.load(sys.stdin)
assert answer["ok"] and answer["step"] == 16 and answer["rms"]["weights/lm_head.weight"] > 0, answer
' || fail "ckpt verify --json"
expect_error 4 'tensor .* do not match their digest' "$BRAID" ckpt verify "$run/checkpoints/.corrupt-step-000000012"
"$BRAID" ckpt reshard --from "$run" --to "$WORK/three" --ranks 3 >/dev/null
"$BRAID" ckpt diff "$run" "$WORK/three" >/dev/null || fail "resharded: other state"
[ "$(ls "$WORK/three" | wc -l)" = 4 ] || fail "resharded: not three files and a manifest"
expect_error 2 'step-000000016/in: lies in the checkpoint that is read' "$BRAID" ckpt reshard --from "$run" --to "$run/checkpoints/step-000000016/in" --ranks 3
expect_error 2 'keeps its own checkpoints; --resume-from takes' "$BRAID" ckpt reshard --from "$run" --to "$run/checkpoints/step-000000020" --ranks 3
"$BRAID" ckpt verify "$run" >/dev/null || fail "the checkpoint that was to be resharded into itself"
"$BRAID" ckpt diff "$WORK/straight/checkpoints/step-000000012" "$run" --json >"$WORK/diff.json" && fail "step 12 = step 16"
python3 -c '
import json, sys
answer = json.load(open(sys.argv[1]))
assert answer["beyond"] > 0 and answer["differences"][0]["first_element"] >= 0, answer
' "$WORK/diff.json" || fail "ckpt diff --json"
"$BRAID" ckpt gc "$run" --keep 1 --dry-run | grep -q 'would remove .*step-000000004$' || fail "ckpt gc --dry-run"
"$BRAID" ckpt gc "$run" --keep 1 >/dev/null
[ "$(ls -A "$run/checkpoints" | tr '\n' ' ')" = 'LATEST step-000000016 ' ] || fail "ckpt gc left $(ls -A "$run/checkpoints")"
pass "ckpt ls, verify, diff, reshard and gc"

# The save that a run ends with must be there: a run without it has not finished
unsaved=$WORK/unsaved
for async in true false; do
  rm -rf "$unsaved"
  train 0 "$unsaved" run.steps=2 eval.interval_steps=0 checkpoint.interval_steps=1
  expect_error 9 'the last checkpoint of the run could not be saved: .*File too large' bash -c 'ulimit -f 200; exec "$@"' - \
    "$BRAID" train "$TINY" "run.dir=$unsaved" run.steps=4 eval.interval_steps=0 checkpoint.interval_steps=2 checkpoint.async=$async --resume
  ! cat "$WORK/out" "$WORK/err" | grep 'the run goes on' || fail "a run that ends says that it goes on"
done
pass "a run whose last save fails ends with 9"

# Weights alone: no run goes on from them, everything else takes them.
alone=$WORK/alone
train 2 "$alone" run.steps=8 "${common[@]}" checkpoint.contents=weights
grep -q 'checkpoint.contents is weights: no --resume' "$alone.log" || fail "nothing says that no resume is possible"
grep -qE 'saved .*step-000000008: wrote [0-9.]+ MB in [0-9.]+ s \([0-9.]+ GB/s\), read back in' "$alone.log" || fail "a save does not tell how it went"
expect_error 4 'step-000000008: holds weights alone.*init.from=.*step-000000008$' \
  mpirun -n 2 "$BRAID" train "$TINY" "run.dir=$alone" run.steps=16 "${common[@]}" --resume
status=0
"$BRAID" train "$TINY" "run.dir=$WORK/alone-stopped" run.steps=1000000 run.time_limit=1 "${common[@]}" checkpoint.contents=weights >"$WORK/alone-stopped.log" 2>&1 || status=$?
[ $status = 76 ] && grep -q 'its weights are saved, init.from starts' "$WORK/alone-stopped.log" || { tail -3 "$WORK/alone-stopped.log" >&2; fail "weights alone, stopped on request: exit code $status instead of 76"; }
"$BRAID" ckpt ls "$alone" | grep -q '^step-000000008 .* newest, weights alone$' || fail "ckpt ls does not say what it holds"
"$BRAID" ckpt verify "$alone" --deep >/dev/null
"$BRAID" ckpt reshard --from "$alone" --to "$WORK/alone-3" --ranks 3 >/dev/null
"$BRAID" ckpt diff "$alone" "$WORK/alone-3" >/dev/null || fail "resharded weights: other bits"
all=$WORK/straight/checkpoints/step-000000008
for from in "$alone" "$all"; do
  "$BRAID" eval "$from" --sequences 8 >"$WORK/eval-$(basename "$from")"
  "$BRAID" generate "$from" --prompt "the " --tokens 8 --temperature 0 >"$WORK/text-$(basename "$from")"
  "$BRAID" ckpt export --from "$from" --to "$WORK/hf-$(basename "$from")" >/dev/null
done
tail -n +2 "$WORK/eval-alone" | cmp -s - <(tail -n +2 "$WORK/eval-step-000000008") || fail "weights alone: another held-out loss"
cmp -s "$WORK/text-alone" "$WORK/text-step-000000008" || fail "weights alone: another text"
cmp -s "$WORK/hf-alone/model.safetensors" "$WORK/hf-step-000000008/model.safetensors" || fail "weights alone: another export"
train 1 "$WORK/from-alone" run.steps=2 "${common[@]}" "init.from=$alone"
train 1 "$WORK/from-all" run.steps=2 "${common[@]}" "init.from=$all"
same_numbers "$WORK/from-all" "$WORK/from-alone" "begun from weights alone"
grep -qE 'loaded .*step-000000008: read [0-9.]+ MB in [0-9.]+ s \([0-9.]+ GB/s\)' "$WORK/from-alone.log" || fail "a load does not tell how it went"
pass "weights alone: refused by --resume, taken by init.from, eval, generate and ckpt, with the same bits"
echo "$checks passed, 0 failed"
