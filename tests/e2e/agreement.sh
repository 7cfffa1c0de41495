#!/usr/bin/env bash
# Ranks that were not started alike are refused before anything is computed, with what differs and where.
source "$(dirname "$0")/common.sh" "$@"

D=$WORK/run
one=("$BRAID" train "$TINY" "run.dir=$D")
# by_rank RANKS COMMAND OF RANK 0... / COMMAND OF THE OTHERS...: mpirun starts one script, as Debian 13's (Open MPI 5.0.7) dies itself of
# several programs.
cat >"$WORK/by_rank" <<'EOF'
first=()
while [ "$1" != / ]; do first+=("$1"); shift; done
if [ "$OMPI_COMM_WORLD_RANK" = 0 ]; then exec "${first[@]}"; fi
shift
exec "$@"
EOF
by_rank() { mpirun -n "$1" bash "$WORK/by_rank" "${@:2}"; }
differ() {  # differ OVERRIDES OF RANK 1...
  rm -rf "$D"
  by_rank 2 "${one[@]}" / "${one[@]}" "$@"
}

for change in optimizer.lr=1e-2 train.seed=7 optimizer.weight_decay=0.3 model.num_experts_per_tok=3 model.rope_theta=5000 \
  train.micro_batch_size=2 train.global_batch_size=4 parallel.expert=2 balance.counts=exact run.steps=19 log.interval_steps=2 \
  eval.interval_steps=0 checkpoint.keep=9 precision=fp64 "init.from=$WORK"; do
  expect_error 2 "the ranks do not agree: ${change%%=*} is .* on rank 0 \(.*\) and .* on rank 1 \(" differ "$change"
  [ ! -e "$D/metrics.jsonl" ] || fail "$change: steps were computed"
done
expect_error 2 'do not agree: --resume is no on rank 0 .* and newest on rank 1' differ --resume
expect_error 2 'environment variable NCCL_ALGO is \(not set\) on rank 0 .* and Ring on ranks 1, 2' \
  by_rank 3 "${one[@]}" / env NCCL_ALGO=Ring "${one[@]}"
cp "$BRAID" "$WORK/other-braid"
printf 'x' >>"$WORK/other-braid"
expect_error 2 "the executable's SHA-256 is .* on rank 0 .* on rank 1" \
  by_rank 2 "${one[@]}" / "$WORK/other-braid" "${one[@]:1}"

# a run folder that is not one
mkdir -p "$WORK/a" "$WORK/b"
relative=("$BRAID" train "$TINY" run.dir=run)
expect_error 2 'run: .* does not see there what rank 0 .* must be one folder' \
  by_rank 2 env -C "$WORK/a" "${relative[@]}" / env -C "$WORK/b" "${relative[@]}"
[ ! -e "$WORK/a/run/checkpoints" ] || fail "steps were computed in a folder that is not shared"

# other tokens at the same path, where the system lets one process see another file there
train 0 "$WORK/data" run.steps=1 eval.interval_steps=0
shard=$(ls "$WORK"/data/data/*.h5)
cp "$shard" "$WORK/good.h5"
cp "$shard" "$WORK/changed.h5"
at=$(($(stat -c %s "$shard") * 3 / 4))
while [ "$(od -An -tu1 -j $at -N 1 "$shard")" -eq 0 ]; do at=$((at + 1)); done  # the lower byte of a token
printf 'Q' | dd of="$WORK/changed.h5" bs=1 seek=$at conv=notrunc status=none
cmp -s "$WORK/good.h5" "$WORK/changed.h5" && fail "the shard was not changed"
with_shard=(run.steps=2 eval.interval_steps=0 "data.sources=[{name: fixed, shards: [$WORK/good.h5]}]")
if unshare --mount true 2>/dev/null; then
  rm -rf "$D"
  expect_error 2 'the digest of the tokens of data source fixed is .* on rank 0 .* on rank 1' by_rank 2 "${one[@]}" "${with_shard[@]}" / \
    unshare --mount sh -c "mount --bind '$WORK/changed.h5' '$WORK/good.h5' && exec \"\$@\"" - \
    "${one[@]}" "${with_shard[@]}"
fi
# and between a run and its resume
rm -rf "$D"
train 0 "$D" "${with_shard[@]}"
cp "$WORK/changed.h5" "$WORK/good.h5"
expect_error 4 'trained on other data' "$BRAID" train "$TINY" "run.dir=$D" "${with_shard[@]}" run.steps=4 --resume

# all ranks alike: an error that all of them meet is said once, on however many ranks
expect_error 2 'absent.yaml' mpirun -n 4 "$BRAID" train "$WORK/absent.yaml"
expect_error 2 'did you mean' mpirun -n 4 "$BRAID" train "$TINY" "run.dir=$D" model.num_expert=2
! grep -q '^braid:.*on rank' "$WORK/err" || fail "an error of all ranks names some"
rm -rf "$D"
train 2 "$D" run.steps=1 eval.interval_steps=0
grep -qE '^ranks 0, 1  .* thread' "$D.log" || { cat "$D.log" >&2; fail "no table of ranks"; }
[ -z "$(find "$D" -name '.start-*')" ] || fail "the proof that the folder is shared was left there"
pass "ranks that agree start, with a table of hosts and devices"
echo "$checks passed, 0 failed"
