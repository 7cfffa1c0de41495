#!/usr/bin/env bash
# Faults on purpose (BRAID_FAULT): what the guard of the numerics, the comparison of replicas, the watchdog and a resume make of them.
source "$(dirname "$0")/common.sh" "$@"

common=(precision=fp32 run.steps=12 checkpoint.interval_steps=5 eval.interval_steps=0)
train 2 "$WORK/golden" "${common[@]}"
same_state() { same_numbers "$WORK/golden" "$1" "$2"; "$BRAID" ckpt diff "$WORK/golden" "$1" >/dev/null || fail "$2: other weights"; }
with_fault() {  # with_fault FAULT COMMAND...
  local fault=$1
  shift
  BRAID_FAULT=$fault "$@"
}
expect_error 2 "BRAID_FAULT: there is no site 'fwd'" with_fault 'site=fwd,do=kill' "$BRAID" train "$TINY" "run.dir=$WORK/bad"
expect_error 2 'BRAID_FAULT: do=explode is unknown' with_fault 'site=data,do=explode' "$BRAID" train "$TINY" "run.dir=$WORK/bad"

# G1: a loss that is not finite once is computed again, and the run is the one without the fault
with_fault 'site=loss,rank=1,nth=7,do=nan' train 2 "$WORK/once" "${common[@]}"
same_state "$WORK/once" "a transient fault"
grep -q '"event": *"transient_fault"' "$WORK/once/events.jsonl" || fail "the transient fault is not recorded"
pass "G1: one loss that is not finite changes no bit"
# twice: the step is left out, and only it
with_fault 'site=loss,rank=1,nth=7,do=inf;site=loss,rank=1,nth=8,do=inf' train 2 "$WORK/twice" "${common[@]}"
grep -q '"event": *"skipped_step"' "$WORK/twice/events.jsonl" || fail "the step that was left out is not recorded"
[ "$(grep -c '"train/loss_lm": null' "$WORK/twice/metrics.jsonl")" = 1 ] || fail "not one step without a loss"
diff <(numbers "$WORK/golden" | head -6) <(numbers "$WORK/twice" | head -6) >/dev/null || fail "steps before it changed"
pass "G1: a step that is not finite twice is left out"
expect_error 6 'step 9: the loss is not finite .* also when computed again; no update was applied, and 3 of the last 9 steps' \
  with_fault 'site=loss,rank=1,nth=7,every=yes,do=nan;' mpirun -n 2 "$BRAID" train "$TINY" "run.dir=$WORK/always" "${common[@]}"
"$BRAID" ckpt diff "$WORK/golden/checkpoints/step-000000005" "$WORK/always/checkpoints/step-000000005" >/dev/null || fail "step 5 changed"
pass "G1: the third such step in a row ends the run, and nothing was applied"

