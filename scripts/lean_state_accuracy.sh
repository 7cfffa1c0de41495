#!/usr/bin/env bash
# What lean optimizer state costs in loss: the same trainings with each, side by side.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
  cat <<'TEXT'
Usage: scripts/lean_state_accuracy.sh [--braid PROGRAM] [--out FOLDER] [--steps N] [--gpus N] [--runs N]
Trains a model of 4 layers, hidden 512 and 32 experts on the text of scripts/gpu_small_data.sh, in bf16 with fp32 masters as weights and low
bits, with moments and expert gradients stored in every way, and prints training and held-out losses. Two runs share a GPU at a time.
  --braid PROGRAM  default: build/release/braid, or that of the bundle
  --out FOLDER     of the runs and loss curves; default runs/lean-state
  --steps N        default 2000, of 8192 tokens
  --gpus N         default: all that nvidia-smi lists
  --runs N         the first N of the eight; default: all
TEXT
}

braid=bin/braid out=runs/lean-state steps=2000 gpus="" count=8
[ -x $braid ] || braid=build/release/braid
while [ $# -gt 0 ]; do
  case $1 in
    --braid | --out | --steps | --gpus | --runs)
      [ $# -ge 2 ] || die "$1 needs a value"
      case $1 in
        --braid) braid=$(from_caller "$2") ;;
        --out) out=$(from_caller "$2") ;;
        --steps) steps=$2 ;;
        --gpus) gpus=$2 ;;
        --runs) count=$2 ;;
      esac
      shift ;;
    -h | --help) usage; exit 0 ;;
    *) usage >&2; die "unknown option $1" ;;
  esac
  shift
done
[ -x "$braid" ] || die "$braid is not there; build it, or name it with --braid"
[ -n "$gpus" ] || gpus=$(gpus_here)

[ -e runs/gpu-small-data/train.h5 ] || scripts/gpu_small_data.sh --braid "$braid"
mkdir -p "$out"
# name: overrides
runs=(
  "fp32:"
  "int8:optimizer.moment_dtype=int8"
  "bf16:optimizer.moment_dtype=bf16"
  "int8-bf16-gradients:optimizer.moment_dtype=int8 optimizer.gradient_dtype=bf16"
  "fp32-seed2:train.seed=2"
  "int8-seed2:optimizer.moment_dtype=int8 train.seed=2"
  "fp32-beta0.999:optimizer.beta2=0.999"
  "int8-beta0.999:optimizer.moment_dtype=int8 optimizer.beta2=0.999"
)
runs=("${runs[@]:0:$count}")

common=(run.steps="$steps" model.num_hidden_layers=4 model.hidden_size=512 model.linear_num_value_heads=4 model.num_attention_heads=4
  train.seq_length=512 train.micro_batch_size=8 train.global_batch_size=16 eval.interval_steps=500 eval.sequences=1024 checkpoint.interval_steps=0)
jobs=()
slots=$((2 * gpus))
for ((i = 0; i < ${#runs[@]}; ++i)); do
  [ "$i" -lt "$slots" ] || wait "${jobs[$((i - slots))]}" || true
  name=${runs[$i]%%:*}
  read -r -a overrides <<<"${runs[$i]#*:}"
  rm -rf "${out:?}/$name"
  CUDA_VISIBLE_DEVICES=$((i % gpus)) "$braid" train configs/runs/gpu-small.yaml run.dir="$out/$name" "${common[@]}" "${overrides[@]}" \
    >"$out/$name.log" 2>&1 &
  jobs+=($!)
done
for ((i = 0; i < ${#runs[@]}; ++i)); do
  wait "${jobs[$i]}" || echo "${runs[$i]%%:*} failed: $(tail -1 "$out/${runs[$i]%%:*}.log")"
done

python3 - "$out" "${runs[@]%%:*}" <<'PY'
import json, sys
out, names = sys.argv[1], sys.argv[2:]
print("| state | steps | training loss, last 200 steps | held-out loss | of it to fp32 of that seed and beta2 | s |\n|" + " --- |" * 6)
held = {}
for name in names:
    lines = []
    try:
        for line in open(f"{out}/{name}/metrics.jsonl"):
            lines.append(json.loads(line))
    except OSError:
        continue
    train = [l for l in lines if "train/loss_lm" in l]
    test = [l for l in lines if any(k.startswith("val/") for k in l)]
    if not train or not test:
        continue
    key = next(k for k in test[-1] if k.startswith("val/") and k.endswith("/loss"))
    held[name] = test[-1][key]
    base = "fp32" + ("-seed2" if "seed2" in name else "-beta0.999" if "beta0.999" in name else "")
    to = f"{held[name] - held[base]:+.4f}" if base in held and base != name else ""
    last = train[-200:]
    seconds = sum(l.get("perf/step_ms", 0) for l in train) / 1000
    print(f"| {name} | {train[-1]['step']} | {sum(l['train/loss_lm'] for l in last) / len(last):.4f} | {held[name]:.4f} | {to} | {seconds:.0f} |")
PY
curves=()
for name in fp32 int8 bf16 int8-bf16-gradients; do [ ! -d "$out/$name" ] || curves+=("$out/$name"); done
"$braid" plot "${curves[@]}" --svg "$out/lean-state.svg" >/dev/null && echo "curves: $out/lean-state.svg"
