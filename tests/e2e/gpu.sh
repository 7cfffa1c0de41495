#!/usr/bin/env bash
# Training on GPUs: the curve of the CPU, the same bits every time, checkpoints that go to the CPU and back.
#   gpu.sh BRAID_EXECUTABLE SOURCE_FOLDER train   on one GPU, the tiny model
#   gpu.sh BRAID_EXECUTABLE SOURCE_FOLDER small   on one GPU, the beginning of configs/runs/gpu-small.yaml
#   gpu.sh BRAID_EXECUTABLE SOURCE_FOLDER ranks   on two, both models
#   gpu.sh BRAID_EXECUTABLE SOURCE_FOLDER faults  on two: ranks that are killed, stopped or leave a collective
#   gpu.sh BRAID_EXECUTABLE SOURCE_FOLDER context on two, and on four where there are so many: rows shared by ranks
#   gpu.sh BRAID_EXECUTABLE SOURCE_FOLDER offload on one, and on two where there are so many: optimizer state in the host's memory
# Exit code 77 where there are too few GPUs.
source "$(dirname "$0")/common.sh" "$@"
part=$3

if [ "$GPUS_HERE" = all ]; then unset CUDA_VISIBLE_DEVICES; else export CUDA_VISIBLE_DEVICES=$GPUS_HERE; fi
if [ -n "${CUDA_VISIBLE_DEVICES+set}" ]; then gpus=$(tr ',' '\n' <<<"$CUDA_VISIBLE_DEVICES" | grep -c . || true)
else gpus=$({ nvidia-smi -L 2>/dev/null || true; } | grep -c '^GPU' || true)
fi
need=1
case $part in ranks | faults | context) need=2 ;; esac
[ "$gpus" -ge "$need" ] || { echo "there is no GPU here, or too few: $gpus of $need"; exit 77; }

# The band for fp32: every loss and gradient norm of 20 steps, relative. With a learning rate that is 1e-4 of itself off nothing
# moves by more than 5e-5; a wrong kernel moves them by far more than this.
band=1e-4
on_cpu=(device=cpu precision=fp32)
on_gpu=(device=cuda precision=fp32)
common=(run.steps=20 checkpoint.interval_steps=10 checkpoint.keep=0 eval.interval_steps=10)
no_check=()  # the self-check runs once, in the first run on the GPU
if "$BRAID" train --help | grep -q -- --skip-selfcheck; then no_check=(--skip-selfcheck); fi

# bf16, with heads and widths that the fast kernels take
fast=(device=cuda precision=bf16 model.hidden_size=128 model.vocab_size=320 model.head_dim=256
  model.partial_rotary_factor=0.25 model.linear_key_head_dim=128 model.linear_value_head_dim=128
  model.moe_intermediate_size=64 model.shared_expert_intermediate_size=64 train.seq_length=256)

same_weights() { "$BRAID" ckpt diff "$1" "$2" >"$WORK/diff" || { cat "$WORK/diff" >&2; fail "weights of $1 and $2: $3"; }; }

