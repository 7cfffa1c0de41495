#!/usr/bin/env bash
# A run that was killed or stopped and resumed is the run that was not.
source "$(dirname "$0")/common.sh" "$@"

common=(precision=fp32 parallel.expert=2 train.micro_batch_size=2 checkpoint.interval_steps=5 eval.interval_steps=0)
train 2 "$WORK/straight" run.steps=20 "${common[@]}"

# killed: wait until there is a checkpoint and a step behind it, then SIGKILL every rank
killed=$WORK/killed
setsid mpirun -n 2 "$BRAID" train "$TINY" "run.dir=$killed" run.steps=20 "${common[@]}" >"$killed.log" 2>&1 &
job=$!
for _ in $(seq 600); do
  [ -f "$killed/metrics.jsonl" ] && [ "$(grep -c loss_lm "$killed/metrics.jsonl")" -ge 7 ] &&
    ls "$killed/checkpoints" | grep -q '^step-' && break
  sleep 0.02
done
pkill -KILL -f "braid train.*run.dir=$killed " || true
wait $job 2>/dev/null || true
[ "$(grep -c loss_lm "$killed/metrics.jsonl")" -lt 20 ] || fail "the run was over before it could be killed"
ls "$killed"/checkpoints | grep -q '^step-' || fail "no checkpoint before the kill"
echo '{"step": 99, "train/loss_l' >>"$killed/metrics.jsonl"  # what a torn write leaves
train 2 "$killed" run.steps=20 "${common[@]}" --resume
same_numbers "$WORK/straight" "$killed" "killed and resumed"
"$BRAID" ckpt diff "$WORK/straight" "$killed" >/dev/null || fail "killed and resumed: other weights or moments"
pass "20 steps straight = killed in between and resumed, bit for bit"

# stopped on request
for signal in TERM USR1; do
  stopped=$WORK/stopped-$signal
  setsid mpirun -n 2 "$BRAID" train "$TINY" "run.dir=$stopped" run.steps=20 "${common[@]}" >"$stopped.log" 2>&1 &
  job=$!
  for _ in $(seq 600); do [ -s "$stopped/metrics.jsonl" ] && break; sleep 0.02; done
  pkill -$signal -o -f "^$BRAID train.*run.dir=$stopped " || fail "no rank to signal"
  status=0
  wait $job || status=$?
  [ $status = 75 ] || { cat "$stopped.log" >&2; fail "exit code $status instead of 75 after SIG$signal"; }
  train 2 "$stopped" run.steps=20 "${common[@]}" --resume
  same_numbers "$WORK/straight" "$stopped" "stopped by SIG$signal and resumed"
  "$BRAID" ckpt diff "$WORK/straight" "$stopped" >/dev/null || fail "stopped by SIG$signal: other weights"
  pass "SIG$signal to one rank: a checkpoint, exit 75, and the same bits after --resume"
done

# another layout: the state is the same tensor by tensor, the fp64 losses go on within 1e-10
for kind in adamw muon; do
  base=(precision=fp64 run.steps=20 checkpoint.interval_steps=10 eval.interval_steps=0 checkpoint.keep=0 optimizer.kind=$kind)
  from=$WORK/from-$kind
  train 2 "$from" "${base[@]}" parallel.expert=2 train.micro_batch_size=4
  for layout in 1:1:8 2:1:2 2:2:4 4:4:1; do
    IFS=: read -r ranks expert micro <<<"$layout"
    other=$WORK/other-$kind-$ranks-$expert
    mkdir -p "$other/checkpoints" "$other/data"
    cp -r "$from/checkpoints/step-000000010" "$other/checkpoints/"
    cp "$from"/data/*.h5 "$other/data/"
    # a resume that only loads and saves: bit-equal tensor by tensor
    train "$ranks" "$other" "${base[@]}" run.steps=10 parallel.expert="$expert" train.micro_batch_size="$micro" --resume
    train "$ranks" "$other" "${base[@]}" parallel.expert="$expert" train.micro_batch_size="$micro" --resume
    mkdir -p "$from-tail"
    tail -n 10 <(numbers "$from") >"$from-tail/metrics.jsonl"
    if [ "$layout" = 2:2:4 ]; then  # the layout that it was
      same_numbers "$from-tail" "$other" "$kind, resumed"
      "$BRAID" ckpt diff "$from" "$other" >/dev/null || fail "$kind, resumed: other weights or moments"
      pass "$kind, resumed with the same ranks: the same bits"
    fi
    close_numbers "$from-tail" "$other" 1e-10
    "$BRAID" ckpt diff "$from" "$other" --rtol 1e-10 >/dev/null || fail "weights after resuming $kind as $layout"
    pass "$kind, resumed with $ranks ranks, expert parallel $expert: losses and weights go on within 1e-10"
  done
done
echo "$checks passed, 0 failed"
