#!/usr/bin/env bash
# Requests to stop, ends without a checkpoint, output that nobody reads or that has no room, and relaunching.
source "$(dirname "$0")/common.sh" "$@"

common=(precision=fp32 train.micro_batch_size=2 checkpoint.interval_steps=5 eval.interval_steps=0)
wait_for() { for _ in $(seq 1500); do [ -s "$1" ] && return; sleep 0.02; done; fail "no $1"; }
# A run that pauses at some place, so that what happens meanwhile comes in time on a machine of any speed.
pausing() { BRAID_FAULT="$1,do=delay=2" "${@:2}"; }
lines_of() { cat "$1/metrics.jsonl" 2>/dev/null | grep -c '"train/loss_lm"' || true; }  # 0 without the file

# a stop file, agreed on by all ranks, and not found again by the resume
straight=$WORK/straight
train 2 "$straight" run.steps=20 "${common[@]}"
stopped=$WORK/stopped
pausing site=step.begin,nth=10 mpirun -n 2 "$BRAID" train "$TINY" "run.dir=$stopped" run.steps=20 "${common[@]}" >"$stopped.log" 2>&1 &
job=$!
wait_for "$stopped/metrics.jsonl"
touch "$stopped/STOP"
status=0; wait $job || status=$?
[ $status = 75 ] || { cat "$stopped.log" >&2; fail "exit code $status instead of 75 after a stop file"; }
grep -q 'asked to stop by the file STOP' "$stopped.log" || fail "the reason of the stop is not said"
[ ! -e "$stopped/STOP" ] || fail "the stop file is left"
train 2 "$stopped" run.steps=20 "${common[@]}" --resume=auto
same_numbers "$straight" "$stopped" "stopped by a file and resumed"
pass "a stop file: exit 75, and the same bits afterwards"

# B18, C9: the run folder goes while the run goes on, or a shard is cut
lost=$WORK/lost
lose() {  # lose CODE PATTERN COMMAND...: what happens in the pause of step 13
  rm -rf "$lost" "$lost.moved"
  # In step 13 the save of step 10 may be under way, that of step 5 is whole.
  pausing site=step.begin,nth=13 mpirun -n 2 "$BRAID" train "$TINY" "run.dir=$lost" run.steps=20 "${common[@]}" >"$lost.log" 2>&1 &
  job=$!
  for _ in $(seq 1500); do [ "$(lines_of "$lost")" -ge 12 ] && break; sleep 0.02; done
  sleep 0.2
  "${@:3}"
  status=0; wait $job || status=$?
  [ $status = "$1" ] && grep -qE "^braid: .*$2" "$lost.log" || { cat "$lost.log" >&2; fail "exit code $status instead of $1, or no message like $2"; }
}
lose 9 'lost: is not the run folder any more, it was moved or removed while the run went on' mv "$lost" "$lost.moved"
[ ! -e "$lost" ] || { ls -R "$lost" >&2; fail "a run makes its folder again where it was"; }
mv "$lost.moved" "$WORK/elsewhere"
"$BRAID" eval "$WORK/elsewhere" --json >/dev/null 2>"$WORK/eval.err" || { cat "$WORK/eval.err" >&2; fail "a moved run cannot be evaluated"; }
"$BRAID" data replay "$WORK/elsewhere" --step 1 | cut -f 5 | grep -q "^$WORK/elsewhere/data/" || fail "a moved run replays other shards"
[ ! -e "$lost" ] || { ls -R "$lost" >&2; fail "a command makes the folder of a moved run again where it was"; }
train 2 "$WORK/elsewhere" run.steps=20 "${common[@]}" --resume
same_numbers "$straight" "$WORK/elsewhere" "moved and resumed"
lose 9 'lost: is not the run folder any more' rm -r "$lost"
pass "a run whose folder is moved or removed ends with 9, and goes on where it is"
cut_shard() { truncate -s 9000 "$lost/data/fixed.h5"; }
lose 3 'fixed.h5: was cut after it had been opened' cut_shard
pass "a shard that is cut under a run ends it with 3"

