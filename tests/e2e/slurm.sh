#!/usr/bin/env bash
# The job scripts of Slurm: what they start, what they put back into the queue. Stand-ins for srun and scontrol do what Slurm
# 22.05 does: the state of a job that scancel ended is COMPLETING while its script still runs.
source "$(dirname "$0")/common.sh" "$@"

mkdir "$WORK/bin"
cat >"$WORK/bin/srun" <<'SRUN'
#!/usr/bin/env bash
[[ $1 == --mpi=* ]] && shift
if [ "$SLURM_NTASKS" = 1 ]; then exec "$@"; fi
exec mpirun -n "$SLURM_NTASKS" "$@"
SRUN
cat >"$WORK/bin/scontrol" <<'SCONTROL'
#!/usr/bin/env bash
case $1 in
  show) echo "JobId=$3"; echo "   JobState=$(cat "$QUEUE/state") Reason=None" ;;
  requeue) echo "$2" >>"$QUEUE/requeued" ;;
esac
SCONTROL
chmod +x "$WORK"/bin/*
export PATH=$WORK/bin:$PATH QUEUE=$WORK BRAID SLURM_JOB_ID=17
echo RUNNING >"$WORK/state"
requeued() { [ "$(cat "$WORK/requeued" 2>/dev/null)" = "$1" ]; }

# job CODE LOG COMMAND...: a job script that must end with this code
job() {
  local code=$1 log=$2 status=0
  shift 2
  bash "$@" >"$log" 2>&1 || status=$?
  [ "$status" = "$code" ] || { cat "$log" >&2; fail "exit code $status instead of $code: $*"; }
}
steps_of() { grep -c train/loss_lm "$1/metrics.jsonl" 2>/dev/null || [ -e "$1/metrics.jsonl" ] || echo 0; }
# stopped_job STEP RUN LOG COMMAND...: the run pauses before its STEPth step of this start, and is asked to stop there
stopped_job() {
  local step=$1 run=$2 lines
  shift 2
  lines=$(($(steps_of "$run") + step - 1))
  BRAID_FAULT="site=step.begin,nth=$step,do=delay=2" job 75 "$@" &
  for _ in $(seq 1500); do [ "$(steps_of "$run")" = $lines ] && break; sleep 0.02; done
  touch "$run/STOP"
  wait $! || exit 1
}

# a run: stopped in time it goes back into the queue and on with the same bits; one that scancel stopped does not go back
export SLURM_NTASKS=2
settings=(run.steps=8 checkpoint.interval_steps=3 eval.interval_steps=0)
train 2 "$WORK/straight" "${settings[@]}"
launch=("$SOURCE/scripts/launch/slurm.sbatch" "$TINY" "run.dir=$WORK/run" "${settings[@]}")
stopped_job 3 "$WORK/run" "$WORK/first.log" "${launch[@]}"
requeued 17 || { cat "$WORK/first.log" >&2; fail "a run that was asked to stop is not put back into the queue"; }
rm "$WORK/requeued"
echo COMPLETING >"$WORK/state"
stopped_job 2 "$WORK/run" "$WORK/second.log" "${launch[@]}"
requeued "" || fail "what scancel stopped is put back into the queue"
job 0 "$WORK/third.log" "${launch[@]}"
requeued "" || fail "a complete run is put back into the queue"
same_numbers "$WORK/straight" "$WORK/run" "stopped twice by a job script"
pass "slurm.sbatch: stopped, put back, gone on with; not put back after scancel or at its end"

# a study: a task of the array does one run, goes on with a stopped one and leaves a finished one alone
export SLURM_NTASKS=1
cat >"$WORK/study.yaml" <<'YAML'
config: tiny.yaml
set: [run.steps=6, checkpoint.interval_steps=3, eval.interval_steps=3]
seeds: [1, 2]
axes: [{name: lr, variants: [{name: low, set: [optimizer.lr=1e-4]}, {name: high, set: [optimizer.lr=1e-3]}]}]
YAML
study=("$BRAID" ablate "$WORK/study.yaml" --dir "$WORK/study")
"${study[@]}" --slurm "$WORK/array.sh" >/dev/null
grep -q '^#SBATCH --array=0-3$' "$WORK/array.sh" && [ ! -e "$WORK/study" ] || fail "the Slurm array"
expect_error 2 'has runs 0 to 3' "${study[@]}" --only 4
echo RUNNING >"$WORK/state"
for task in 0 1 3; do SLURM_ARRAY_TASK_ID=$task job 0 "$WORK/task" "$WORK/array.sh"; done
export SLURM_ARRAY_TASK_ID=2
run=$WORK/study/lr-high/seed-1
stopped_job 5 "$run" "$WORK/task" "$WORK/array.sh"
requeued 17 || { cat "$WORK/task" >&2; fail "a stopped task is not put back into the queue"; }
job 0 "$WORK/task" "$WORK/array.sh"
grep -q 'resumed after step' "$run/console.log" || fail "a stopped task starts again"
before=$(stat -c %Y%s "$run/metrics.jsonl")
job 0 "$WORK/task" "$WORK/array.sh"
grep -q 'lr=high seed 1: done before' "$WORK/task" && [ "$before" = "$(stat -c %Y%s "$run/metrics.jsonl")" ] || fail "a finished task is run again"
"${study[@]}" >"$WORK/out"
[ "$(grep -c 'done before' "$WORK/out")" = 4 ] && [ -s "$WORK/study/report.html" ] || { cat "$WORK/out" >&2; fail "the study is not compared"; }
pass "ablate --slurm: a task does its run, once, and goes on where it was"
echo "$checks passed, 0 failed"
