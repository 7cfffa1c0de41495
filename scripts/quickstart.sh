#!/usr/bin/env bash
# From a bare machine to a trained model, its loss curve and a text sample.
caller=$PWD
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
  cat <<'TEXT'
Usage: scripts/quickstart.sh [--no-install] [--text PATH]... [--steps N] [--run-dir DIR]
Installs what is missing, builds Braid, trains a small model on two ranks (configs/runs/laptop.yaml), shows the loss curve,
the held-out loss and a text sample. Can be run again: every start gets a run folder of its own.
  --no-install    install nothing; fail if a package is missing
  --text PATH     train on this text file or folder (repeatable); default: the installed C++ standard headers
  --steps N       training steps; default: those of the config
  --run-dir DIR   run folder; default runs/laptop. If it holds a run, DIR-2, DIR-3, ... is taken
TEXT
}

# A path as the caller meant it.
from_caller() { case $1 in /*) printf '%s' "$1" ;; *) printf '%s/%s' "$caller" "$1" ;; esac; }

install_arguments=() text=() steps='' run_dir=runs/laptop
while [ $# -gt 0 ]; do
  case $1 in
    --no-install) install_arguments=(--no-install) ;;
    --text | --steps | --run-dir)
      [ $# -ge 2 ] || die "$1 needs a value"
      case $1 in
        --text) [ -e "$(from_caller "$2")" ] || die "--text $2: there is no such file or folder"; text+=(--text "$(from_caller "$2")") ;;
        --steps) [[ $2 =~ ^[1-9][0-9]*$ ]] || die "--steps is '$2', but must be a whole number greater than 0"; steps=$2 ;;
        --run-dir) run_dir=$(from_caller "$2") ;;
      esac
      shift ;;
    -h | --help) usage; exit 0 ;;
    *) usage >&2; die "unknown option $1" ;;
  esac
  shift
done

braid=build/release/braid
config=configs/runs/laptop.yaml
ranks=2
cores=$(usable_cores)

say "1/7 Packages: what Braid needs and this machine lacks"
scripts/install_packages.sh "${install_arguments[@]}"

say "2/7 Build: preset release in build/release, on $cores cores"
mkdir -p build
prepare_cuda
quietly build/configure.log cmake --preset release
quietly build/build.log cmake --build --preset release --target braid --parallel "$cores"
"$braid" --version

base=$run_dir
for ((number = 2; ; ++number)); do
  [ -e "$run_dir/metrics.jsonl" ] || [ -e "$run_dir/checkpoints" ] || break
  run_dir=$base-$number
done
[ "$run_dir" = "$base" ] || echo "$base holds a run, which stays as it is; this one goes to $run_dir."

overrides=("run.dir=$run_dir" parallel.expert=2)
if [ ${#text[@]} -gt 0 ]; then
  say "3/7 Data: the bytes of your text become tokens"
  data_dir=$run_dir/data
  shard=$(realpath -m "$data_dir/train.h5")
  shard=${shard//\\/\\\\}
  overrides+=("data.sources=[{name: text, shards: [\"${shard//\"/\\\"}\"]}]")
  prompt=()
else
  say "3/7 Data: the bytes of the installed C++ standard headers become tokens"
  data_dir=runs/laptop-data
  prompt=(--prompt "template <")
fi
"$braid" data demo --out "$data_dir" "${text[@]}"

if [ -n "$steps" ]; then
  overrides+=("run.steps=$steps" "schedule.warmup_steps=$((steps < 300 ? steps / 10 : 30))" "eval.interval_steps=$((steps < 50 ? steps : 50))")
fi
threads=${OMP_NUM_THREADS:-$((cores > ranks ? cores / ranks : 1))}
prepare_mpi
say "4/7 Training: $ranks ranks that share the experts, $threads thread(s) each"
OMP_NUM_THREADS=$threads mpirun -n $ranks "$braid" train "$config" "${overrides[@]}"

export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$cores}  # one process from here on
say "5/7 Loss curve"
"$braid" plot "$run_dir"

say "6/7 Held-out loss: text that was not trained on, beside what the best model without context would reach"
"$braid" eval "$run_dir" --sequences 64

say "7/7 Sample: the model continues a text"
"$braid" generate "$run_dir" "${prompt[@]}" --tokens 200 --temperature 0.7 --seed 1

checkpoints=("$run_dir"/checkpoints/step-*)
say "Done"
echo "Run folder   $run_dir (metrics.jsonl, metrics.csv, loss.svg, config.resolved.yaml)"
echo "Checkpoint   ${checkpoints[-1]}"
echo "More text    $braid generate $run_dir --prompt 'class '"