# a signal at any other time: a run that starts or loads has nothing to lose and ends at once, one that is complete is complete
handles() { for pid in $(pgrep -P "$1" -x braid); do (( 0x$(awk '/^SigCgt/ { print $2 }' "/proc/$pid/status") & 0x200 )) && echo "$pid"; done; }
signal_in() {  # signal_in SITE SIGNAL CODE RUN_DIR [overrides and flags]: two ranks that pause there, of which one gets the signal
  local pause=2; case $1 in init | load) pause=20 ;; esac  # which nobody waits for
  BRAID_FAULT="site=$1,do=delay=$pause" mpirun -n 2 "$BRAID" train "$TINY" "run.dir=$4" run.steps=20 "${common[@]}" "${@:5}" >"$4.log" 2>&1 &
  job=$!
  for _ in $(seq 1500); do
    case $1 in
      init) [ "$(handles $job | wc -l)" = 2 ] && break ;;
      step*) [ "$(lines_of "$4")" = 7 ] && break ;;
      load) [ -e "$4/OWNER.json" ] && grep -q '^ranks:' "$4.log" && break ;;
      end) [ -d "$4/checkpoints/step-000000020" ] && grep -q finished "$4/events.jsonl" && break ;;
    esac
    sleep 0.02
  done
  kill -"$2" "$(handles $job | head -1)"
  status=0; wait $job || status=$?
  [ $status = "$3" ] || { cat "$4.log" >&2; fail "exit code $status instead of $3 after SIG$2 in $1"; }
}
signals() {
  local signalled=$WORK/signalled
  signal_in init TERM 75 "$signalled"
  grep -q '^braid: stopped on request while it started' "$signalled.log" || fail "a stop while starting is not said"
  signal_in step.begin,nth=8 TERM 75 "$signalled"
  signal_in init USR1 75 "$signalled" --resume
  signal_in load INT 75 "$signalled" --resume
  signal_in end TERM 0 "$signalled" --resume
  same_numbers "$straight" "$signalled" "asked to stop while it started, loaded and ended"
  [ "$(lines_of "$signalled")" = 20 ] || fail "steps are missing"
  pass "a signal while a run starts or loads ends it with 75, after its last save it changes nothing"
}
aside signals

# a time limit
limited=$WORK/limited
status=0
mpirun -n 2 "$BRAID" train "$TINY" "run.dir=$limited" run.steps=1000000 "${common[@]}" run.time_limit=2 >"$limited.log" 2>&1 || status=$?
[ $status = 75 ] || { tail -5 "$limited.log" >&2; fail "exit code $status instead of 75 at the time limit"; }
grep -q 'asked to stop by run.time_limit' "$limited.log" || fail "the time limit is not said"
pass "run.time_limit: saved, exit 75"

# --resume in its ways, where nothing is and where a run ended before its first checkpoint
resume() { "$BRAID" train "$TINY" "run.dir=$WORK/none" run.steps=2 eval.interval_steps=0 "$@"; }
expect_error 4 'no checkpoint to resume from; --resume=auto starts' resume --resume
expect_error 4 'no checkpoint to resume from' resume --resume=strict
status=0
"$BRAID" train "$TINY" --resume=maybe >"$WORK/out" 2>&1 || status=$?
[ $status = 2 ] && grep -q 'newest.*auto.*strict' "$WORK/out" || { cat "$WORK/out" >&2; fail "--resume=maybe ends with $status"; }
resume --resume=auto >/dev/null || fail "--resume=auto does not start a run"
pass "--resume=auto starts where there is nothing"
early=$WORK/early
"$BRAID" train "$TINY" "run.dir=$early" run.steps=100000 eval.interval_steps=0 >"$early.log" 2>&1 &
job=$!
wait_for "$early/metrics.jsonl"
kill -KILL $job; wait $job 2>/dev/null || true
expect_error 8 'already holds a run; go on with --resume' "$BRAID" train "$TINY" "run.dir=$early"
train 0 "$early" run.steps=2 eval.interval_steps=0 --resume
grep -q 'ended before its first checkpoint, so it starts from the beginning' "$early.log" || fail "a new start is not said"
[ "$(lines_of "$early")" = 2 ] || fail "steps of the run that ended are left in the metrics"
pass "a run that ended before its first checkpoint starts again with --resume"

# Checkpoints that were there and are not any more are no reason to begin anew: their disk may be missing.
mv "$early/checkpoints" "$early/elsewhere"
before=$(sha256sum "$early/metrics.jsonl")
for mode in --resume --resume=auto; do
  expect_error 4 'metrics.jsonl tells of one of step 2: it was moved' "$BRAID" train "$TINY" "run.dir=$early" run.steps=4 "$mode"
done
[ "$(sha256sum "$early/metrics.jsonl")" = "$before" ] || fail "metrics changed though the resume was refused"
mv "$early/elsewhere" "$early/checkpoints"
train 0 "$early" run.steps=4 eval.interval_steps=0 --resume
pass "a run whose checkpoints are gone is not begun anew"

# an evaluation is left between its micro-batches, and made up for by the resume
long=(run.steps=4 eval.interval_steps=2 eval.sequences=200 data.validation_fraction=0.5 checkpoint.interval_steps=2)
evaluated=$WORK/evaluated
train 2 "$evaluated" "${long[@]}"
left=$WORK/left
pausing site=eval mpirun -n 2 "$BRAID" train "$TINY" "run.dir=$left" "${long[@]}" >"$left.log" 2>&1 &
job=$!
for _ in $(seq 1500); do [ "$(lines_of "$left")" = 2 ] && break; sleep 0.01; done
touch "$left/STOP"
status=0; wait $job || status=$?
[ $status = 75 ] || { cat "$left.log" >&2; fail "exit code $status instead of 75 in an evaluation"; }
[ -d "$left/checkpoints/step-000000002" ] || fail "step 2 was not saved"
! grep -q '"val/' "$left/metrics.jsonl" || fail "the evaluation was over before it could be left"
train 2 "$left" "${long[@]}" --resume
diff <(grep '"val/' "$evaluated/metrics.jsonl") <(grep '"val/' "$left/metrics.jsonl") || fail "evaluations differ"
pass "an evaluation is left within a micro-batch and made up for by the resume"

