#!/usr/bin/env bash
# A run on several hosts by mpirun over ssh. HOSTFILE has a line per host, "node01 slots=8": 8 ranks there, one per GPU.
#   scripts/launch/hostfile.sh HOSTFILE CONFIG [key=value ...]
# The program, the config and run.dir must have the same path on every host. HOST_INTERFACE=eth0 names the network between
# them where there are several. `braid doctor` is run on all ranks first; DOCTOR=0 leaves it out. The run goes on where its folder
# holds a checkpoint, and again after a failure (scripts/supervise.sh); SIGTERM or Ctrl-C to this script saves and stops it.
set -euo pipefail
braid=$(command -v "${BRAID:-braid}") || { echo "hostfile.sh: there is no program ${BRAID:-braid}; set BRAID=path/to/braid" >&2; exit 10; }
[ $# -ge 2 ] || { sed -n '2,3s/^# *//p' "$0" >&2; exit 2; }
hostfile=$1
shift
[ -r "$hostfile" ] || { echo "hostfile.sh: $hostfile cannot be read" >&2; exit 2; }
! grep -q $'\r' "$hostfile" || { echo "hostfile.sh: $hostfile has line ends of Windows, which Open MPI does not take; sed -i 's/\r\$//' $hostfile" >&2; exit 2; }
export OMPI_MCA_hwloc_base_binding_policy=none PRTE_MCA_hwloc_default_binding_policy=none
# A host out of reach ends the job after 20 + 4 * 5 seconds, instead of after eight minutes or, if Braid's own watch (run.hang_timeout, 120 s)
# is first, when TCP gives up.
export OMPI_MCA_oob_tcp_keepalive_time=${OMPI_MCA_oob_tcp_keepalive_time:-20}
export OMPI_MCA_oob_tcp_keepalive_intvl=${OMPI_MCA_oob_tcp_keepalive_intvl:-5} OMPI_MCA_oob_tcp_keepalive_probes=${OMPI_MCA_oob_tcp_keepalive_probes:-4}
if [ -n "${HOST_INTERFACE:-}" ]; then
  export OMPI_MCA_btl_tcp_if_include=$HOST_INTERFACE OMPI_MCA_oob_tcp_if_include=$HOST_INTERFACE
  export NCCL_SOCKET_IFNAME=${NCCL_SOCKET_IFNAME:-$HOST_INTERFACE}
fi
if [ "$(id -u)" = 0 ]; then export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1; fi
# Only what is set travels to the other hosts.
forward=()
for name in OMP_NUM_THREADS HDF5_USE_FILE_LOCKING LD_LIBRARY_PATH ${!NCCL_@} ${!BRAID_@}; do
  [ -z "${!name:-}" ] || forward+=(-x "$name")
done
launch=(mpirun --hostfile "$hostfile" "${forward[@]}")
[ "${DOCTOR:-1}" = 0 ] || "${launch[@]}" "$braid" doctor
exec "$(dirname "${BASH_SOURCE[0]}")/../supervise.sh" "${launch[@]}" "$braid" train "$@"
