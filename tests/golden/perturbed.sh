#!/usr/bin/env bash
# A reference with one wrong number must fail.   perturbed.sh BRAID_EXECUTABLE MODEL_FOLDER
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
wrong=$work/reference.safetensors
cp "$2/reference.safetensors" "$wrong"
chmod u+w "$wrong"
# The last four bytes become the fp32 number 1000; files from Python end with an F32 tensor.
printf '\x00\x00\x7a\x44' | dd of="$wrong" bs=1 seek=$(($(stat -c %s "$wrong") - 4)) conv=notrunc status=none
status=0
"$1" parity --model "$2" --reference "$wrong" >"$work/out" || status=$?
tail -1 "$work/out"
[ $status = 1 ] && tail -1 "$work/out" | grep -q '^parity: FAILED: '
