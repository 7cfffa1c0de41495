#!/usr/bin/env bash
# Bad input: one plain sentence, the right exit code, and nothing lost.
source "$(dirname "$0")/common.sh" "$@"

run() { "$BRAID" train "$TINY" "run.dir=$WORK/run" "$@"; }
config() {  # config LINE...: a copy of the tiny config with lines added
  { echo "base: $TINY"; echo "run: {dir: $WORK/run, steps: 20}"; printf '%s\n' "$@"; } >"$WORK/config.yaml"
  echo "$WORK/config.yaml"
}

# configuration
expect_error 2 'config.yaml:4: model.num_expert: unknown key, did you mean num_experts' "$BRAID" train "$(config 'model:' '  num_expert: 8')"
expect_error 2 'config.yaml:[0-9]+: .*duplicate' "$BRAID" train "$(config 'train:' '  seed: 1' '  seed: 2')"
expect_error 2 'config.yaml:3: .*seq_length' "$BRAID" train "$(config 'train: {seq_length: long}')"
expect_error 2 'anchor|alias' "$BRAID" train "$(config 'mtp: &a {depth: 1}' 'balance: *a')"
expect_error 2 'absent.yaml' "$BRAID" train "$WORK/absent.yaml"
expect_error 2 'optimizer.l' run optimizer.l=1
expect_error 2 'bf16' run precision=bf16
expect_error 2 'allow_slow is softmax, but is no operator' run 'allow_slow=[attention, softmax]'
expect_error 10 'cuda' run device=cuda
expect_error 10 'device: cuda was asked for' "$BRAID" bench step "$SOURCE/configs/bench/group-128.yaml"
expect_error 2 'layer_types' run 'model.layer_types=[full_attention]'
expect_error 2 'num_experts_per_tok' run model.num_experts_per_tok=9
expect_error 2 'global_batch_size.*8' run train.micro_batch_size=3
expect_error 2 'train.seq_length is not set' "$BRAID" bench step "$SOURCE/configs/models/tiny.yaml"
# without a GPU, also where there is one
bench() { CUDA_VISIBLE_DEVICES= "$BRAID" bench "$@"; }
expect_error 10 'on a GPU, but none can be used here' bench
expect_error 10 'on a GPU, but none can be used here' bench --op rms_norm --op experts --json --tokens 4096
expect_error 2 '--op softmax: .* there are .*gated_delta_rule_forward' bench --op experts --op softmax
# every operator that reports its time is one that it knows
for op in $(grep -rhoE 'OperatorScope scope\(ctx, "[a-z_]+"\)' "$SOURCE"/kernels/*.cpp | cut -d '"' -f 2); do
  case $op in *_recurrent_*) continue ;; esac  # the oracle of the tests
  grep -qE "[ ,]$op(,|\$)" "$WORK/err" || fail "braid bench does not know $op"
done
pass "braid bench knows every operator"
expect_error 2 '--tokens 100: .*multiple of 64' bench --tokens 100
expect_error 2 '3.*ranks|ranks.*3' mpirun -n 3 "$BRAID" train "$TINY" "run.dir=$WORK/run"
expect_error 2 'expert.*4' mpirun -n 2 "$BRAID" train "$TINY" "run.dir=$WORK/run" parallel.expert=4
expert_rule='must divide both the 4 ranks and the 6 experts'
expect_error 2 "$expert_rule" mpirun -n 4 "$BRAID" train "$TINY" "run.dir=$WORK/run" parallel.expert=4 model.num_experts=6

# data
train 0 "$WORK/good" run.steps=4 checkpoint.interval_steps=2 eval.interval_steps=0
shard=$(ls "$WORK"/good/data/*.h5)
with_shard() { echo "data.sources=[{name: bad, shards: [$1]}]"; }
head -c 3000 "$shard" >"$WORK/truncated.h5"
expect_error 3 'truncated.h5' run "$(with_shard "$WORK/truncated.h5")"
echo 'not a shard' >"$WORK/text.h5"
expect_error 3 'text.h5' run "$(with_shard "$WORK/text.h5")"
expect_error 3 'absent.h5' run "$(with_shard "$WORK/absent.h5")"
expect_error 3 'vocabulary.*vocab_size' run "$(with_shard "$shard")" model.vocab_size=200

# run folder
expect_error 8 'already holds a run' "$BRAID" train "$TINY" "run.dir=$WORK/good"
"$BRAID" train "$TINY" "run.dir=$WORK/busy" run.steps=100000 >"$WORK/busy.log" 2>&1 &
busy=$!
for _ in $(seq 300); do [ -s "$WORK/busy/metrics.jsonl" ] && break; sleep 0.02; done
expect_error 8 'in use|held|process' "$BRAID" train "$TINY" "run.dir=$WORK/busy" --resume
kill -KILL $busy; wait $busy 2>/dev/null || true
# paths that the system does not follow, in every room of the program
ln -s circle "$WORK/circle"
for path in "$WORK/circle" "$WORK/$(printf 'long-%.0s' {1..60})"; do
  why=$([ "$path" = "$WORK/circle" ] && echo 'symbolic links' || echo 'File name too long')
  expect_error 9 "$path: .*$why" "$BRAID" plan "$path"
  expect_error 9 "$path: .*$why" "$BRAID" config diff "$path" "$TINY"
  expect_error 9 "$path.*: .*$why" "$BRAID" data inspect "$path"
  expect_error 9 "$path.*: .*$why" "$BRAID" data tokenize --tokenizer bytes --out "$path" "$WORK/text"
  expect_error 9 "$path: .*$why" "$BRAID" eval "$path"
  expect_error 9 "$path: .*$why" "$BRAID" ckpt import --from "$path" --to "$WORK/imported"
done
expect_error 10 'OMP_NUM_THREADS is 100000, more than [0-9]+ threads' env OMP_NUM_THREADS=100000 "$BRAID" train "$TINY" "run.dir=$WORK/threads"
expect_error 10 'OMP_NUM_THREADS is 100000, more than [0-9]+ threads' env OMP_NUM_THREADS=100000 "$BRAID" plan "$TINY"
touch "$WORK/file"
expect_error 9 'file' "$BRAID" train "$TINY" "run.dir=$WORK/file/run"

# checkpoints: nothing may be loaded from a damaged one, and nothing is changed by trying; without "strict" the one before it
# is taken, loudly
resume_as() { "$BRAID" train "$TINY" "run.dir=$2" run.steps=6 checkpoint.interval_steps=2 eval.interval_steps=0 "$1" "${@:3}"; }
resume() { resume_as --resume "$@"; }
newest() { ls -d "$1"/checkpoints/step-* | tail -1; }
shard_of() { echo "$(newest "$1")/rank-00000.safetensors"; }
flip_byte() {  # flip_byte FILE OFFSET: one bit of the byte from the end
  local at=$(($(stat -c %s "$1") - $2)) byte
  byte=$(od -An -tu1 -j "$at" -N 1 "$1")
  printf "$(printf '\\x%02x' $((byte ^ 4)))" | dd of="$1" bs=1 seek="$at" conv=notrunc status=none
}
files_of() { (cd "$1/checkpoints" && find . -type f -exec sha256sum {} + | sort); }
# damaged FILE COMMAND...: the newest checkpoint of a copy of the good run, changed by the command, is refused, and passed over
damaged() {
  local file=$1
  shift
  rm -rf "$WORK/damaged"
  cp -r "$WORK/good" "$WORK/damaged"
  "$@"
  files_of "$WORK/damaged" >"$WORK/before"
  expect_error 4 "step-000000004/$file" resume_as --resume=strict "$WORK/damaged"
  cmp -s "$WORK/before" <(files_of "$WORK/damaged") || fail "a refused resume changed checkpoints"
  resume "$WORK/damaged" >"$WORK/out" 2>&1 || { cat "$WORK/out" >&2; fail "the checkpoint before the damaged one was not taken"; }
  grep -q "WARNING: the checkpoint .*step-000000004 is damaged and passed over: .*/$file" "$WORK/out" ||
    { cat "$WORK/out" >&2; fail "no warning"; }
  grep -q '"event":"damaged_checkpoint",.*step-000000004 is damaged and passed over' "$WORK/damaged/events.jsonl" ||
    fail "the run's events do not tell that a checkpoint was passed over"
  grep -q 'resumed after step 2 ' "$WORK/out" || fail "the checkpoint before the damaged one was not taken"
  [ -d "$WORK/damaged/checkpoints/.corrupt-step-000000004" ] || fail "the damaged checkpoint was not set aside"
  "$BRAID" ckpt diff "$WORK/straight" "$WORK/damaged" >/dev/null || fail "after a damaged checkpoint: other state"
  pass "passed over: $(grep -o 'passed over: .*' "$WORK/out" | sed "s|$WORK/||g" | cut -c14-110)"
}
mkdir "$WORK/empty"
expect_error 4 'no checkpoint' resume "$WORK/empty"
train 0 "$WORK/straight" run.steps=6 eval.interval_steps=0
shard=rank-00000.safetensors manifest=MANIFEST.json
in_damaged() { "$1" "${@:3}" "$WORK/damaged/checkpoints/step-000000004/$2"; }
damaged $shard in_damaged truncate $shard -s -1
damaged $shard eval 'flip_byte "$(shard_of "$WORK/damaged")" 5000'
grep -qE '"file":"[^"]*/rank-00000.safetensors","tensor":"[a-z_]+/' "$WORK/damaged/errors.jsonl" || fail "errors.jsonl does not name the tensor"
damaged $manifest in_damaged sed $manifest -i 's/"step"/"stop"/'
damaged $shard in_damaged rm $shard
damaged $shard eval 'rm "$(shard_of "$WORK/damaged")"; mkdir "$WORK/damaged/checkpoints/step-000000004/$shard"'
grep -q '"expected":"a file","found":"a folder"' "$WORK/damaged/errors.jsonl" || fail "errors.jsonl does not say what was expected and found"
damaged $manifest in_damaged truncate $manifest -s 0
damaged $manifest in_damaged rm $manifest
expect_error 4 'optimizer.lr' resume "$WORK/good" optimizer.lr=0.5
expect_error 4 'optimizer.kind' resume "$WORK/good" optimizer.kind=muon
expect_error 4 'num_experts' resume "$WORK/good" model.num_experts=4
expect_error 4 'validation_fraction|other data' resume "$WORK/good" data.validation_fraction=0.2
resume "$WORK/good" >/dev/null || fail "a good checkpoint must still load after all this"
pass "the good run resumes"