# resumed FROM DEVICE...: a run that takes FROM's checkpoint of step 10 to step 20 with these overrides; its folder is $run
resumed() {
  run=$1-resumed-$2
  mkdir -p "$run/checkpoints" "$run/data"
  cp -r "$1/checkpoints/step-000000010" "$run/checkpoints/"
  cp "$1"/data/*.h5 "$run/data/"
  train 0 "$run" "${common[@]}" "${@:2}" --resume "${no_check[@]}"
}
# last_ten RUN: a run folder that has its last ten steps alone
last_ten() { mkdir -p "$1-tail"; numbers "$1" | tail -n 10 >"$1-tail/metrics.jsonl"; echo "$1-tail"; }

on_one_gpu() {
  train 0 "$WORK/cpu" "${common[@]}" "${on_cpu[@]}"
  train 0 "$WORK/gpu" "${common[@]}" "${on_gpu[@]}"
  close_numbers "$WORK/cpu" "$WORK/gpu" $band
  pass "fp32: 20 steps on CPU and GPU, losses and gradient norms within $band"

  train 0 "$WORK/again" "${common[@]}" "${on_gpu[@]}" "${no_check[@]}"
  same_numbers "$WORK/gpu" "$WORK/again" "two runs on the GPU"
  same_weights "$WORK/gpu" "$WORK/again" "two runs on the GPU"
  pass "fp32: two runs on the GPU have the same bits"

  train 1 "$WORK/launched" "${common[@]}" "${on_gpu[@]}" "${no_check[@]}"
  same_numbers "$WORK/gpu" "$WORK/launched" "one rank that mpirun started"
  pass "fp32: one rank that mpirun started: the same bits"

  resumed "$WORK/gpu" "${on_gpu[@]}"
  same_numbers "$(last_ten "$WORK/gpu")" "$run" "resumed on the GPU"
  same_weights "$WORK/gpu" "$run" "resumed on the GPU"
  pass "fp32: resumed on the GPU: the same bits"
  resumed "$WORK/cpu" "${on_gpu[@]}"
  close_numbers "$(last_ten "$WORK/cpu")" "$run" $band
  pass "a checkpoint of the CPU goes on on the GPU, within $band"
  resumed "$WORK/gpu" "${on_cpu[@]}"
  close_numbers "$(last_ten "$WORK/gpu")" "$run" $band
  pass "a checkpoint of the GPU goes on on the CPU, within $band"

  train 0 "$WORK/wide" "${common[@]}" "${fast[@]}" "${on_cpu[@]}"
  train 0 "$WORK/bf16" "${common[@]}" "${fast[@]}"
  train 0 "$WORK/bf16-again" "${common[@]}" "${fast[@]}" "${no_check[@]}"
  same_numbers "$WORK/bf16" "$WORK/bf16-again" "two runs in bf16"
  same_weights "$WORK/bf16" "$WORK/bf16-again" "two runs in bf16"
  resumed "$WORK/bf16" "${fast[@]}"
  same_numbers "$(last_ten "$WORK/bf16")" "$run" "resumed in bf16"
  pass "bf16: two runs and a resumed one have the same bits"
  local few=(run.steps=4 train.micro_batch_size=8 train.seq_length=512 eval.interval_steps=2 eval.sequences=8)
  for precision in bf16 fp32; do  # room for 4096 of 8192 rows
    train 0 "$WORK/$precision-at-once" "${fast[@]}" "${few[@]}" precision=$precision parallel.max_rows_factor=0 "${no_check[@]}"
    train 0 "$WORK/$precision-rounds" "${fast[@]}" "${few[@]}" precision=$precision parallel.max_rows_factor=0.01 "${no_check[@]}"
    same_numbers "$WORK/$precision-at-once" "$WORK/$precision-rounds" "at once and in rounds"
    same_weights "$WORK/$precision-at-once" "$WORK/$precision-rounds" "at once and in rounds"
    [ "$(grep -c '"moe/overflow_rounds": *[1-9]' "$WORK/$precision-rounds/metrics.jsonl")" = 4 ] || fail "no rounds"
  done
  pass "bf16 and fp32: experts in rounds have the bits of all rows at once"
  close_losses "$WORK/wide" "$WORK/bf16" 1e-2
  pass "bf16: 20 steps, losses within 1e-2 of fp32 on the CPU"
  bits_of_recomputation
}

# What backward makes again is what it would have found; a policy, or one that N layers go beyond.
bits_of_recomputation() {
  local precision policy run
  for precision in fp32 bf16; do
    for policy in none:0 elementwise:0 elementwise:2 moe:0 moe:2 layer:0; do
      run=$WORK/$precision-made-again-$policy
      train 0 "$run" "${fast[@]}" precision=$precision run.steps=4 train.micro_batch_size=4 eval.interval_steps=0 \
        memory.recompute="${policy%:*}" memory.recompute_further="${policy#*:}" "${no_check[@]}"
      same_numbers "$WORK/$precision-made-again-none:0" "$run" "$policy made again in $precision"
      same_weights "$WORK/$precision-made-again-none:0" "$run" "$policy made again in $precision"
    done
  done
  pass "bf16 and fp32: 4 steps of two micro-batches have the same bits whatever is made again"
}

# close_losses A B TOLERANCE: the two cross entropies of every step; gradient norms of two precisions say less
close_losses() {
  local key
  for key in loss_lm loss_mtp; do
    paste -d ' ' <(numbers "$1" | grep -o "\"train/$key\": [^,}]*" | cut -d' ' -f2) \
                 <(numbers "$2" | grep -o "\"train/$key\": [^,}]*" | cut -d' ' -f2) |
      awk -v tolerance="$3" 'BEGIN { most = 0 } { d = ($1 > $2 ? $1 - $2 : $2 - $1) / $1; if (d > most) most = d; if (!(d <= tolerance)) { print NR ": " $0; bad = 1 } }
        END { print "most " most; exit bad || NR == 0 }' || fail "$key of $1 and $2 differs by more than $3"
  done
}

# small RANKS RUN_DIR [overrides ...]: the first 20 steps of gpu-small with a thirtieth of its batch. Gradients of such batches are
# large and each step multiplies what rounding has moved, so the bands are wide.
small_band_fp32=5e-3 small_band_bf16=2e-2
small() {
  local ranks=$1 dir=$2
  local options=("$SOURCE/configs/runs/gpu-small.yaml" "run.dir=$dir" "data.sources=[{name: fixed, text: [$WORK/text]}]"
    run.steps=20 train.global_batch_size=4 train.micro_batch_size=2 train.seq_length=512 eval.interval_steps=0
    checkpoint.interval_steps=20 log.interval_steps=1 "${@:3}" "${no_check[@]}")
  if [ "$ranks" = 0 ]; then OMP_NUM_THREADS=$(nproc) "$BRAID" train "${options[@]}" >"$dir.log" 2>&1
  else mpirun -n "$ranks" "$BRAID" train "${options[@]}" >"$dir.log" 2>&1
  fi || { cat "$dir.log" >&2; return 1; }
}
small_on_one_gpu() {
  small 0 "$WORK/small-cpu" "${on_cpu[@]}"
  small 0 "$WORK/small-fp32" "${on_gpu[@]}"
  close_losses "$WORK/small-cpu" "$WORK/small-fp32" $small_band_fp32
  pass "gpu-small, fp32: 20 steps on CPU and GPU, losses within $small_band_fp32"
  small 0 "$WORK/small-bf16"
  close_losses "$WORK/small-cpu" "$WORK/small-bf16" $small_band_bf16
  pass "gpu-small, bf16 on the GPU: losses within $small_band_bf16 of fp32 on the CPU"
  small 0 "$WORK/small-again"
  same_numbers "$WORK/small-bf16" "$WORK/small-again" "two runs of gpu-small"
  same_weights "$WORK/small-bf16" "$WORK/small-again" "two runs of gpu-small"
  pass "gpu-small, bf16: two runs have the same bits"
}
small_on_two_gpus() {
  small 0 "$WORK/small-one"
  for again in a b; do small 2 "$WORK/small-two-$again" parallel.expert=2; done
  close_losses "$WORK/small-one" "$WORK/small-two-a" $small_band_bf16
  same_numbers "$WORK/small-two-a" "$WORK/small-two-b" "two runs of gpu-small with expert parallel 2"
  same_weights "$WORK/small-two-a" "$WORK/small-two-b" "two runs of gpu-small with expert parallel 2"
  pass "gpu-small on 2 GPUs, expert parallel 2: losses within $small_band_bf16 of one GPU; two runs have the same bits"
  for flight in 1 2; do
    small 2 "$WORK/small-flight-$flight" parallel.expert=2 train.micro_batch_size=1 memory.recompute=layer parallel.micro_batches_in_flight=$flight
  done
  same_numbers "$WORK/small-flight-1" "$WORK/small-flight-2" "micro-batches of gpu-small side by side"
  same_weights "$WORK/small-flight-1" "$WORK/small-flight-2" "micro-batches of gpu-small side by side"
  pass "gpu-small on 2 GPUs: two micro-batches side by side leave the bits of one after the other"
}

on_two_gpus() {
  # micro-batches of 4 sequences everywhere, so that one rank accumulates what two share
  train 0 "$WORK/one" "${common[@]}" "${on_gpu[@]}" train.micro_batch_size=4
  for expert in 1 2; do
    local layout=("${common[@]}" "${on_gpu[@]}" train.micro_batch_size=4 "parallel.expert=$expert")
    for again in a b; do train 2 "$WORK/two-$expert-$again" "${layout[@]}" "${no_check[@]}"; done
    close_numbers "$WORK/one" "$WORK/two-$expert-a" $band
    same_numbers "$WORK/two-$expert-a" "$WORK/two-$expert-b" "two runs of expert parallel $expert"
    same_weights "$WORK/two-$expert-a" "$WORK/two-$expert-b" "two runs of expert parallel $expert"
    pass "2 GPUs, expert parallel $expert: within $band of one GPU; two runs have the same bits"
  done

  local first=${CUDA_VISIBLE_DEVICES:-0}
  expect_error 10 'GPU' env CUDA_VISIBLE_DEVICES="${first%%,*}" mpirun -n 2 "$BRAID" train "$TINY" "run.dir=$WORK/shared" "${on_gpu[@]}"
}

# Faults of one of two ranks: within 30 s every process is gone and the rank has been named; the GPUs are free, and the next run
# starts at once.
programs_here() { on_gpus_here --query-compute-apps=pid | tr '\n' ' '; }
memory_here() { on_gpus_here --query-gpu=memory.used | tr '\n' ' '; }
on_gpus_here() {
  timeout 20 nvidia-smi ${CUDA_VISIBLE_DEVICES:+-i "$CUDA_VISIBLE_DEVICES"} "$1" --format=csv,noheader,nounits ||
    fail "nvidia-smi $1"
}
now() { date +%s.%N; }
since() { awk "BEGIN { printf \"%.1f\", $(now) - $1 }"; }
# Of the session of mpirun, ranks and all.
still_there() { ps -o stat=,pid= -s "$job" | awk '$1 !~ /^Z/ { printf "%s ", $2 }' || true; }
end_all() { local all; all=$(still_there); [ -z "$all" ] || kill -KILL $all; }
fail_with_log() { tail -20 "$1.log" >&2; fail "${1##*/}: ${*:2}"; }
two_ranks() {  # two_ranks RUN_DIR [overrides ...]
  exec setsid mpirun -n 2 "$BRAID" train "$TINY" "run.dir=$1" "${on_gpu[@]}" parallel.expert=2 eval.interval_steps=0 \
    "${no_check[@]}" "${@:2}"
}

