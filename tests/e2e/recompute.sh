#!/usr/bin/env bash
# What backward makes again is what it would have found: the same bits with every policy, on any layout and after a resume.
source "$(dirname "$0")/common.sh" "$@"

for layout in 0:1:4:fp32 0:1:4:fp64 2:2:2:fp32 4:2:1:fp32; do
  IFS=: read -r ranks expert micro precision <<<"$layout"
  common=(run.steps=4 precision="$precision" parallel.expert="$expert" train.micro_batch_size="$micro")
  none=$WORK/none-$ranks-$precision
  train "$ranks" "$none" "${common[@]}"
  for policy in elementwise moe layer moe:2; do
    run=$WORK/$policy-$ranks-$precision further=${policy#*:}
    [ "$further" != "$policy" ] || further=0
    train "$ranks" "$run" "${common[@]}" memory.recompute="${policy%:*}" memory.recompute_further="$further"
    same_numbers "$none" "$run" "$policy"
    "$BRAID" ckpt diff "$none" "$run" >/dev/null || fail "$policy, $precision, $ranks ranks: other weights or moments"
    pass "$policy, $precision, $ranks ranks, expert parallel $expert: the bits of none"
  done
done

# the policy is no part of the result, so a run may go on with another
resumed=$WORK/resumed
train 2 "$resumed" run.steps=4 precision=fp32 parallel.expert=2 train.micro_batch_size=2 memory.recompute=layer checkpoint.interval_steps=2
rm -r "$resumed"/checkpoints/step-000000004
train 2 "$resumed" run.steps=4 precision=fp32 parallel.expert=2 train.micro_batch_size=2 memory.recompute=elementwise --resume
"$BRAID" ckpt diff "$WORK/none-2-fp32" "$resumed" >/dev/null || fail "resumed with another policy: other weights or moments"
pass "resumed with another policy: the same bits"

train 0 "$WORK/auto" run.steps=1 memory.recompute=auto
grep -q 'memory.recompute auto, .* free; takes none: .*, repeats 0.0 % of a step' "$WORK/auto.log" || fail "auto does not say what it takes"
pass "auto says what it takes"
echo "$checks passed, 0 failed"
