#!/usr/bin/env bash
# A run on this host: as many ranks as it has GPUs, or CUDA_VISIBLE_DEVICES names, else RANKS (default 2). It goes on where the run folder holds a checkpoint, and
# again after a failure (scripts/supervise.sh); SIGTERM or Ctrl-C to this script saves and stops it.
#   scripts/launch/one_node.sh CONFIG [key=value ...]
set -euo pipefail
braid=${BRAID:-braid}
command -v "$braid" >/dev/null || { echo "one_node.sh: there is no program $braid; set BRAID=path/to/braid" >&2; exit 10; }
[ $# -ge 1 ] || { sed -n '2,4s/^# *//p' "$0" >&2; exit 2; }
ranks=${RANKS:-}
[ -n "$ranks" ] || [ -z "${CUDA_VISIBLE_DEVICES:-}" ] || ranks=$(tr ',' '\n' <<<"$CUDA_VISIBLE_DEVICES" | grep -c .)  # of the host's, those
[ -n "$ranks" ] || ranks=$(nvidia-smi -L 2>/dev/null | grep -c '^GPU' || true)
[ "$ranks" != 0 ] || ranks=2
export OMPI_MCA_rmaps_base_oversubscribe=1 PRTE_MCA_rmaps_default_mapping_policy=:oversubscribe
export OMPI_MCA_hwloc_base_binding_policy=none PRTE_MCA_hwloc_default_binding_policy=none
export OMPI_MCA_btl_tcp_if_include=${OMPI_MCA_btl_tcp_if_include:-lo}  # one host: without it Open MPI 5 warns of the others
if [ "$(id -u)" = 0 ]; then export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1; fi
exec "$(dirname "${BASH_SOURCE[0]}")/../supervise.sh" mpirun -n "$ranks" "$braid" train "$@"