# endless NAME [VARIABLE=VALUE ...]: sets dir and job, a training that has made steps
endless() {
  dir=$WORK/$1
  (
    for variable in "${@:2}"; do export "${variable?}"; done
    two_ranks "$dir" run.steps=1000000 run.hang_timeout=10
  ) >"$dir.log" 2>&1 &
  job=$!
  trap 'end_all; rm -rf "$WORK"' EXIT
  for _ in $(seq 900); do [ ! -s "$dir/metrics.jsonl" ] || return 0; sleep 0.1; done
  fail_with_log "$dir" "no step within 90 s"
}
send() {  # send SIGNAL RANK
  local pid
  for pid in $(pgrep -s "$job" -f "^$BRAID train"); do
    [ "$(tr '\0' '\n' <"/proc/$pid/environ" | sed -n 's/^OMPI_COMM_WORLD_RANK=//p')" != "$2" ] || { kill "-$1" "$pid"; return; }
  done
  fail "there is no rank $2 to send SIG$1 to"
}
# The time of the step before a failure in a collective.
last_step() {
  for _ in $(seq 600); do [ -n "$(still_there)" ] && ! grep -q '^braid: ' "$dir.log" || break; sleep 0.1; done
  stat -c %.3Y "$dir/metrics.jsonl"
}
# over_since TIME CODES PATTERN...: what has to come after a fault at TIME
over_since() {
  local codes=$2 status=0 seconds used programs pattern next
  while [ -n "$(still_there)" ]; do
    [ "$(since "$1" | cut -d. -f1)" -lt 30 ] || fail_with_log "$dir" "30 s later there are still processes: $(still_there)"
    sleep 0.05
  done
  seconds=$(since "$1")
  wait "$job" || status=$?
  [[ " $codes " == *" $status "* ]] || fail_with_log "$dir" "exit code $status instead of $codes"
  for pattern in "${@:3}"; do grep -qE -- "$pattern" "$dir.log" || fail_with_log "$dir" "no message like '$pattern'"; done
  local freed
  freed=$(now)
  until used=$(memory_here); paste <(tr ' ' '\n' <<<"$idle") <(tr ' ' '\n' <<<"$used") | awk '$2 > $1 + 32 { exit 1 }'; do
    # The driver gives memory back some time after a process is gone.
    [ "$(since "$freed" | cut -d. -f1)" -lt 10 ] || fail "${dir##*/}: $used MiB are in use on GPUs that had $idle before"
    sleep 0.2
  done
  freed=$(since "$freed")
  programs=$(programs_here)
  [ -z "$programs" ] || fail "${dir##*/}: programs are left on the GPUs: $programs"
  next=$(now)
  (two_ranks "$dir-next" run.steps=1) >"$dir-next.log" 2>&1 &
  job=$!
  while kill -0 "$job" 2>/dev/null; do
    [ "$(since "$next" | cut -d. -f1)" -lt 60 ] || fail_with_log "$dir-next" "the next run is not over after 60 s"
    sleep 0.1
  done
  wait "$job" || fail_with_log "$dir-next" "the next run ends with $?"
  pass "${dir##*/}: all gone after $seconds s, memory free $freed s later, exit code $status; the next run took $(since "$next") s: $(
    grep -m 1 -E -- "$3" "$dir.log" | cut -c1-150)"
}

