#!/usr/bin/env bash
# From a bare machine to a trained model, its loss curve and a text sample.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
  cat <<'TEXT'
Usage: scripts/quickstart.sh [--no-install] [--cpu] [--text PATH]... [--steps N] [--run-dir DIR]
Installs what is missing, builds Braid, trains a small model on two ranks (configs/runs/laptop.yaml), shows the loss curve,
the held-out loss and a text sample. Can be run again: every start gets a run folder of its own.
  --no-install    install nothing; fail if a package is missing
  --cpu           build without CUDA, though nvcc is there: minutes sooner
  --text PATH     train on this text file or folder (repeatable); default: the installed C++ standard headers
  --tokenizer T   bytes (the default), or bpe: a vocabulary of 4096 learnt from the text first
  --steps N       training steps; default: those of the config
  --run-dir DIR   run folder; default runs/laptop. If it holds a run, DIR-2, DIR-3, ... is taken
TEXT
}

install_arguments=() cuda=AUTO text=() paths=() tokenizer=bytes steps='' run_dir=runs/laptop
while [ $# -gt 0 ]; do
  case $1 in
    --no-install) install_arguments=(--no-install) ;;
    --cpu) cuda=OFF ;;
    --text | --tokenizer | --steps | --run-dir)
      [ $# -ge 2 ] || die "$1 needs a value"
      case $1 in
        --text) [ -e "$(from_caller "$2")" ] || die "--text $2: there is no such file or folder"; text+=(--text "$(from_caller "$2")") paths+=("$(from_caller "$2")") ;;
        --tokenizer) [[ $2 =~ ^(bytes|bpe)$ ]] || die "--tokenizer is '$2', but must be bytes or bpe"; tokenizer=$2 ;;
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
prepare_cuda $cuda
quietly build/configure.log cmake --preset release -DBRAID_CUDA=$cuda
quietly build/build.log cmake --build --preset release --target braid --parallel "$cores"
"$braid" --version

base=$run_dir
for ((number = 2; ; ++number)); do
  [ -e "$run_dir/metrics.jsonl" ] || [ -e "$run_dir/checkpoints" ] || break
  run_dir=$base-$number
done
[ "$run_dir" = "$base" ] || echo "$base holds a run, which stays as it is; this one goes to $run_dir."

# A path as a value of an override.
quoted() {
  local path
  path=$(realpath -m "$1")
  path=${path//\\/\\\\}
  printf '"%s"' "${path//\"/\\\"}"
}

overrides=("run.dir=$run_dir" parallel.expert=2)
prompt=()
[ ${#text[@]} -gt 0 ] || prompt=(--prompt "template <")
if [ $tokenizer = bpe ]; then
  say "3/7 Data: a vocabulary of 4096 learnt from the text, then the text as its tokens"
  [ ${#paths[@]} -gt 0 ] || paths=("$(find /usr/include/c++ -mindepth 1 -maxdepth 1 -type d | sort -V | tail -n 1)")
  data_dir=$run_dir/data
  mkdir -p "$data_dir"
  "$braid" data train-tokenizer --vocab-size 4096 --out "$data_dir/tokenizer.json" "${paths[@]}"
  "$braid" data tokenize --tokenizer "$data_dir/tokenizer.json" --out "$data_dir/dataset" "${paths[@]}"
  overrides+=("data.sources=[{name: text, dataset: $(quoted "$data_dir/dataset")}]" model.vocab_size=4096)
elif [ ${#text[@]} -gt 0 ]; then
  say "3/7 Data: the bytes of your text become tokens"
  data_dir=$run_dir/data
  overrides+=("data.sources=[{name: text, shards: [$(quoted "$data_dir/train.h5")]}]")
else
  say "3/7 Data: the bytes of the installed C++ standard headers become tokens"
  data_dir=runs/laptop-data
fi
[ $tokenizer = bpe ] || "$braid" data demo --out "$data_dir" "${text[@]}"

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
more=()
[ ${#prompt[@]} = 0 ] || more=(--prompt "'class '")
echo "More text    $braid generate $run_dir ${more[*]}"
echo "Report       $braid report $run_dir --out report.html"
