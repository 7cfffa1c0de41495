#!/usr/bin/env bash
# Is Braid right on the GPUs of this machine, and how fast? One command, one report.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
  cat <<'TEXT'
Usage: scripts/gpu_check.sh [--bundle FOLDER | FILE.tgz] [--quick] [--only PART,...] [--report FILE] [--jobs N]
Builds Braid with CUDA and all tests (in build/gpu_check), or takes a bundle that scripts/bundle.sh made, and runs
  tests       on every GPU the tests of every operator; once the tests that need no GPU (not with --quick)
  parity      on every GPU every golden model in fp32 and bf16, trainings in fp32
  sanitizers  compute-sanitizer's memcheck, racecheck, initcheck and synccheck over the operators' tests
  train       the tiny model: CPU against GPU, two runs, checkpoints that change sides; the beginning of gpu-small;
              optimizer state in the host's memory
  ranks       both on two GPUs, experts shared and not; a rank that is killed, stopped or leaves a collective; rows shared by
              two and by four. Left out, and said so, where there is one GPU
  bench       braid bench and braid bench step
One line per check with its verdict and seconds, the end of what failed, and the tables go into FILE (default
gpu_check.txt here). Exit code 0: all passed; 1: something failed; 10: there is no GPU.
  --bundle    default: the bundle this script lies in, if it lies in one
  --quick     a few minutes: no CPU tests, no gpu-small, fewer sanitizer runs, bench step alone
  --only      some of the parts
  --jobs N    checks at a time on each GPU where they are small; default 4
TEXT
}

all_parts=tests,parity,sanitizers,train,ranks,bench
bundle='' quick=false parts=$all_parts report=gpu_check.txt jobs=4
report=$(from_caller $report)
while [ $# -gt 0 ]; do
  case $1 in
    --quick) quick=true ;;
    --bundle | --only | --report | --jobs)
      [ $# -ge 2 ] || die "$1 needs a value"
      case $1 in
        --bundle) bundle=$(from_caller "$2") ;;
        --only) parts=$2 ;;
        --report) report=$(from_caller "$2") ;;
        --jobs) [[ $2 =~ ^[1-9][0-9]*$ ]] || die "--jobs is '$2', but must be a whole number greater than 0"; jobs=$2 ;;
      esac
      shift ;;
    -h | --help) usage; exit 0 ;;
    *) usage >&2; die "unknown option $1" ;;
  esac
  shift