# a step that takes more scratch than the plan knows: said, and nothing else of it; no step of the runs before did
! grep -q scratch_grew "$WORK"/*/events.jsonl || fail "a step of a run took more scratch than planned"
with_fault 'site=scratch,nth=3,do=flip' train 2 "$WORK/scratch" "${common[@]}"
[ "$(grep -c '^WARNING: step 3 took 0.[0-9]* GiB of scratch beside what was planned, ' "$WORK/scratch.log")" = 1 ] &&
  [ "$(grep -c '"event": *"scratch_grew"' "$WORK/scratch/events.jsonl")" = 1 ] || { cat "$WORK/scratch.log" >&2; fail "more scratch than planned is not said once"; }
same_state "$WORK/scratch" "scratch that grew"
pass "scratch that grows beyond the plan is said once"

# G3: a flipped bit that makes a loss stand out from the last 128: computed again, and the run is the one without it
long=(precision=fp32 run.steps=136 checkpoint.interval_steps=130 eval.interval_steps=0 schedule.kind=constant train.seq_length=32 train.micro_batch_size=4)
train 2 "$WORK/long" "${long[@]}"
with_fault 'site=loss,rank=1,nth=133,do=flip=55' train 2 "$WORK/bit" "${long[@]}"
grep -q 'step 133: the loss .* is more than 6 standard deviations .*; it is computed again' "$WORK/bit.log" || fail "the flipped bit is not seen"
grep -q '"event": *"transient_fault".*the second result was another one' "$WORK/bit/events.jsonl" || fail "the flipped bit is not recorded"
same_numbers "$WORK/long" "$WORK/bit" "a flipped bit"
"$BRAID" ckpt diff "$WORK/long" "$WORK/bit" >/dev/null || fail "a flipped bit: other weights"
pass "G3: a loss that stands out once is computed again, and changes no bit"
# G5: the same twice is the data's (here: of a fault that comes twice), and applied; the losses before it are those in the checkpoint
from_130() { cp -r "$WORK/long" "$1"; rm -r "$1/checkpoints/step-000000136"; }
from_130 "$WORK/data"
with_fault 'site=loss,rank=1,nth=3,do=flip=55;site=loss,rank=1,nth=4,do=flip=55' train 2 "$WORK/data" "${long[@]}" --resume
grep -q 'the same comes out again: .* the update is applied' "$WORK/data.log" || fail "a spike of the data is not told"
grep -q '"event": *"spike".*"the loss ' "$WORK/data/events.jsonl" || fail "a spike is not recorded"
diff <(numbers "$WORK/long" | sed 133d | head -135) <(numbers "$WORK/data" | sed 133d | head -135) >/dev/null || fail "a spike of the loss alone changes the weights"
pass "G5: a loss that stands out twice is recorded, and the update applied"

# G5 with run.rewind_steps: the run goes back and leaves out what it used since; killed before its next checkpoint it does so again; the
# same comes out where data.left_out says so from the begin
from_130 "$WORK/back"
with_fault 'site=loss,rank=1,nth=3,do=flip=55;site=loss,rank=1,nth=4,do=flip=55;site=step.begin,rank=0,nth=6,do=kill' \
  mpirun -n 2 "$BRAID" train "$TINY" "run.dir=$WORK/back" "${long[@]}" run.rewind_steps=2 --resume >"$WORK/back.log" 2>&1 && fail "the run was not killed"
with_fault 'site=loss,rank=1,nth=3,do=flip=55;site=loss,rank=1,nth=4,do=flip=55' train 2 "$WORK/back" "${long[@]}" run.rewind_steps=2 --resume
[ "$(grep -c '"event": *"went_back".*to step 130; 24 samples are left out' "$WORK/back/events.jsonl")" = 2 ] || { cat "$WORK/back/events.jsonl" >&2; fail "the run did not go back, twice"; }
cp -r "$WORK/long" "$WORK/without"
train 2 "$WORK/without" "${long[@]}" --resume-from "$WORK/without/checkpoints/step-000000130" 'data.left_out=[{after_step: 130, rows: 24}]'
same_numbers "$WORK/without" "$WORK/back" "gone back, and samples left out from the begin"
"$BRAID" ckpt diff "$WORK/without" "$WORK/back" >/dev/null || fail "gone back: other weights"
for run in back without; do
  "$BRAID" data replay "$WORK/$run" --step 130 --steps 2 | tail -n +2 | cut -f 2,3,6- | diff - <("$BRAID" data replay "$WORK/long" --step 130 --steps 5 | awk '$1 == 130 || $1 == 134' | cut -f 2,3,6-) >/dev/null ||
    fail "data replay of $run"
done
pass "G5: a run goes back and leaves out the samples used since, with the same bits as one that never had them"
# G1 with it: the third step in a row without an update; for ever, it is tried three times
three='site=loss,nth=7,do=nan'; for n in 8 9 10 11 12; do three+=";site=loss,nth=$n,do=nan"; done
with_fault "$three" train 1 "$WORK/third" "${common[@]}" run.rewind_steps=1
train 1 "$WORK/third-without" "${common[@]}" 'data.left_out=[{after_step: 5, rows: 32}]'
same_numbers "$WORK/third-without" "$WORK/third" "gone back after three steps without an update"
expect_error 6 'step 8: the loss is not finite .*, and 3 of the last 8 steps' \
  with_fault 'site=loss,nth=6,every=yes,do=nan' mpirun -n 1 "$BRAID" train "$TINY" "run.dir=$WORK/ever" "${common[@]}" run.rewind_steps=1
[ "$(grep -c '"event": *"went_back".*to step 5; ' "$WORK/ever/events.jsonl")" = 3 ] || fail "not tried three times"
expect_error 2 'data.left_out leaves out 8 rows after step 2, but the run is after step 12 already and did not' \
  "$BRAID" train "$TINY" "run.dir=$WORK/golden" "${common[@]}" run.steps=16 'data.left_out=[{after_step: 2, rows: 8}]' --resume
pass "G1: the third step without an update goes back, and no more than three times to the same place"

# B21: replicas
train 2 "$WORK/compared" "${common[@]}" run.check_replicas_interval=1 parallel.expert=1
with_fault 'site=optim,rank=1,nth=3,do=flip' \
  expect_error 6 'copies of weights differ: model.embed_tokens.weight on rank 1 is not what it is on rank 0' \
  mpirun -n 2 "$BRAID" train "$TINY" "run.dir=$WORK/flipped" "${common[@]}" run.check_replicas_interval=1
grep -q '"step":3' "$WORK/flipped/errors.jsonl" || fail "the error record does not name the step"
pass "B21: a flipped bit of one replica is found in its step"

# A1, A4, A8: killed in a collective, before a save, in a load; a segmentation fault: the relaunched run is the one that was not
for fault in 'site=comm.all_reduce,rank=1,nth=40,do=kill' 'site=save,rank=0,nth=2,do=kill' 'site=step.begin,rank=1,nth=7,do=segv'; do
  dir=$WORK/killed
  rm -rf "$dir"
  status=0
  with_fault "$fault" mpirun -n 2 "$BRAID" train "$TINY" "run.dir=$dir" "${common[@]}" >"$dir.log" 2>&1 || status=$?
  [ $status != 0 ] || fail "$fault did not happen"
  status=0
  with_fault 'site=load,rank=1,do=kill' mpirun -n 2 "$BRAID" train "$TINY" "run.dir=$dir" "${common[@]}" --resume=auto >"$dir.log" 2>&1 || status=$?
  train 2 "$dir" "${common[@]}" --resume=auto
  same_state "$dir" "$fault"
  pass "$fault, then killed in the load: the same bits after a relaunch"
done

# A9: hangs by fault
hang() {  # hang FAULT PATTERN
  expect_error 5 "$2" with_fault "$1" mpirun -n 2 "$BRAID" train "$TINY" "run.dir=$WORK/hang" "${common[@]}" run.steps=1000000 run.hang_timeout=5
}
aside hang 'site=step.begin,rank=1,nth=6,do=hang' 'rank 1 of .* does nothing for [0-9]+ s: phase step, step 6, after [a-z_]+ number [0-9]+; rank 0 waits in'
aside hang 'site=comm.all_reduce,rank=1,nth=60,do=hang' 'rank 1 of .* in all_reduce number [0-9]+; rank 0 waits in all_reduce number'
aside hang 'site=save,rank=0,nth=1,do=hang' 'rank 0 of .* does nothing for [0-9]+ s: phase save, step 5'
aside hang 'site=data,rank=1,nth=4,do=stop' 'rank 1 of .* is stopped, by SIGSTOP or a debugger: phase data, step 4'
asides_end

# A11: a rank that calls what the others do not is named at once, not after run.hang_timeout
begin=$SECONDS
expect_error 5 'the ranks of .* call different collectives: number [0-9]+ of their group is [a-z_]+ of 2 ranks on rank 0 and barrier of 2 ranks on rank 1: phase [a-z]+, step 6' \
  with_fault 'site=step.begin,rank=1,nth=6,do=flip' mpirun -n 2 "$BRAID" train "$TINY" "run.dir=$WORK/parted" "${common[@]}" run.hang_timeout=20
[ $((SECONDS - begin)) -lt 20 ] || fail "ranks that have parted are named after $((SECONDS - begin)) s"

# A10: a rank that is slower than the others is named, and where time is left to it
with_fault 'site=step.begin,rank=1,every=yes,do=delay=0.15' train 2 "$WORK/slow" "${common[@]}" run.steps=21
grep -qE 'note: rank 1 takes [0-9.]+ ms of its own a step, the median of all ranks is [0-9.]+ ms' "$WORK/slow.log" || fail "a slow rank is not named"
grep -q '"event": *"slow_rank".*"rank 1 takes' "$WORK/slow/events.jsonl" || fail "a slow rank is not recorded"
grep -q '"perf/slowest_rank": 1, "perf/slowest_rank_ms": [0-9.]*, "perf/median_rank_ms"' "$WORK/slow/metrics.jsonl" || fail "a slow rank is not in the metrics"
pass "A10: a slow rank is named"

# H4: one character for ever, so one state of all tokens, and one choice of all routers
yes aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa | head -4000 >"$WORK/same.txt" || true
train 1 "$WORK/same" "${common[@]}" run.steps=24 "data.sources=[{name: same, text: [$WORK/same.txt]}]"
grep -qE 'WARNING: the router of layer_0[0-9] has collapsed: for 20 steps more than 90 % of its choices went to 2 of 8 experts' "$WORK/same.log" ||
  { tail -1 "$WORK/same/expert_loads.jsonl" >&2; fail "routers that have collapsed are not told of"; }
grep -q '"event": *"router_collapse"' "$WORK/same/events.jsonl" || fail "routers that have collapsed are not recorded"
! grep -q 'router_collapse' "$WORK/long/events.jsonl" "$WORK/golden/events.jsonl" || fail "a run that is well is told of"
pass "H4: routers that have collapsed are told of, and others not"

# resume: what may differ on purpose, and only then
resumed=(precision=fp32 run.steps=14 checkpoint.interval_steps=5 eval.interval_steps=0)
again() { rm -rf "$WORK/again"; cp -r "$WORK/golden" "$WORK/again"; }
resume() { mpirun -n 2 "$BRAID" train "$TINY" "run.dir=$WORK/again" "${resumed[@]}" --resume "$@"; }
again
expect_error 4 'optimizer.lr was 0.001 and is 0.002 \(on purpose: --override optimizer.lr\)' resume optimizer.lr=2e-3
expect_error 4 'balance.loss_weight was' resume optimizer.lr=2e-3 balance.loss_weight=0.5 --override optimizer.lr
expect_error 2 'override model.rope_theta: only optimizer.lr' resume --override model.rope_theta
resume optimizer.lr=2e-3 train.global_batch_size=16 --override optimizer.lr --override train.global_batch_size >"$WORK/again.log" 2>&1 ||
  { cat "$WORK/again.log" >&2; fail "a resume with overrides"; }
grep -q '{"step": 12, "override/train.global_batch_size": 16.0, "override/optimizer.lr": 0.002}' "$WORK/again/metrics.jsonl" || fail "the change is not marked in the metrics"
grep -q '"changed".*optimizer.lr from' "$WORK/again/events.jsonl" || fail "the change is not in the list of events"
pass "learning rate and batch size change on purpose, and that is recorded"
# 12 steps of 8 rows and 2 of 16 are the first 128 rows of the run, each once and in their order
"$BRAID" data replay "$WORK/again" --step 1 --steps 14 | tail -n +2 | cut -f 3- >"$WORK/changed.rows"
"$BRAID" data replay "$TINY" "run.dir=$WORK/again" run.steps=16 --step 1 --steps 16 | tail -n +2 | cut -f 3- | diff - "$WORK/changed.rows" >/dev/null ||
  fail "a batch of another size begins elsewhere in the data"
tokens=$(sed -n 's/.*"step": *14,.*"data\/fixed\/tokens": *\([0-9]*\).*/\1/p' "$WORK/again/metrics.jsonl")
[ "$tokens" = $((128 * 64)) ] || fail "metrics count $tokens tokens of 128 rows of 64"
resume run.steps=15 optimizer.lr=2e-3 train.global_batch_size=16 >"$WORK/again.log" 2>&1 || fail "a resume behind the change"
grep -q '"batch_sizes": \[\[0,8\],\[12,16\]\]' "$WORK/again/checkpoints/step-000000015/MANIFEST.json" || fail "the change is not in the checkpoint"
# and what it trained on: with weights that stay, the loss of 16 rows is the mean of those of the next 8 and the 8 behind them
losses=
for rows in 8 16; do
  again
  resume optimizer.lr=0 "train.global_batch_size=$rows" --override optimizer.lr --override train.global_batch_size >"$WORK/again.log" 2>&1
  losses+=$(grep -oE '"step": 1[34],.*"train/loss_lm": [0-9.]+' "$WORK/again/metrics.jsonl" | sed 's/.* //' | tr '\n' ' ')
done
awk -v losses="$losses" 'BEGIN { split(losses, l, " "); d = l[3] - (l[1] + l[2]) / 2; exit !(l[4] > 0 && d < 1e-6 && d > -1e-6) }' ||
  fail "a batch of another size has other rows: losses $losses"
pass "a batch of another size goes on with the next sample"
train 2 "$WORK/by-micro" "${common[@]}" balance.scope=micro_batch train.micro_batch_size=2
expect_error 4 'train.micro_batch_size was 2 and is 1, which the balance loss counts by' \
  mpirun -n 2 "$BRAID" train "$TINY" "run.dir=$WORK/by-micro" "${resumed[@]}" balance.scope=micro_batch train.micro_batch_size=1 --resume
train 2 "$WORK/running" "${common[@]}" balance.counts=running
expect_error 4 'the number of ranks was 2 and is 1, which the balance loss counts by' \
  "$BRAID" train "$TINY" "run.dir=$WORK/running" "${resumed[@]}" balance.counts=running --resume
pass "a layout that changes what the balance loss counts is refused"
echo "$checks passed, 0 failed"