with_faults() {
  local programs aborts='nth=300,do=abort'
  idle=$(memory_here)
  programs=$(programs_here)
  [ -z "$programs" ] || fail "programs on these GPUs: $programs"
  # What the first run loads from a cold disk may take longer than the short run.hang_timeout of those to come.
  (two_ranks "$WORK/first" run.steps=1) >"$WORK/first.log" 2>&1 || fail_with_log "$WORK/first" "a step of two ranks: $?"
  endless killed
  send KILL 1
  over_since "$(now)" "5 137" 'rank 1 .*(is gone without an end|exited on signal 9)'
  endless stopped
  send STOP 1
  over_since "$(now)" 5 '^braid: rank 1 of .* is stopped, by SIGSTOP or a debugger'
  endless failed BRAID_FAULT=site=step.begin,rank=1,nth=200,do=oom
  over_since "$(last_step)" 7 '^braid: rank 1: out of memory'
  # Between GPUs of one host the other rank waits in its kernel and hears nothing; over sockets NCCL tells it.
  endless aborted BRAID_FAULT="site=nccl.all_reduce,rank=1,$aborts"
  over_since "$(last_step)" 5 '^braid: rank 1: ncclAllReduce: '
  endless aborted-over-sockets BRAID_FAULT="site=nccl.all_reduce,rank=0,$aborts" \
    NCCL_P2P_DISABLE=1 NCCL_SHM_DISABLE=1 NCCL_NET=Socket NCCL_SOCKET_IFNAME=lo
  over_since "$(last_step)" 5 '^braid: rank 0: ncclAllReduce: ' '^braid: rank 1: (NCCL|nccl[A-Za-z]+): '
}

