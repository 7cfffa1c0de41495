#!/usr/bin/env bash
# From nothing to a trained model: installs, builds, makes token shards from text on this machine, trains on two ranks with
# expert parallelism, shows the loss curve, evaluates on held-out text, prints a sample.
usage="usage: scripts/quickstart.sh [--no-install] [--text PATH]… [--steps N] [--run-dir DIR]
  --no-install   do not install packages; stop with their names if some are missing
  --text PATH    train on this file or folder instead of the installed C++ standard headers; repeatable
  --steps N      shorter or longer than the 300 updates of configs/runs/laptop.yaml
  --run-dir DIR  where the run goes; default runs/laptop, or the next free runs/laptop-N"
set -euo pipefail

install_flag= steps= run_dir= text=()
while [ $# -gt 0 ]; do
  case $1 in
    --no-install) install_flag=--no-install ;;
    --text | --steps | --run-dir)
      [ $# -ge 2 ] || { echo "$1 needs a value" >&2; echo "$usage" >&2; exit 2; }
      case $1 in
        --text) text+=(--text "$(realpath -- "$2")") ;;
        --steps) steps=$2 ;;
        --run-dir) run_dir=$(realpath -m -- "$2") ;;
      esac
      shift ;;
    -h | --help) echo "$usage"; exit 0 ;;
    *) echo "unknown argument $1" >&2; echo "$usage" >&2; exit 2 ;;
  esac
  shift
done
cd "$(dirname "$0")/.."

say() { printf '\n== %s\n' "$*"; }

say "packages"
scripts/install_packages.sh $install_flag

say "build (preset release)"
cmake --preset release >/dev/null
cmake --build --preset release --parallel "$(nproc)" --target braid
braid=build/release/braid

data=runs/laptop-data
[ ${#text[@]} -eq 0 ] || data=$data-$(printf '%s' "${text[*]}" | cksum | cut -d' ' -f1)
say "token shards from text, in $data"
"$braid" data demo --out "$data" "${text[@]}"

if [ -z "$run_dir" ]; then
  run_dir=runs/laptop
  for ((n = 2; ; n++)); do
    [ -e "$run_dir/metrics.jsonl" ] || break
    run_dir=runs/laptop-$n
  done
fi
overrides=("run.dir=$run_dir" parallel.expert=2 "data.sources=[{name: demo, shards: [$PWD/$data/train.h5]}]")
[ -z "$steps" ] || overrides+=("run.steps=$steps")

say "training configs/runs/laptop.yaml on two ranks, in $run_dir"
launch=(mpirun -n 2 --bind-to none)
[ "$(nproc)" -ge 2 ] || launch+=(--oversubscribe)
[ "$(id -u)" != 0 ] || launch+=(--allow-run-as-root)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(($(nproc) >= 2 ? $(nproc) / 2 : 1))}
if [ -t 1 ]; then export BRAID_PROGRESS=1; fi
"${launch[@]}" "$braid" train configs/runs/laptop.yaml "${overrides[@]}"

say "loss curve"
"$braid" plot "$run_dir"

say "held-out part"
"${launch[@]}" "$braid" eval "$run_dir" --expert 2

say "checkpoint"
"$braid" ckpt inspect "$run_dir"

say "a sample of 200 bytes"
"$braid" generate "$run_dir" --prompt $'\n  template<typename _Tp>\n' --tokens 200 --seed 1

say "go on with: mpirun -n 2 $braid train configs/runs/laptop.yaml ${overrides[*]@Q} --resume"
