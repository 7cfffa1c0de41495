#!/usr/bin/env bash
# Does a small model trained on rows of 4,096 still read across 32,768? Trains one on the GPUs of this host, goes on, and asks.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
  cat <<'TEXT'
Usage: scripts/passkey.sh [--braid PROGRAM] [--out FOLDER] [--ranks N] [--steps N] [--long-steps N] [--lengths N,...]
         [--trials N] [--set KEY=VALUE]...
Texts that hide a number (scripts/passkey_text.py), a model that learns on rows of 4,096 of them (configs/runs/passkey.yaml),
`braid eval --passkey`; then the same model on rows of 32,768 that all GPUs share, positions as they are and stretched
(yarn), and the questions again. Everything is below FOLDER (default runs/passkey); answers in FOLDER/found.txt.
  --braid PROGRAM    default: build/release/braid, or that of the bundle
  --ranks N          GPUs, one rank each; default: all
  --steps N          on short rows; default 4000
  --long-steps N     on long rows; default 60
  --lengths N,...    of the texts; default 1024,4096,8192,16384,32768
  --trials N         for each of five places of the number; default 5
  --short N --long N tokens of a row; default 4096 and 32768
  --set KEY=VALUE    for both trainings (repeatable)
TEXT
}

braid=bin/braid out=runs/passkey ranks='' steps=4000 long_steps=60 lengths=1024,4096,8192,16384,32768 trials=5 short=4096 long=32768 set=()
[ -x $braid ] || braid=build/release/braid
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) usage; exit 0 ;;
    --braid | --out | --ranks | --steps | --long-steps | --lengths | --trials | --short | --long | --set)
      [ $# -ge 2 ] || die "$1 needs a value"
      case $1 in
        --braid) braid=$(from_caller "$2") ;;
        --out) out=$(from_caller "$2") ;;
        --set) set+=("$2") ;;
        --ranks) ranks=$2 ;;
        --steps) steps=$2 ;;
        --long-steps) long_steps=$2 ;;
        --lengths) lengths=$2 ;;
        --trials) trials=$2 ;;
        --short) short=$2 ;;
        --long) long=$2 ;;
      esac
      shift ;;
    *) usage >&2; die "unknown option $1" ;;
  esac
  shift
done
[ -x "$braid" ] || die "$braid is not there; build it, or name it with --braid"
[ -n "$ranks" ] || ranks=$(gpus_here)
launch() { if [ "$ranks" = 1 ]; then "$braid" "$@"; else mpirun -n "$ranks" --bind-to none "$braid" "$@"; fi; }
ask() {  # NAME RUN: beside what follows, as it takes no GPU
  { "$braid" eval "$2" --passkey "$lengths" --trials "$trials" | sed "s/^/$1: /" >"$2/found.txt"; } &
  asking+=($!) answers+=("$2/found.txt")
}
asking=() answers=()

say "Texts"
mkdir -p "$out"
python3 scripts/passkey_text.py --bytes $((short - 1)) --size $((short * 12000)) --out "$out/short.jsonl"
python3 scripts/passkey_text.py --bytes $((long - 1)) --shortest $((short * 2)) --gap 4000 --size $((long * 1200)) --seed 2 --out "$out/long.jsonl"
for rows in short long; do
  rm -rf "$out/data-$rows"
  "$braid" data tokenize --tokenizer bytes --out "$out/data-$rows" "$out/$rows.jsonl" | tail -n 1
done

say "$steps steps on rows of $short"
# The model may be asked about more tokens than it was trained on.
common=(model.max_position_embeddings=$((2 * long)) "${set[@]}")
launch train configs/runs/passkey.yaml "run.dir=$out/short" "run.steps=$steps" "train.seq_length=$short" \
  "data.sources=[{name: passkey, dataset: $out/data-short}]" "${common[@]}"
ask "trained on rows of $short" "$out/short"

for positions in default yarn; do
  say "$long_steps steps on rows of $long, positions: $positions"
  rope=()
  [ $positions = default ] || rope=("model.rope_parameters={rope_type: yarn, factor: $((long / short)), original_max_position_embeddings: $short}")
  launch train configs/runs/passkey.yaml "init.from=$out/short" "run.dir=$out/long-$positions" "run.steps=$long_steps" \
    "parallel.context=$ranks" "train.seq_length=$long" train.micro_batch_size=2 train.global_batch_size=8 optimizer.lr=2e-4 \
    schedule.warmup_steps=5 log.interval_steps=10 eval.interval_steps=0 \
    "data.sources=[{name: passkey, dataset: $out/data-long}]" "${common[@]}" "${rope[@]}"
  ask "went on with rows of $long, positions $positions" "$out/long-$positions"
done
say "Answers"
for job in "${asking[@]}"; do wait "$job" || die "braid eval failed"; done
cat "${answers[@]}" | tee "$out/found.txt"