# numerics: an infinite learning rate ends in a loss that is not finite; the last checkpoint stays as it was
expect_error 6 'not finite|gradient norm is' run optimizer.lr=1e300 schedule.warmup_steps=0 schedule.kind=constant optimizer.max_grad_norm=0 run.steps=20
# memory: just below what a run needs it ends with 7, whatever is the last to ask, and never waits for memory to appear; not under a
# sanitizer, which reserves more addresses than there is memory
least_memory() {
  with_memory() {  # with_memory KIB
    rm -rf "$WORK/run"
    (ulimit -v "$1"; timeout 60 "$BRAID" train "$TINY" "run.dir=$WORK/run" run.steps=1 eval.interval_steps=0) >"$WORK/out" 2>"$WORK/err"
  }
  enough=8388608 short=0
  with_memory $enough || fail "one step of the tiny model needs more than 8 GiB of address space"
  while [ $((enough - short)) -gt 1024 ]; do
    middle=$(((enough + short) / 2)) status=0
    with_memory $middle || status=$?
    case $status in
      0) enough=$middle; continue ;;
      7) grep -qE '^braid: .*(memory|allocate)' "$WORK/err" || { cat "$WORK/err" >&2; fail "no sentence about memory"; } ;;
      127) ;;  # not even the libraries fit
      *) cat "$WORK/out" "$WORK/err" >&2; fail "exit code $status with $middle KiB of address space" ;;
    esac
    short=$middle last=$status
  done
  [ "$last" = 7 ] || fail "the least memory that a run needs is what its libraries need: nothing was tested"
  pass "out of memory below $enough KiB ends with 7"
}
grep -qE '__[at]san_init' "$BRAID" || least_memory

# products: what keeps the library from the CPU's instructions is said, with the remedy (where oneDNN serves)
DNNL_MAX_CPU_ISA=SSE41 train 0 "$WORK/slow" run.steps=1 eval.interval_steps=0
if grep -q 'products: oneDNN' "$WORK/slow.log"; then
  grep -q 'products are slower than they could be: DNNL_MAX_CPU_ISA=SSE41 keeps it from .*: unset it' "$WORK/slow.log" ||
    { cat "$WORK/slow.log" >&2; fail "a limited library is not noticed"; }
  ! grep -q 'slower than they could be: DNNL' "$WORK/good.log" || fail "a library that is not limited is called slow"
  pass "a limit on the library's instructions is noticed"
fi
echo "$checks passed, 0 failed"
