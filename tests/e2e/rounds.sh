#!/usr/bin/env bash
# Experts' rows that do not fit their buffers are worked through in rounds: the same training, bit for bit.
source "$(dirname "$0")/common.sh" "$@"

# 4096 tokens with four experts each: a rank of one has 16384 rows, of two about 8192, of four 4096 and some of them more;
# there is room for 4096
steps=4
common=(run.steps=$steps model.num_experts_per_tok=4 train.seq_length=512 eval.interval_steps=2 eval.sequences=8
  checkpoint.interval_steps=2 checkpoint.keep=0)
for layout in 1:1:8 2:2:4 4:4:2; do
  for precision in fp32 fp64; do
    IFS=: read -r ranks expert micro <<<"$layout"
    at_once=$WORK/$precision-w$ranks-at-once rounds=$WORK/$precision-w$ranks-rounds
    with=(precision=$precision parallel.expert="$expert" train.micro_batch_size="$micro")
    train "$ranks" "$at_once" "${common[@]}" "${with[@]}" parallel.max_rows_factor=0
    train "$ranks" "$rounds" "${common[@]}" "${with[@]}" parallel.max_rows_factor=0.01
    same_numbers "$at_once" "$rounds" "at once and in rounds, $layout"
    cmp <(grep '"val/' "$at_once/metrics.jsonl") <(grep '"val/' "$rounds/metrics.jsonl") || fail "evaluations of $layout"
    "$BRAID" ckpt diff "$at_once" "$rounds" >/dev/null || fail "weights or moments of $layout"
    grep -q '"moe/overflow_rounds": *0[,}]' "$at_once/metrics.jsonl" || fail "$layout: rounds without a bound"
    [ "$(grep -c '"moe/overflow_rounds": *[1-9]' "$rounds/metrics.jsonl")" = $steps ] || fail "$layout: no rounds"
    [ "$precision" = fp64 ] || continue
    mkdir -p "$rounds-resumed/checkpoints" "$rounds-resumed/data" "$rounds-tail"
    cp -r "$rounds/checkpoints/step-000000002" "$rounds-resumed/checkpoints/"
    cp "$rounds"/data/*.h5 "$rounds-resumed/data/"
    train "$ranks" "$rounds-resumed" "${common[@]}" "${with[@]}" parallel.max_rows_factor=0.01 --resume
    tail -n 2 <(numbers "$rounds") >"$rounds-tail/metrics.jsonl"
    same_numbers "$rounds-tail" "$rounds-resumed" "resumed in rounds, $layout"
    "$BRAID" ckpt diff "$rounds" "$rounds-resumed" >/dev/null || fail "resumed in rounds, $layout: other weights"
  done
  pass "$ranks ranks, expert parallel $expert: losses, evaluations, weights and a resumed run have the bits of all rows at once"
done
echo "$checks passed, 0 failed"