# Short documents, which begin, end and go on anywhere in the parts of rows. In fp32 against whole rows on one GPU; in bf16
# against those, too.
on_shared_rows() {
  short_documents "$WORK/documents"
  cat >"$TINY" <<YAML
base: $SOURCE/configs/runs/tiny.yaml
train: {micro_batch_size: 2}
optimizer: {lr: 1e-3}
data: {sources: [{name: short, text: [$WORK/documents]}]}
eval: {sequences: 8}
YAML
  train 0 "$WORK/whole" "${common[@]}" "${on_gpu[@]}" "${no_check[@]}"
  train 0 "$WORK/whole-bf16" "${common[@]}" "${fast[@]}" "${no_check[@]}"
  # ranks : rows shared by : expert parallel : recompute
  local layout ranks context expert recompute again run
  local check=()  # of the operators of shared rows too, once in each precision
  for layout in 4:4:1:none 2:2:2:layer 4:2:4:none 2:2:1:none 4:4:4:layer; do
    IFS=: read -r ranks context expert recompute <<<"$layout"
    [ "$ranks" -le "$gpus" ] || continue
    run=$WORK/$ranks-$context-$expert
    local shared=(parallel.context="$context" parallel.expert="$expert" memory.recompute="$recompute")
    train "$ranks" "$run" "${common[@]}" "${on_gpu[@]}" "${shared[@]}" "${check[@]}"
    close_numbers "$WORK/whole" "$run" $band
    for again in a b; do train "$ranks" "$run-bf16-$again" "${common[@]}" "${fast[@]}" "${shared[@]}" "${check[@]}"; check=("${no_check[@]}"); done
    close_losses "$WORK/whole-bf16" "$run-bf16-a" 1e-2
    same_numbers "$run-bf16-a" "$run-bf16-b" "two runs of rows shared by $context"
    same_weights "$run-bf16-a" "$run-bf16-b" "two runs of rows shared by $context"
    pass "$ranks GPUs, rows shared by $context, expert parallel $expert, recompute $recompute: fp32 within $band of whole rows on one, bf16 within 1e-2; two runs have the same bits"
  done
  "$BRAID" plan "$TINY" "${fast[@]}" --ranks 2 parallel.context=2 --device h200 | grep -q 'rows shared by 2' || fail "plan does not know shared rows"
}

