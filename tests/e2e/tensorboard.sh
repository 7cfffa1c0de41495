#!/usr/bin/env bash
# TensorBoard's own loader reads the event files of a run that was resumed from an earlier step than they have.
# Exit code 77, skipped, where the package tensorboard is not installed (pip install tensorboard; PYTHON=... names another python3).
"${PYTHON:-python3}" -c 'import tensorboard' 2>/dev/null || { echo "the package tensorboard is not installed here"; exit 77; }
source "$(dirname "$0")/common.sh" "$@"

run=$WORK/run
settings=(parallel.expert=2 schedule.warmup_steps=1 log.tensorboard=true eval.interval_steps=3 checkpoint.interval_steps=2)
train 2 "$run" "${settings[@]}" run.steps=6
rm -r "$run"/checkpoints/step-*6
train 2 "$run" "${settings[@]}" run.steps=8 --resume
[ "$(ls "$run"/tensorboard/events.out.tfevents.* | wc -l)" = 2 ] || fail "there is not one event file for each start"
"${PYTHON:-python3}" "$SOURCE/tests/e2e/tensorboard_check.py" "$run" 2>"$WORK/err" || { cat "$WORK/err" >&2; fail "tensorboard does not read what was written"; }
