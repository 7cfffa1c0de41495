#!/usr/bin/env bash
# What is computed does not depend on how it is spread over ranks, experts and micro-batches.
source "$(dirname "$0")/common.sh" "$@"

# Two sources, whose losses do not depend on it either.
mkdir "$WORK/more"
tail -2000 "$WORK/text/text.txt" | cut -c 1-40 >"$WORK/more/text.txt"
cat >>"$TINY" <<YAML
    - {name: more, text: [$WORK/more], weight: 0.4}
YAML

steps=20
reference=$WORK/fp64-w1-e1-m8
train 0 "$reference" precision=fp64 run.steps=$steps train.micro_batch_size=8 parallel.expert=1

# ranks:expert parallel:micro-batch size; the global batch is 8, so the last number decides the accumulation
for layout in 1:1:8 1:1:2 2:1:4 2:1:1 2:2:4 2:2:2 4:1:2 4:1:1 4:2:2 4:2:1 4:4:2 4:4:1; do
  IFS=: read -r ranks expert micro <<<"$layout"
  run=$WORK/fp64-w$ranks-e$expert-m$micro-again
  train "$ranks" "$run" precision=fp64 run.steps=$steps train.micro_batch_size="$micro" parallel.expert="$expert"
  close_numbers "$reference" "$run" 1e-10
  "$BRAID" ckpt diff "$reference" "$run" --rtol 1e-10 >"$WORK/diff" || { cat "$WORK/diff"; fail "weights of $layout"; }
  pass "fp64, $ranks ranks, expert parallel $expert, micro-batch $micro: within 1e-10 over $steps steps"
done

# nor does Muon, whose shards begin between matrices; buckets change the shards too
muon=(precision=fp64 run.steps=$steps optimizer.kind=muon)
train 0 "$WORK/muon-w1" "${muon[@]}" train.micro_batch_size=8
for layout in 2:1:4:0 2:2:2:1 4:1:2:1 4:2:1:20000; do
  IFS=: read -r ranks expert micro bucket <<<"$layout"
  run=$WORK/muon-w$ranks-e$expert
  train "$ranks" "$run" "${muon[@]}" train.micro_batch_size="$micro" parallel.expert="$expert" parallel.bucket_elements="$bucket"
  close_numbers "$WORK/muon-w1" "$run" 1e-10
  "$BRAID" ckpt diff "$WORK/muon-w1" "$run" --rtol 1e-10 >"$WORK/diff" || { cat "$WORK/diff"; fail "weights of Muon, $layout"; }
  pass "fp64, Muon, $ranks ranks, expert parallel $expert: within 1e-10 over $steps steps"
done

# nor do moments in a byte each, whose blocks no shard cuts; a run saved by one layout goes on with the same in another
int8=(precision=fp64 run.steps=$steps optimizer.moment_dtype=int8 parallel.bucket_elements=20000)
train 0 "$WORK/int8-w1" "${int8[@]}" train.micro_batch_size=8
for layout in 2:1:4 2:2:2 4:2:1; do
  IFS=: read -r ranks expert micro <<<"$layout"
  run=$WORK/int8-w$ranks-e$expert
  train "$ranks" "$run" "${int8[@]}" train.micro_batch_size="$micro" parallel.expert="$expert"
  close_numbers "$WORK/int8-w1" "$run" 1e-10
  "$BRAID" ckpt diff "$WORK/int8-w1" "$run" --rtol 1e-10 >"$WORK/diff" || { cat "$WORK/diff"; fail "moments in a byte, $layout"; }
  rm -r "$run"/checkpoints/step-0000000$steps
  train 0 "$run" "${int8[@]}" train.micro_batch_size=8 parallel.bucket_elements=0 --resume
  "$BRAID" ckpt diff "$WORK/int8-w1" "$run" --rtol 1e-10 >"$WORK/diff" || { cat "$WORK/diff"; fail "moments in a byte, saved by $layout"; }
  pass "fp64, moments in a byte, $ranks ranks, expert parallel $expert, and resumed by one: within 1e-10 over $steps steps"