# Optimizer state in the host's memory: the bits of a run that has it on the GPU. gpu-small has shards of several slices.
with_offloaded_state() {
  local away=memory.offload=optimizer moments where expert flight share
  for moments in fp32 bf16 int8; do
    local state=("${common[@]}" "${fast[@]}" optimizer.moment_dtype=$moments)
    train 0 "$WORK/$moments" "${state[@]}" "${no_check[@]}"
    train 0 "$WORK/$moments-away" "${state[@]}" $away "${no_check[@]}"
    same_numbers "$WORK/$moments" "$WORK/$moments-away" "$moments moments offloaded"
    same_weights "$WORK/$moments" "$WORK/$moments-away" "$moments moments offloaded"
    pass "bf16, $moments moments: offloaded, the same bits"
  done
  resumed "$WORK/int8" $away "${fast[@]}" optimizer.moment_dtype=int8
  same_weights "$WORK/int8" "$run" "resumed with offloaded state"
  resumed "$WORK/int8-away" "${fast[@]}" optimizer.moment_dtype=int8
  same_weights "$WORK/int8" "$run" "resumed from offloaded state"
  pass "bf16, int8 moments: resumed with and from offloaded state, the same bits"
  train 0 "$WORK/fp32-run" "${common[@]}" "${on_gpu[@]}" "${no_check[@]}"
  train 0 "$WORK/fp32-run-away" "${common[@]}" "${on_gpu[@]}" $away "${no_check[@]}"
  same_weights "$WORK/fp32-run" "$WORK/fp32-run-away" "fp32 offloaded"
  pass "fp32: offloaded, the same bits"
  for where in none optimizer; do small 0 "$WORK/small-$where" memory.offload=$where; done
  same_numbers "$WORK/small-none" "$WORK/small-optimizer" "gpu-small offloaded"
  same_weights "$WORK/small-none" "$WORK/small-optimizer" "gpu-small offloaded"
  pass "gpu-small: offloaded, the same bits"
  [ "$gpus" -ge 2 ] || return 0
  for expert in 1 2; do
    flight=$expert
    for where in none optimizer; do
      share=1
      [ $expert$where = 2optimizer ] && share=0.5
      small 2 "$WORK/two-$expert-$where" parallel.expert=$expert train.micro_batch_size=1 parallel.micro_batches_in_flight=$flight \
        optimizer.moment_dtype=int8 memory.offload=$where memory.offload_share=$share
    done
    same_numbers "$WORK/two-$expert-none" "$WORK/two-$expert-optimizer" "gpu-small on 2 GPUs offloaded"
    same_weights "$WORK/two-$expert-none" "$WORK/two-$expert-optimizer" "gpu-small on 2 GPUs offloaded"
    pass "gpu-small on 2 GPUs, expert parallel $expert, $flight micro-batches in flight, int8 moments: offloaded, the same bits"
  done
}

case $part in
  train) on_one_gpu ;;
  small) small_on_one_gpu ;;
  ranks) on_two_gpus; small_on_two_gpus ;;
  faults) with_faults ;;
  context) on_shared_rows ;;
  offload) with_offloaded_state ;;
  *) fail "what is '$part'? train, small, ranks, faults, context or offload" ;;
esac
echo "$checks passed, 0 failed"
