#!/usr/bin/env bash
# Ranks that stand still or die: the job ends in time, and one sentence names the rank, its phase and its collective.
source "$(dirname "$0")/common.sh" "$@"

wait_for_steps() { for _ in $(seq 1500); do [ "$(cat "$dir/metrics.jsonl" 2>/dev/null | wc -l)" -ge "$1" ] && return; sleep 0.02; done; fail "no step"; }
start() {  # start RANKS [overrides]: a long run in the background; sets dir, job and pids, by rank
  dir=$WORK/run
  rm -rf "$dir"
  setsid mpirun -n "$1" "$BRAID" train "$TINY" "run.dir=$dir" run.steps=1000000 run.hang_timeout=5 eval.interval_steps=0 "${@:2}" \
    >"$WORK/log" 2>&1 &
  job=$!
  wait_for_steps 3
  pids=()
  for pid in $(pgrep -f "^$BRAID train.*run.dir=$dir "); do
    pids[$(tr '\0' '\n' <"/proc/$pid/environ" | sed -n 's/^OMPI_COMM_WORLD_RANK=//p')]=$pid
  done
}
ends_with() {  # ends_with CODE SECONDS PATTERN
  local status=0 begin=$SECONDS
  for _ in $(seq $(($2 * 10))); do kill -0 $job 2>/dev/null || break; sleep 0.1; done
  ! kill -0 $job 2>/dev/null || { cat "$WORK/log" | tail -5 >&2; kill -KILL -$job; fail "still there after $2 s"; }
  wait $job || status=$?
  [ $status = "$1" ] || { tail -20 "$WORK/log" >&2; fail "exit code $status instead of $1"; }
  grep -qE -- "$3" "$WORK/log" || { tail -20 "$WORK/log" >&2; fail "no message like '$3'"; }
  [ "$(grep -c '^braid: ' "$WORK/log")" = 1 ] || { grep '^braid: ' "$WORK/log" >&2; fail "not one sentence"; }
  sleep 0.5
  for pid in "${pids[@]}"; do ! kill -0 "$pid" 2>/dev/null || [ "$(sed -E 's/.*\) (.).*/\1/' "/proc/$pid/stat")" = Z ] || fail "process $pid is left"; done
  pass "$4: $(grep '^braid: ' "$WORK/log" | cut -c1-160)"
}
named_in_files() {  # the error record and the crash record name the rank
  grep -q "\"code\":5,.*rank $1 of " "$dir/errors.jsonl" || { cat "$dir/errors.jsonl" >&2; fail "errors.jsonl does not name rank $1"; }
  grep -q "\"verdict\": \"rank $1 of" "$dir"/crash-*.json && [ "$(grep -c '"collective":' "$dir"/crash-*.json)" -gt 100 ] ||
    fail "the crash record does not hold the collectives"
}

stopped() {  # stopped RANK RANKS
  start "$2"
  kill -STOP "${pids[$1]}"
  ends_with 5 15 "rank $1 of .* is stopped, by SIGSTOP or a debugger: phase (step|data), step [0-9]+, (in|after) [a-z_]+ number [0-9]+" "rank $1 of $2 stopped"
  named_in_files "$1"
}
aside stopped 0 2
aside stopped 1 2
stopped 2 4
asides_end

# before the ranks have met: the start of MPI waits for all of them for ever
while_it_starts() {  # while_it_starts RANK FAULT PATTERN
  BRAID_FAULT="site=init,rank=$1,do=$2" setsid mpirun -n 2 "$BRAID" train "$TINY" "run.dir=$WORK/run" run.hang_timeout=3 >"$WORK/log" 2>&1 &
  job=$! pids=()
  ends_with 5 20 "rank $1 of .* $3: phase start, before the ranks have met" "rank $1 while it starts, $2"
}
aside while_it_starts 0 stop 'is stopped, by SIGSTOP or a debugger'
aside while_it_starts 1 stop 'is stopped, by SIGSTOP or a debugger'
while_it_starts 1 hang 'does nothing for 3 s while others wait for it'
asides_end

# a rank that dies ends the job, whatever the launcher thinks of it
start 2
kill -KILL "${pids[1]}"
begin=$SECONDS status=0
wait $job || status=$?
[ $status != 0 ] && [ $((SECONDS - begin)) -le 5 ] || fail "a killed rank ends the job with $status after $((SECONDS - begin)) s"
pass "a killed rank ends the job within 5 s"

# a launcher that dies leaves no rank behind
start 2
kill -KILL $job
wait $job 2>/dev/null || true
for _ in $(seq 70); do
  left=0
  for pid in "${pids[@]}"; do kill -0 "$pid" 2>/dev/null && left=$((left + 1)); done
  [ $left = 0 ] && break
  sleep 0.1
done
[ $left = 0 ] || fail "$left ranks outlive mpirun"
pass "no rank outlives mpirun"

# an error of any kind has its line
expect_error 6 'not finite|gradient norm is' "$BRAID" train "$TINY" "run.dir=$WORK/nan" optimizer.lr=1e300 schedule.warmup_steps=0 \
  schedule.kind=constant optimizer.max_grad_norm=0
grep -qE '"code":6,"kind":"numerics","rank":0,"host":".+","step":[0-9]+,"phase":"step","message":".*","do":"' "$WORK/nan/errors.jsonl" ||
  { cat "$WORK/nan/errors.jsonl" >&2; fail "errors.jsonl does not say what happened"; }
pass "errors.jsonl holds one line per error"
echo "$checks passed, 0 failed"
