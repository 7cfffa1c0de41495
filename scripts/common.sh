# shellcheck shell=bash
# Shared by the scripts of this folder, which source it. Leaves the working folder at the root of the source tree.
set -euo pipefail
caller=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# A path as the caller meant it.
from_caller() { case $1 in /*) printf '%s' "$1" ;; *) printf '%s/%s' "$caller" "$1" ;; esac; }

say() { printf '\n==> %s\n' "$*"; }
die() { printf '%s: %s\n' "$(basename "$0")" "$*" >&2; exit 1; }

# Cores that this process may use: its affinity, and the quota of a container.
usable_cores() {
  local cores quota period
  cores=$(env -u OMP_NUM_THREADS -u OMP_THREAD_LIMIT nproc)  # which would answer with them
  if read -r quota period 2>/dev/null </sys/fs/cgroup/cpu.max && [ "$quota" != max ]; then
    quota=$(((quota + period - 1) / period))
    [ "$quota" -lt "$cores" ] && cores=$quota
  fi
  echo $((cores > 0 ? cores : 1))
}

# Runs a command and shows its output only on a terminal, or if it fails; elsewhere it says every half minute how far ninja
# is.   quietly LOG COMMAND...
quietly() {
  local log=$1 job seconds=0
  shift
  if [ -t 1 ]; then
    "$@"
    return
  fi
  "$@" >"$log" 2>&1 &
  job=$!
  while kill -0 $job 2>/dev/null; do
    sleep 1
    if [ $((++seconds % 30)) = 0 ]; then echo "  $seconds s: $(tail -n 1 "$log" | cut -c 1-100)"; fi
  done
  wait $job || { tail -n 60 "$log" >&2; die "this failed: $* (whole output in $log)"; }
}

# How many GPUs there are. Fails, with 0 and a sentence, where there is none.
gpus_here() { nvidia-smi -L 2>/dev/null | grep -c '^GPU' || { echo "$(basename "$0"): there is no NVIDIA GPU that nvidia-smi can see" >&2; return 1; }; }

# Open MPI: more ranks than it counts cores, no binding (in containers it would put all ranks on one core), root where that is
# who we are, and no network but this host's own, of which version 5 warns that it has none. Other MPI libraries ignore these.
prepare_mpi() {
  export OMPI_MCA_rmaps_base_oversubscribe=1 OMPI_MCA_hwloc_base_binding_policy=none
  export PRTE_MCA_rmaps_default_mapping_policy=:oversubscribe PRTE_MCA_hwloc_default_binding_policy=none
  export OMPI_MCA_btl_tcp_if_include=${OMPI_MCA_btl_tcp_if_include:-lo}
  if [ "$(id -u)" = 0 ]; then export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1; fi
}

# Tests run beside each other: a thread that waits for the others of its program sleeps, or it would take a core from the next
# program.
prepare_threads() { export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive}; }

# The headers of cuDNN's front-end for a build with CUDA, if the network has them; without them attention runs in Braid's own
# kernels. Nothing happens without nvcc, or for OFF.   prepare_cuda [AUTO|OFF], of -DBRAID_CUDA
prepare_cuda() {
  [ "${1:-AUTO}" != OFF ] && command -v nvcc >/dev/null || return 0
  timeout 120 scripts/fetch_cudnn_frontend.sh ||
    echo "The headers of cuDNN's front-end could not be fetched: attention will run in Braid's own kernels."
}