done
for part in ${parts//,/ }; do
  [[ ,$all_parts, == *",$part,"* ]] || die "--only $part: the parts are $all_parts"
done
wanted() { [[ ,$parts, == *",$1,"* ]]; }

no_gpu() { echo "gpu_check.sh: there is no NVIDIA GPU here that nvidia-smi can see" >&2; exit 10; }
command -v nvidia-smi >/dev/null || no_gpu
mapfile -t gpus < <(timeout 60 nvidia-smi --query-gpu=index --format=csv,noheader 2>/dev/null | grep -E '^ *[0-9]+$' | tr -d ' ')
[ ${#gpus[@]} -gt 0 ] || no_gpu
if [ -n "${CUDA_VISIBLE_DEVICES+set}" ]; then IFS=, read -r -a gpus <<<"$CUDA_VISIBLE_DEVICES"; fi
[ ${#gpus[@]} -gt 0 ] || no_gpu

started=$SECONDS
work=$(mktemp -d)
finish() { local job; for job in $(jobs -rp); do kill "$job" 2>/dev/null || true; done; rm -rf "$work"; }
trap finish EXIT
trap 'exit 130' INT TERM

# --- what to run ---------------------------------------------------------------------------------------------------------
root=$PWD
if [ -z "$bundle" ] && [ -f MANIFEST ] && [ -x bin/braid ]; then bundle=$root; fi
if [ -f "$bundle" ]; then
  tar -C "$work" -xzf "$bundle" || die "$bundle cannot be unpacked"
  bundle=$work/braid
fi
if [ -n "$bundle" ]; then
  [ -f "$bundle/MANIFEST" ] && [ -x "$bundle/bin/braid" ] || die "$bundle is not a bundle of scripts/bundle.sh"
  root=$bundle bin=$bundle/bin
  commit=$(sed -n 's/^commit //p' "$root/MANIFEST")
  # Libraries that this host lacks come from the bundle, without hiding those that it has; what comes may need others.
  mkdir "$work/lib"
  export LD_LIBRARY_PATH=$work/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
  for _ in 1 2 3 4 5; do
    missing=$(ldd "$bin"/* | awk '/not found/ { print $1 }' | sort -u)
    for name in $missing; do
      [ ! -e "$root/lib/spare/$name" ] || ln -sf "$root/lib/spare/$name" "$work/lib/$name"
    done
  done
else
  build=build/gpu_check
  say "Build in $build"
  prepare_cuda
  mkdir -p $build
  quietly $build/configure.log cmake -S . -B $build -G Ninja -DCMAKE_BUILD_TYPE=Release -DBRAID_CUDA=ON -DBRAID_TESTS=ON
  quietly $build/build.log cmake --build $build --parallel "$(usable_cores)"
  commit=$(git describe --always --dirty --abbrev=12 2>/dev/null || echo unknown)
  bin=$work/bin
  mkdir "$bin"
  find "$root/$build" -path "$root/$build/CMakeFiles" -prune -o -type f -perm -u+x \
    \( -name braid -o -name make_model_folder -o -name '*_test' \) -exec ln -s {} "$bin/" \;
fi
braid=$bin/braid
missing=$(ldd "$braid" | awk '/not found/ { printf "%s ", $1 }')
[ -z "$missing" ] || die "this host has no $missing(which the bundle leaves to the host)"
export BRAID_SOURCE=$root BRAID_GOLDEN=$root/tests/golden BRAID_MPI_SESSION_TEST=$bin/parallel.mpi_session_test BRAID_MPIEXEC="mpirun -n"
prepare_mpi

# --- one check -----------------------------------------------------------------------------------------------------------
mkdir "$work/logs"
: >"$work/results"
cores=$(usable_cores)

# check NAME LIMIT COMMAND...: runs it with a limit in seconds; one line in results, its output in a log
check() {
  local name=$1 limit=$2 log status=0 begin verdict=PASS why=''
  shift 2
  log=$work/logs/$(tr -c 'A-Za-z0-9.\n-' _ <<<"$name")
  begin=$(date +%s%N)
  timeout -k 15 "$limit" "$@" >"$log" 2>&1 </dev/null || status=$?
  if [ $status = 124 ] || [ $status = 137 ]; then verdict=FAIL why="; stopped at its limit of $limit s"
  elif [ $status != 0 ]; then verdict=FAIL why="; exit code $status"
  elif grep -q 'there is no GPU here' "$log"; then verdict=FAIL why='; skipped: it saw no GPU'
  fi
  record "$verdict" "$(awk "BEGIN { printf \"%.1f\", ($(date +%s%N) - $begin) / 1e9 }")" "$name$why" "$log"
}
record() {  # VERDICT SECONDS TEXT LOG
  printf '%s\t%s\t%s\t%s\n' "$@" >>"$work/results"
  printf '%-5s %7s s  %s\n' "$1" "$2" "$3"
}
# on GPU N: the check beside others, as many at a time as --jobs allows for each GPU
on() {
  local gpu=$1
  shift
  while [ "$(jobs -rp | wc -l)" -ge $((jobs * ${#gpus[@]})) ]; do wait -n || true; done
  CUDA_VISIBLE_DEVICES=$gpu OMP_NUM_THREADS=$threads check "$@" &
}
finish_all() { wait; }
threads=$((cores / (jobs * ${#gpus[@]})))
[ $threads -ge 1 ] || threads=1

# --- parts ---------------------------------------------------------------------------------------------------------------
kernel_tests=$(cd "$bin" && ls kernels.cuda.*_test)
gpu_tests="$kernel_tests parallel.nccl_communicator_test trainer.device.gpu_start_test trainer.optimizer.optimizer_test"
limit_of() { if $quick; then echo "$1"; else echo "$2"; fi; }

run_tests() {
  local gpu test ranks
  for gpu in "${gpus[@]}"; do
    for test in $gpu_tests; do on "$gpu" "tests: GPU $gpu: ${test%_test}" 240 "$bin/$test"; done
  done
  finish_all
  $quick && return
  for test in $(cd "$bin" && ls -- *_test); do
    case $test in
      kernels.cuda.* | parallel.nccl_communicator_test | trainer.device.gpu_start_test | trainer.optimizer.optimizer_test) ;;
      parallel.mpi_session_test) on '' "tests: CPU: ${test%_test}" 180 "$bin/$test" ;;
      parallel.*)
        [ $test = parallel.mpi_communicator_test ] || on '' "tests: CPU: ${test%_test}" 180 "$bin/$test"
        for ranks in 2 4; do on '' "tests: CPU: ${test%_test}, $ranks ranks" 180 mpirun -n $ranks "$bin/$test"; done ;;
      *) on '' "tests: CPU: ${test%_test}" 300 "$bin/$test" ;;
    esac
  done
  for test in convert errors layouts resume; do
    on '' "tests: CPU: e2e.$test" 900 "$root/tests/e2e/$test.sh" "$braid" "$root" "$bin/make_model_folder"
  done
  finish_all
}

run_parity() {
  local gpu folder shape precision policy
  for gpu in "${gpus[@]}"; do
    for folder in "$root"/tests/golden/*/; do
      shape=$(basename "$folder")
      for precision in fp32 bf16; do
        on "$gpu" "parity: GPU $gpu: $shape, $precision" 120 \
          "$braid" parity --model "$folder" --reference "$folder/reference.safetensors" --device cuda --precision $precision
        case $shape in base | mtp | packed) ;; *) continue ;; esac
        for policy in elementwise moe layer; do
          on "$gpu" "parity: GPU $gpu: $shape, $precision, $policy made again" 120 "$braid" parity --model "$folder" \
            --reference "$folder/reference.safetensors" --device cuda --precision $precision --recompute $policy
        done
      done
      [ ! -f "$folder/train.safetensors" ] || on "$gpu" "parity: GPU $gpu: $shape, fp32, training" 120 \
        "$braid" parity --model "$folder" --train "$folder/train.safetensors" --device cuda
    done
  done
  finish_all
}

# Tests that repeat or are large are left out under a tool that makes kernels ten to a hundred times slower, and those of
# times. Hazards in shared memory and uninitialised reads are looked for in our own kernels; those of cuBLAS and cuDNN have
# their own habits. Memory errors are looked for in all, since wrong sizes that we hand over would show there.
run_sanitizers() {
  local sanitizer tool test gpu=${gpus[0]} tools='memcheck racecheck initcheck synccheck' filter skip options i=0
  sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer /opt/nvidia/compute-sanitizer/compute-sanitizer 2>/dev/null | head -1 || true)
  if [ -z "$sanitizer" ]; then
    record FAIL 0 "sanitizers: compute-sanitizer is not on this machine" /dev/null
    return
  fi
  $quick && tools='memcheck racecheck'
  for tool in $tools; do
    skip='*SameBits*:*SaysWhich*:*LongDocuments*:*TimesTheWork*' options=()
    [ $tool = memcheck ] || options=(--kernel-name kernel_substring=braid)
    [ $tool != racecheck ] || skip+=':*BackwardAddsInTokenOrder*'
    ! $quick || skip+=':*/F32'
    for test in $kernel_tests; do
      case $test in kernels.cuda.determinism_test | kernels.cuda.cases_test) continue ;; esac
      filter="-$skip"
      # Attention's kernels take minutes for what else is there. And a bf16 product of cuBLASLt stops with an illegal access
      # under racecheck, although none of its launches is checked: the products are no kernels of ours, and the head's
      # kernels are one template for both dtypes.
      if [ $tool = racecheck ]; then
        case $test in
          kernels.cuda.lm_head_loss_test) filter+=':*/BF16' ;;
          kernels.cuda.attention_test) filter='*FewTiles*' ;;
        esac
      fi
      gpu=${gpus[$((i++ % ${#gpus[@]}))]}
      on "$gpu" "sanitizers: $tool: ${test%_test}" "$(limit_of 90 300)" \
        "$sanitizer" --tool $tool --error-exitcode 66 --print-limit 10 "${options[@]}" "$bin/$test" --gtest_filter="$filter" --gtest_brief=1
    done
    # Every operator in its smaller variants.
    for test in $("$bin/kernels.cuda.cases_test" --gtest_list_tests | sed -n 's|^ *\(AgreesWithTheCpu[A-Za-z]*/[a-z_]*_B*F[0-9]*\).*|\1|p'); do
      case $tool:$test in
        racecheck:*/matmul_* | racecheck:*/lm_head_loss_BF16 | racecheck:*/attention_F32 | racecheck:*/attention_BF16) continue ;;
      esac
      if $quick; then case $test in *_F32) continue ;; esac; fi
      gpu=${gpus[$((i++ % ${#gpus[@]}))]}
      on "$gpu" "sanitizers: $tool: $test" "$(limit_of 90 300)" env BRAID_MOST_CASE_BYTES=300000 \
        "$sanitizer" --tool $tool --error-exitcode 66 --print-limit 10 "${options[@]}" "$bin/kernels.cuda.cases_test" --gtest_filter="*.$test" --gtest_brief=1
    done
  done
  finish_all
}

run_train() {
  CUDA_VISIBLE_DEVICES=${gpus[0]} check "train: one GPU" 600 "$root/tests/e2e/gpu.sh" "$braid" "$root" train
  $quick || CUDA_VISIBLE_DEVICES=${gpus[0]} check "train: gpu-small, one GPU" 600 "$root/tests/e2e/gpu.sh" "$braid" "$root" small
  CUDA_VISIBLE_DEVICES=$(IFS=,; echo "${gpus[*]}") check "train: offloaded optimizer state" 600 "$root/tests/e2e/gpu.sh" "$braid" "$root" offload
}

run_ranks() {
  if [ ${#gpus[@]} -lt 2 ]; then
    record SKIP 0 "ranks: one GPU here, two are needed" /dev/null
    return
  fi
  local two=${gpus[0]},${gpus[1]}
  CUDA_VISIBLE_DEVICES=$two check "ranks: parallel.nccl_communicator, 2 ranks" 120 mpirun -n 2 "$bin/parallel.nccl_communicator_test"
  CUDA_VISIBLE_DEVICES=$two check "ranks: two GPUs" 600 "$root/tests/e2e/gpu.sh" "$braid" "$root" ranks
  CUDA_VISIBLE_DEVICES=$two check "ranks: faults" 400 "$root/tests/e2e/gpu.sh" "$braid" "$root" faults
  CUDA_VISIBLE_DEVICES=$(IFS=,; echo "${gpus[*]}") check "ranks: shared rows" 600 "$root/tests/e2e/gpu.sh" "$braid" "$root" context
}

run_bench() {
  local first=${gpus[0]} steps=(--steps "$(limit_of 5 20)" --warmup "$(limit_of 2 5)") name
  $quick || CUDA_VISIBLE_DEVICES=$first check "bench: operators" 420 "$braid" bench
  CUDA_VISIBLE_DEVICES=$first check "bench: step of group-128" 240 "$braid" bench step "$root/configs/bench/group-128.yaml" "${steps[@]}"
  if [ ${#gpus[@]} -ge 2 ]; then
    CUDA_VISIBLE_DEVICES=$first,${gpus[1]} check "bench: step of group-256-ep2, two GPUs" 240 \
      mpirun -n 2 "$braid" bench step "$root/configs/bench/group-256-ep2.yaml" "${steps[@]}"
    $quick || CUDA_VISIBLE_DEVICES=$first,${gpus[1]} check "bench: collectives, two GPUs" 240 mpirun -n 2 "$braid" bench --op communicator
  fi
}

header() {
  echo "Braid on GPUs, $(date -u +'%Y-%m-%d %H:%M UTC')"
  echo "  $("$braid" --version | head -1), commit $commit, $([ -n "$bundle" ] && sed -n 's/^built /bundle built /p' "$root/MANIFEST" || echo 'built here')"
  nvidia-smi --query-gpu=index,name,driver_version,memory.total --format=csv,noheader | sed 's/^/  GPU /'
  echo "  $cores cores, $(. /etc/os-release 2>/dev/null && echo "${PRETTY_NAME:-}"); parts $parts$($quick && echo ', quick' || true)"
}

header
for part in ${parts//,/ }; do
  say "$part"
  run_"$part"
done

# --- report --------------------------------------------------------------------------------------------------------------
count() { cut -f1 "$work/results" | grep -cx "$1" || true; }
passed=$(count PASS) failed=$(count FAIL) skipped=$(count SKIP)
{
  header
  echo
  awk -F '\t' '{ printf "%-5s %7s s  %s\n", $1, $2, $3 }' "$work/results"
  echo
  echo "$passed passed, $failed failed, $skipped left out, in $((SECONDS - started)) s"
  awk -F '\t' '$1 == "FAIL" { print $3 "\t" $4 }' "$work/results" | while IFS=$'\t' read -r name log; do
    printf '\n===== %s\n' "$name"
    [ ! -s "$log" ] || { grep -E 'Failure|FAILED|ERROR SUMMARY|=========     at |Error:|RACECHECK SUMMARY' "$log" | head -15 || true; echo '-----'; tail -n 25 "$log"; } | cut -c1-220
  done
  awk -F '\t' '$1 == "PASS" && $3 ~ /^(bench|train|ranks)|determinism/ { print $3 "\t" $4 }' "$work/results" |
    while IFS=$'\t' read -r name log; do
      printf '\n===== %s\n' "$name"
      grep -vE '^\[|^$|^Note: Google Test|^Running main' "$log" | cut -c1-220 || true
    done
} >"$report"
printf '\n%s passed, %s failed, %s left out. Report: %s\n' "$passed" "$failed" "$skipped" "$report"
[ "$failed" = 0 ] && [ "$passed" -gt 0 ]
