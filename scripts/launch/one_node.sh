#!/usr/bin/env bash
# A run on this host: as many ranks as it has GPUs, else RANKS (default 2). It resumes where the run folder holds a checkpoint.
#   scripts/launch/one_node.sh CONFIG [key=value ...]
set -euo pipefail
braid=${BRAID:-braid}
command -v "$braid" >/dev/null || { echo "one_node.sh: there is no program $braid; set BRAID=path/to/braid" >&2; exit 10; }
[ $# -ge 1 ] || { sed -n '2,3s/^# *//p' "$0" >&2; exit 2; }
ranks=${RANKS:-$(nvidia-smi --query-gpu=index --format=csv,noheader 2>/dev/null | wc -l)}
[ "$ranks" -gt 0 ] || ranks=2
export OMPI_MCA_rmaps_base_oversubscribe=1 PRTE_MCA_rmaps_default_mapping_policy=:oversubscribe
export OMPI_MCA_hwloc_base_binding_policy=none PRTE_MCA_hwloc_default_binding_policy=none
# A rank gets a minute to save when mpirun is told to stop; Open MPI's own patience is one second.
export OMPI_MCA_odls_base_sigkill_timeout=60 PRTE_MCA_odls_base_sigkill_timeout=60
if [ "$(id -u)" = 0 ]; then export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1; fi
exec mpirun -n "$ranks" "$braid" train "$@"