done

# exact balance counts do not see the cut either
for micro in 8 2; do
  train 0 "$WORK/exact-$micro" precision=fp64 run.steps=5 train.micro_batch_size=$micro balance.counts=exact
done
train 2 "$WORK/exact-w2" precision=fp64 run.steps=5 train.micro_batch_size=2 balance.counts=exact parallel.expert=2
close_numbers "$WORK/exact-8" "$WORK/exact-2" 1e-10
close_numbers "$WORK/exact-8" "$WORK/exact-w2" 1e-10
pass "exact balance counts: within 1e-10 for every cut"

# fp32: repeated runs have the same bits, and the first loss agrees between layouts
for layout in 1:1:8 2:1:2 2:2:4 4:1:2 4:2:1 4:4:2; do
  IFS=: read -r ranks expert micro <<<"$layout"
  for again in a b; do
    train "$ranks" "$WORK/fp32-$layout-$again" run.steps=$steps train.micro_batch_size="$micro" parallel.expert="$expert"
  done
  same_numbers "$WORK/fp32-$layout-a" "$WORK/fp32-$layout-b" "two runs of layout $layout"
  "$BRAID" ckpt diff "$WORK/fp32-$layout-a" "$WORK/fp32-$layout-b" >/dev/null || fail "two runs of $layout: other weights"
  first_line() { numbers "$1" | sed -n 1p >"$2"; }
  mkdir -p "$WORK/first-a" "$WORK/first-b"
  first_line "$WORK/fp32-1:1:8-a" "$WORK/first-a/metrics.jsonl"
  first_line "$WORK/fp32-$layout-a" "$WORK/first-b/metrics.jsonl"
  close_numbers "$WORK/first-a" "$WORK/first-b" 3e-6
  pass "fp32, $ranks ranks, expert parallel $expert: two runs have the same bits; first step within 3e-6 of one rank"
done

# two micro-batches side by side leave the bits of one after the other: of losses, numbers about layers, weights and moments
for layout in 0:1:2:8 2:2:1:8 4:2:1:8 1:1:2:6; do
  IFS=: read -r ranks expert micro global <<<"$layout"
  common=(run.steps=4 train.micro_batch_size="$micro" train.global_batch_size="$global" parallel.expert="$expert" "log.metrics=[grad_norm, hidden/rms, moe/router_entropy]")
  for extra in balance.counts=exact "balance.scope=sequence memory.recompute=layer"; do
    rm -rf "$WORK/alone" "$WORK/beside"
    # shellcheck disable=SC2086
    train "$ranks" "$WORK/alone" "${common[@]}" $extra
    # shellcheck disable=SC2086
    train "$ranks" "$WORK/beside" "${common[@]}" $extra parallel.micro_batches_in_flight=2
    same_numbers "$WORK/alone" "$WORK/beside" "micro-batches side by side, $layout, $extra"
    "$BRAID" ckpt diff "$WORK/alone" "$WORK/beside" >/dev/null || fail "micro-batches side by side, $layout, $extra: other weights or moments"
    pass "fp32, $ranks ranks, expert parallel $expert, $((global / (micro * (ranks > 0 ? ranks : 1)))) micro-batches, $extra: side by side they leave the same bits"
  done
done

# the thread count is no layout at all
OMP_NUM_THREADS=1 train 0 "$WORK/threads-1" run.steps=5
OMP_NUM_THREADS=3 train 0 "$WORK/threads-3" run.steps=5
same_numbers "$WORK/threads-1" "$WORK/threads-3" "1 and 3 threads"
"$BRAID" ckpt diff "$WORK/threads-1" "$WORK/threads-3" >/dev/null || fail "1 and 3 threads: other weights"
pass "1 and 3 threads: the same bits"
echo "$checks passed, 0 failed"
