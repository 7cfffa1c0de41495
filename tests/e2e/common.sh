# Shared by the end-to-end tests. Called as: TEST.sh BRAID_EXECUTABLE SOURCE_FOLDER [MAKE_MODEL_FOLDER_EXECUTABLE]
set -euo pipefail
BRAID=$1
SOURCE=$2
WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT
export OMP_NUM_THREADS=1 OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
export OMPI_MCA_rmaps_base_oversubscribe=1 OMPI_MCA_hwloc_base_binding_policy=none OMPI_MCA_btl_base_warn_component_unused=0
export GPUS_HERE=${CUDA_VISIBLE_DEVICES-all} CUDA_VISIBLE_DEVICES=  # the CPU's tests must see none; gpu.sh sets it again
# The tiny run on text that never changes, so that it is the same training for every commit: lines of LICENSE in an order of
# their own. Its learning rate is a third of the config's, at which fp32 itself overshoots and makes any rounding a tenth of
# the loss; here fp32 and fp64 stay 5e-8 apart over 20 steps, and no router decision is near a tie.
mkdir "$WORK/text"
awk 'NF { line[n++] = $0 } END { x = 1; for (i = 0; i < 6000; ++i) { x = (x * 69069 + 12345) % 4294967296; print line[int(x / 65536) % n] } }' \
  "$SOURCE/LICENSE" >"$WORK/text/text.txt"
TINY=$WORK/tiny.yaml
cat >"$TINY" <<EOF
base: $SOURCE/configs/runs/tiny.yaml
optimizer: {lr: 1e-3}
data:
  sources:
    - {name: fixed, text: [$WORK/text]}
EOF
# short_documents FOLDER: texts of 12 to 311 bytes, so that rows of 64 tokens hold several, which begin, end and go on anywhere
# in their parts.
short_documents() {
  mkdir "$1"
  awk 'NF { line[n++] = $0 } END { x = 1
    for (i = 0; i < 300; ++i) {
      text = ""; x = (x * 69069 + 12345) % 4294967296; length_wanted = 12 + int(x / 65536) % 300
      while (length(text) < length_wanted) { x = (x * 69069 + 12345) % 4294967296; text = text line[int(x / 65536) % n] "\n" }
      file = sprintf("%s/%03d.txt", folder, i); printf "%s", substr(text, 1, length_wanted) > file; close(file)
    } }' folder="$1" "$SOURCE/LICENSE"
}
checks=0

# aside COMMAND...: a check that mostly waits, beside what follows and with a $WORK of its own; asides_end waits for all of them.
asides=()
aside() {
  local own
  own=$(mktemp -d "$WORK/aside-XXXXXX")
  (WORK=$own; "$@") &
  asides+=($!)
}
asides_end() {
  local check
  for check in "${asides[@]}"; do wait "$check" || fail "a check that ran beside others"; checks=$((checks + 1)); done
  asides=()
}

fail() { echo "FAILED: $*" >&2; exit 1; }
pass() { checks=$((checks + 1)); echo "ok: $*"; }

# train RANKS RUN_DIR [overrides and flags ...]
train() {
  local ranks=$1 dir=$2
  shift 2
  if [ "$ranks" = 0 ]; then "$BRAID" train "$TINY" "run.dir=$dir" "$@" >"$dir.log" 2>&1
  else mpirun -n "$ranks" "$BRAID" train "$TINY" "run.dir=$dir" "$@" >"$dir.log" 2>&1
  fi || { cat "$dir.log" >&2; return 1; }
}

# The training lines of a run without what depends on the clock, or on the room for rows.
numbers() { grep '"train/loss_lm"' "$1/metrics.jsonl" | sed -E 's/"(perf\/|moe\/overflow_)[a-z_]+": *[^,}]+,? *//g'; }

same_numbers() {
  [ "$(numbers "$1" | wc -l)" -gt 0 ] || fail "$1 has no training lines"
  cmp -s <(numbers "$1") <(numbers "$2") || fail "metrics of $1 and $2 differ: $3"
}

# close_numbers A B TOLERANCE: every loss, of every source, too, and gradient norm of every step within a relative tolerance
close_numbers() {
  paste -d '|' <(numbers "$1") <(numbers "$2") | awk -v tolerance="$3" -F '|' '
    function value(line, key,   start, rest) {
      start = index(line, "\"" key "\":")
      if (start == 0) { print "no " key " in: " line; exit 1 }
      rest = substr(line, start + length(key) + 3)
      return rest + 0
    }
    {
      n = split("train/loss_lm train/loss_mtp train/loss_balance train/grad_norm", keys, " ")
      for (rest = $1; match(rest, /"data\/[^"\/]*\/loss": *[0-9]/); rest = substr(rest, RSTART + RLENGTH)) {
        keys[++n] = substr(rest, RSTART + 1); sub(/".*/, "", keys[n])
      }
      for (i = 1; i <= n; ++i) {
        a = value($1, keys[i]); b = value($2, keys[i])
        d = a > b ? a - b : b - a; s = a < 0 ? -a : a
        if (!(d <= tolerance * s + 1e-300)) { printf "%s: %.17g against %.17g in line %d\n", keys[i], a, b, NR; bad = 1 }
      }
      steps++
    }
    END { if (bad || steps == 0) exit 1 }' || fail "losses of $1 and $2 differ by more than $3"
}

# expect_error CODE PATTERN COMMAND...: the command fails with this exit code and says one sentence that matches
expect_error() {
  local code=$1 pattern=$2 status=0
  shift 2
  "$@" >"$WORK/out" 2>"$WORK/err" || status=$?
  [ "$status" = "$code" ] || { cat "$WORK/out" "$WORK/err" >&2; fail "exit code $status instead of $code: $*"; }
  grep -qE -- "$pattern" "$WORK/err" || { cat "$WORK/err" >&2; fail "no message like '$pattern': $*"; }
  [ "$(grep -c '^braid: ' "$WORK/err")" = 1 ] || { cat "$WORK/err" >&2; fail "not one sentence: $*"; }
  pass "exit $code: $(grep '^braid: ' "$WORK/err" | cut -c1-150)"
}
