#!/usr/bin/env bash
# What is computed does not depend on how many ranks share a row.
source "$(dirname "$0")/common.sh" "$@"

short_documents "$WORK/documents"
cat >"$TINY" <<YAML
base: $SOURCE/configs/runs/tiny.yaml
run: {steps: 8}
train: {global_batch_size: 4, micro_batch_size: 2}
optimizer: {lr: 1e-3}
data: {sources: [{name: short, text: [$WORK/documents]}, {name: long, text: [$WORK/text], weight: 0.5}]}
eval: {interval_steps: 4, sequences: 8}
checkpoint: {interval_steps: 4}
YAML

validation() { grep -o '"val/short/loss":[^,}]*' "$1/metrics.jsonl" | cut -d: -f2; }
equals_reference() {  # RUN WHAT
  close_numbers "$WORK/whole" "$1" 1e-10
  paste <(validation "$WORK/whole") <(validation "$1") | awk '
    { d = $1 - $2; if (d < 0) d = -d; if (!(d <= 1e-10 * $1)) { print; bad = 1 } } END { exit bad || NR != 2 }' ||
    fail "validation loss of $2"
  "$BRAID" ckpt diff "$WORK/whole" "$1" --rtol 1e-10 >"$WORK/diff" || { cat "$WORK/diff"; fail "weights of $2"; }
  pass "fp64, $2: losses, held-out loss and weights within 1e-10 of whole rows"
}

train 0 "$WORK/whole" precision=fp64
# ranks : rows shared by : expert parallel : micro-batch : recompute
for layout in 2:2:1:2:none 2:2:2:1:layer 4:2:1:1:elementwise 4:2:2:2:none 4:2:4:2:moe 4:4:1:2:none 4:4:2:4:layer 4:4:4:1:none; do
  IFS=: read -r ranks context expert micro recompute <<<"$layout"
  run=$WORK/w$ranks-c$context-e$expert
  train "$ranks" "$run" precision=fp64 parallel.context="$context" parallel.expert="$expert" train.micro_batch_size="$micro" \
    memory.recompute="$recompute"
  equals_reference "$run" "$ranks ranks, rows shared by $context, expert parallel $expert, micro-batch $micro, recompute $recompute"
done

# a checkpoint does not say how rows were shared
train 4 "$WORK/resumed" precision=fp64 run.steps=4 schedule.decay_steps=8 parallel.context=4
train 2 "$WORK/resumed" precision=fp64 run.steps=8 schedule.decay_steps=8 parallel.context=2 parallel.expert=2 --resume
train 0 "$WORK/whole-8" precision=fp64 schedule.decay_steps=8
close_numbers "$WORK/whole-8" "$WORK/resumed" 1e-10
pass "a run that began with rows shared by 4 goes on with 2"

for again in a b; do train 4 "$WORK/fp32-$again" precision=fp32 parallel.context=4 parallel.expert=2; done
same_numbers "$WORK/fp32-a" "$WORK/fp32-b" "two runs with shared rows"
"$BRAID" ckpt diff "$WORK/fp32-a" "$WORK/fp32-b" >/dev/null || fail "two runs with shared rows: other weights"
train 0 "$WORK/fp32-whole" precision=fp32
close_numbers "$WORK/fp32-whole" "$WORK/fp32-a" 1e-4
pass "fp32: two runs with shared rows have the same bits, and are close to whole rows"

"$BRAID" eval "$WORK/whole" --passkey 120,200 --trials 1 --json | grep -q '"tokens":200,"depth":1.0,"found":0,"trials":1' ||
  fail "a model of 8 steps finds a pass key, or nobody asks it"
pass "eval --passkey asks at every depth"
mpirun -n 2 "$BRAID" eval "$WORK/whole" --context 2 --json >"$WORK/eval-2"
"$BRAID" eval "$WORK/whole" --json >"$WORK/eval-1"
paste <(grep -o '"val/short/loss": *[^,}]*' "$WORK/eval-1" | sed 's/.*: *//') <(grep -o '"val/short/loss": *[^,}]*' "$WORK/eval-2" | sed 's/.*: *//') |
  awk '{ d = $1 - $2; if (d < 0) d = -d; exit !(NF == 2 && d <= 1e-10 * $1) }' || fail "eval --context 2 finds another loss"
pass "eval --context 2: the same loss"

common=("run.dir=$WORK/never" precision=fp64)
expect_error 2 'parallel.context is 2, but must divide the 1 ranks' "$BRAID" train "$TINY" "${common[@]}" parallel.context=2
expect_error 2 'cuts rows into 32 equal parts of at least 3 tokens' "$BRAID" train "$TINY" "${common[@]}" parallel.context=16
expect_error 2 'parallel.context is 2, but needs balance.scope global_batch' "$BRAID" train "$TINY" "${common[@]}" parallel.context=2 balance.scope=sequence
"$BRAID" plan "$TINY" --ranks 4 parallel.context=4 | grep -q 'rows shared by 4' || fail "plan does not know shared rows"
pass "plan counts a rank's share"
echo "$checks passed, 0 failed"