# standard output that nobody reads: the steps and a save go on
mkfifo "$WORK/pipe"
sleep 1000 <"$WORK/pipe" &
reader=$!
exec 7>"$WORK/pipe"
head -c 65000 /dev/zero >&7  # a pipe takes 65,536 bytes
unread=$WORK/unread
"$BRAID" train "$TINY" "run.dir=$unread" run.steps=20 "${common[@]}" >"$WORK/pipe" 2>"$unread.log" &
job=$!
wait_for "$unread/metrics.jsonl"
for _ in $(seq 3000); do [ -d "$unread/checkpoints/step-000000020" ] && break; sleep 0.02; done
[ -d "$unread/checkpoints/step-000000020" ] || fail "a run whose output nobody reads stands still at step $(lines_of "$unread")"
kill -KILL $job 2>/dev/null || true; wait $job 2>/dev/null || true
kill $reader
exec 7>&-
[ "$(lines_of "$unread")" = 20 ] || fail "metrics lack steps"
pass "a run whose output nobody reads goes on and saves"

# output that goes away, and output without room
status=0
{ "$BRAID" train "$TINY" "run.dir=$WORK/gone" run.steps=6 "${common[@]}" 2>"$WORK/gone.log" || echo $? >"$WORK/gone.status"; } | head -1 >/dev/null
[ ! -s "$WORK/gone.status" ] || fail "a closed pipe ends a run with $(cat "$WORK/gone.status")"
[ -d "$WORK/gone/checkpoints/step-000000006" ] || fail "a closed pipe ended the run"
pass "a closed pipe stops nothing"
expect_error 9 'standard output cannot be written' bash -c '"$@" >/dev/full' - "$BRAID" config print "$TINY"
expect_error 9 'the run is complete, but of its output .* No space left' \
  bash -c '"$@" >/dev/full' - "$BRAID" train "$TINY" "run.dir=$WORK/full" run.steps=2 eval.interval_steps=0
mkdir "$WORK/nospace"
ln -s /dev/full "$WORK/nospace/metrics.jsonl"
expect_error 9 'metrics.jsonl: 5 lines of metrics cannot be written: No space left' \
  "$BRAID" train "$TINY" "run.dir=$WORK/nospace" run.steps=20 "${common[@]}"
[ ! -e "$WORK/nospace/checkpoints" ] || fail "a checkpoint holds steps that the metrics lack"

# relaunching: killed ranks and what no new start mends; the second failure comes behind a new checkpoint, in the folder that the config names
supervised=$WORK/supervised
{ echo "base: $TINY"; echo "run: {dir: $supervised}"; } >"$WORK/supervised.yaml"
BRAID_PAUSE_S=0 BRAID_RETRIES=1 pausing site=step.begin,nth=5 "$SOURCE/scripts/supervise.sh" mpirun -n 2 "$BRAID" train "$WORK/supervised.yaml" run.steps=20 run.hang_timeout=10 "${common[@]}" \
  >"$supervised.log" 2>&1 &
job=$!
wait_for "$supervised/OWNER.json"
for at in 3 11; do
  for _ in $(seq 1500); do [ "$(lines_of "$supervised")" -ge $at ] && break; sleep 0.01; done
  [ $at = 3 ] || wait_for "$supervised/checkpoints/LATEST"
  kill -KILL "$(sed -E 's/.*"pid":([0-9]+).*/\1/' "$supervised/OWNER.json")" 2>/dev/null || true
  sleep 0.3
done
status=0; wait $job || status=$?
[ $status = 0 ] || { cat "$supervised.log" >&2; fail "exit code $status of a supervised run"; }
grep -q 'supervise: exit code' "$supervised.log" || fail "nothing was killed"
same_numbers "$straight" "$supervised" "killed and relaunched"
pass "a supervised run that was killed is the run that was not"
status=0
"$SOURCE/scripts/supervise.sh" "$BRAID" train "$TINY" "run.dir=$WORK/bad" optimizer.l=1 >"$WORK/bad.log" 2>&1 || status=$?
[ $status = 2 ] || fail "a config error is tried again"
status=0
"$SOURCE/scripts/supervise.sh" "$WORK/absent" train "$TINY" >"$WORK/bad.log" 2>&1 || status=$?
[ $status = 127 ] || fail "a program that is not there is tried again"
"$SOURCE/scripts/supervise.sh" --help | grep -q '^Starts a training again' || fail "supervise.sh --help"
pass "what a new start does not mend ends the supervision with its code"
asides_end
echo "$checks passed, 0 failed"
