#!/usr/bin/env bash
# Training on GPUs: the curve of the CPU, the same bits every time, checkpoints that go to the CPU and back.
#   gpu.sh BRAID_EXECUTABLE SOURCE_FOLDER train   on one GPU, the tiny model
#   gpu.sh BRAID_EXECUTABLE SOURCE_FOLDER small   on one GPU, the beginning of configs/runs/gpu-small.yaml
#   gpu.sh BRAID_EXECUTABLE SOURCE_FOLDER ranks   on two, both models
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
case $part in ranks | context) need=2 ;; esac
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

  # a killed rank ends the job
  local dir=$WORK/killed job victim start status=0
  setsid mpirun -n 2 "$BRAID" train "$TINY" "run.dir=$dir" "${on_gpu[@]}" parallel.expert=2 run.steps=1000000 "${no_check[@]}" \
    >"$dir.log" 2>&1 &
  job=$!
  for _ in $(seq 600); do [ -s "$dir/metrics.jsonl" ] && break; sleep 0.1; done
  [ -s "$dir/metrics.jsonl" ] || { kill -KILL -- -$job; cat "$dir.log" >&2; fail "the run to kill did not start in 60 s"; }
  victim=$(pgrep -n -f "^$BRAID train.*run.dir=$dir ") || fail "no rank to kill"
  start=$SECONDS
  kill -KILL "$victim"
  for _ in $(seq 300); do kill -0 $job 2>/dev/null || break; sleep 0.1; done
  if kill -0 $job 2>/dev/null; then kill -KILL -- -$job; fail "30 s after a rank was killed the job still runs"; fi
  wait $job || status=$?
  [ $status != 0 ] || fail "exit code 0 although a rank was killed"
  pass "a killed rank ends the job in $((SECONDS - start)) s, exit code $status"
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
  context) on_shared_rows ;;
  offload) with_offloaded_state ;;
  *) fail "what is '$part'? train, small, ranks, context or offload" ;;
esac
echo "$checks passed, 0 failed"
