#!/usr/bin/env bash
# What people use around a training: event files, and what the console says.
source "$(dirname "$0")/common.sh" "$@"

# TensorBoard: read by its own loader where that is installed, after a resume from an earlier step than the files have
run=$WORK/run
train 2 "$run" parallel.expert=2 schedule.warmup_steps=1 run.steps=6 log.tensorboard=true eval.interval_steps=3 checkpoint.interval_steps=2
rm -r "$run"/checkpoints/step-*6
train 2 "$run" parallel.expert=2 schedule.warmup_steps=1 run.steps=8 log.tensorboard=true eval.interval_steps=3 checkpoint.interval_steps=2 --resume
[ "$(ls "$run"/tensorboard/events.out.tfevents.* | wc -l)" = 2 ] || fail "there is not one event file for each start"
status=0
"${PYTHON:-python3}" "$SOURCE/tests/e2e/tensorboard_check.py" "$run" >"$WORK/out" 2>"$WORK/err" || status=$?
case $status in
  0) pass "TensorBoard: $(cat "$WORK/out")" ;;
  77) echo "not checked: tensorboard's own loader is not installed here (pip install tensorboard; PYTHON=... names another python3)" ;;
  *) cat "$WORK/out" "$WORK/err" >&2; fail "tensorboard does not read what was written" ;;
esac

# events, and what a longer run does to the learning rate
for event in started finished resumed changed; do
  grep -q "\"event\":\"$event\"" "$run/events.jsonl" || { cat "$run/events.jsonl" >&2; fail "no event $event"; }
done
grep -q 'run.steps from 6 to 8' "$run/events.jsonl" || fail "the change of run.steps is no event"
pass "events.jsonl tells of the start, the resume, what it changed and the end"
grep -q 'run.steps 6 -> 8: the learning rate was .* at step 4, is .* at step 5 and ends at .*; it rises' "$run.log" ||
  { cat "$run.log" >&2; fail "nothing says what more steps do to the learning rate"; }
pass "a longer run says what becomes of the learning rate"

# the console: the table of parameters is in the run folder, losses have four decimals
! grep -q 'model.layers.0.mlp.experts.gate_up_proj' "$run.log" || fail "the parameter table is on the console"
grep -q 'model.layers.0.mlp.experts.gate_up_proj' "$run/parameters.txt" || fail "the parameter table is not in the run folder"
grep -qE 'held-out loss of fixed [0-9]+\.[0-9]{4} \(unigram entropy [0-9]+\.[0-9]{4}\)' "$run.log" || fail "held-out losses do not have four decimals"
pass "the parameter table is in the run folder, held-out losses have four decimals"
echo "$checks passed, 0 failed"
