# shellcheck shell=bash
# Shared by the scripts of this folder, which source it. Leaves the working folder at the root of the source tree.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf '\n==> %s\n' "$*"; }
die() { printf '%s: %s\n' "$(basename "$0")" "$*" >&2; exit 1; }

# Cores that this process may use: its affinity, and the quota of a container.
usable_cores() {
  local cores quota period
  cores=$(nproc)
  if read -r quota period 2>/dev/null </sys/fs/cgroup/cpu.max && [ "$quota" != max ]; then
    quota=$(((quota + period - 1) / period))
    [ "$quota" -lt "$cores" ] && cores=$quota
  fi
  echo $((cores > 0 ? cores : 1))
}

# Runs a command and shows its output only on a terminal, or if it fails.   quietly LOG COMMAND...
quietly() {
  local log=$1
  shift
  if [ -t 1 ]; then
    "$@"
  elif ! "$@" >"$log" 2>&1; then
    tail -n 60 "$log" >&2
    die "this failed: $* (whole output in $log)"
  fi
}

# Open MPI: more ranks than it counts cores, no binding (in containers it would put all ranks on one core), and root where
# that is who we are. Other MPI libraries ignore these.
prepare_mpi() {
  export OMPI_MCA_rmaps_base_oversubscribe=1 OMPI_MCA_hwloc_base_binding_policy=none
  export PRTE_MCA_rmaps_default_mapping_policy=:oversubscribe PRTE_MCA_hwloc_default_binding_policy=none
  if [ "$(id -u)" = 0 ]; then export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1; fi
}

# The headers of cuDNN's front-end for a build with CUDA, if the network has them; without them attention runs in Braid's own
# kernels. Nothing happens without nvcc.
prepare_cuda() {
  command -v nvcc >/dev/null || return 0
  timeout 120 scripts/fetch_cudnn_frontend.sh ||
    echo "The headers of cuDNN's front-end could not be fetched: attention will run in Braid's own kernels."
}
