#!/usr/bin/env bash
# Every command of docs/tutorial.md, as it stands there and in its order; runs are cut to a few steps.
source "$(dirname "$0")/common.sh" "$@"

cd "$WORK"
ln -s "$SOURCE/configs" configs
cp "$SOURCE"/docs/*.md text/
PATH=$(dirname "$BRAID"):$PATH
mkdir tutorial
awk '/^```sh$/ { inside = 1; next } /^```$/ { inside = 0; next } inside' "$SOURCE/docs/tutorial.md" |
  sed -E 's/^  steps: 300$/  steps: 12/; s/^  warmup_steps: 10$/  warmup_steps: 3/' >commands
grep -q 'steps: 12' commands || fail "the tutorial's steps were not found"
commands=$(grep -cE '^(mpirun .*)?braid ' commands)
[ "$commands" -ge 16 ] || fail "only $commands commands in the tutorial"
bash -euxo pipefail commands >log 2>&1 || { tail -40 log >&2; fail "a command of docs/tutorial.md"; }
pass "$commands commands of the tutorial"

[ "$(wc -l <runs/tutorial/metrics.csv)" -gt 12 ] || fail "the run is shorter than its steps"
[ -s runs/tutorial/loss.svg ] && [ -s tutorial/report.html ] || fail "no plot or no report"
[ -s tutorial/hf/model.safetensors ] && [ -s tutorial/hf/tokenizer.json ] || fail "the exported folder is not whole"
grep -q '^weights from .*Hugging Face' log || fail "the last run did not begin with the exported weights"
grep -q 'mtp.loss_weight' log || fail "config diff does not name what differs"
pass "plot, report, weights and tokenizer are there, and a run began with them"
echo "$checks passed, 0 failed"
