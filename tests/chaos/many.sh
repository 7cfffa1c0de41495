#!/usr/bin/env bash
# Faults in thousands, on a machine with many cores:   tests/chaos/many.sh BRAID FAULTY_CALLS REPORT [JOBS [FAULTS [HANGS]]]
# Random ones (1,000 by default), then every call of saves and loads, of requests for memory and of collectives, on either rank, then
# ranks that stand still (50); JOBS trainings at a time (default: half as many as there are cores). REPORT gets one line for each kind
# and the end of what failed; exit code 1 if anything did, or there was no time for it. Needs Python, mpirun and `braid` alone.
#   BRAID_CHAOS_SECONDS   no new fault of a part is begun after as many seconds (default 200)
set -u
[ $# -ge 3 ] || { sed -n 2,6p "$0" | cut -c3-; exit 2; }
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd) source=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
braid=$(realpath "$1") calls=$(realpath "$2") report=$(realpath -m "$3")
cores=$(env -u OMP_NUM_THREADS nproc)
jobs=${4:-$((cores / 2 > 1 ? cores / 2 : 1))} faults=${5:-1000} hangs=${6:-50} seconds=${BRAID_CHAOS_SECONDS:-200}

# Hundreds of small checkpoints at a time: on a disk most of the time would be fsync's.
free() { df --output=avail -BG "$1" 2>/dev/null | tail -1 | tr -dc 0-9; }
[ -n "${TMPDIR:-}" ] || { [ "$(free /dev/shm)" -ge 16 ] && TMPDIR=/dev/shm || TMPDIR=/tmp; }
export TMPDIR
work=$(mktemp -d "$TMPDIR/braid-many-XXXXXX")
export TMPDIR=$work OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE=1
# Messages of the ranks of a job go through files, which /dev/shm may be too small for.
[ "$(free /dev/shm)" -ge 4 ] || export OMPI_MCA_btl_vader_backing_directory=$work OMPI_MCA_osc_sm_backing_directory=$work
say() { echo "$*" | tee -a "$report"; }
: >"$report"
status=0

say "$("$braid" --version 2>&1 | head -1), $cores cores, $jobs jobs at a time, $(date -u +%F)"
"$braid" --version >/dev/null 2>&1 || { say "$braid does not run here: $("$braid" --version 2>&1 | head -3)"; exit 1; }

failures() {  # failures LOG...: their ends, if they tell of one
  local log
  for log in "$@"; do
    grep -q '^FAILED\|Traceback\|^  FAILED' "$log" && { status=1; say "--- $(basename "$log"):"; tail -n 60 "$log" | tee -a "$report"; }
  done
}

begin=$SECONDS
each=$(((faults + jobs - 1) / jobs))
[ $each -ge 10 ] || each=10
shards=$(((faults + each - 1) / each))
seq $shards | xargs -P "$jobs" -I{} sh -c 'python3 "$0/chaos.py" "$1" "$2" "$3" --faults "$4" --seconds "$5" --seed {} >"$6/chaos-{}.log" 2>&1' \
  "$here" "$braid" "$source" "$calls" $each "$seconds" "$work"
cat "$work"/chaos-*.log | awk -v shards=$shards -v s=$((SECONDS - begin)) '
  /the same as the golden one/ { faults += $1; hit += $3; runs += $5; whole++ }
  /^ +[0-9]+  / { sub(/,/, "", $0); n = $1; h = $(NF - 1); $1 = ""; $NF = ""; $(NF - 1) = ""; count[$0] += n; hits[$0] += h }
  END {
    printf "random faults: %d, of which %d hit, %d runs complete, all as the golden one; %d of %d programs without a failure; %d s\n",
      faults, hit, runs, whole, shards, s
    for (kind in count) printf "  %4d %s, %d hit\n", count[kind], kind, hits[kind]
  }' | tee -a "$report"
[ "$(cat "$work"/chaos-*.log | grep -c 'the same as the golden one')" = $shards ] || status=1
failures "$work"/chaos-*.log

begin=$SECONDS
python3 "$here/every_call.py" "$braid" "$source" "$calls" --jobs "$jobs" --seconds "$seconds" >"$work/every_call.log" 2>&1 || status=1
say "every call: $((SECONDS - begin)) s"
tail -n 120 "$work/every_call.log" | tee -a "$report"

begin=$SECONDS
# A few at a time: what tells them is time.
seq $(((hangs + 1) / 2)) | xargs -P "$(((jobs + 1) / 2))" -I{} sh -c 'python3 "$0/hangs.py" "$1" "$2" --hangs 2 --seed {} >"$3/hangs-{}.log" 2>&1' \
  "$here" "$braid" "$source" "$work"
named=$(cat "$work"/hangs-*.log | grep -cE '^ *[0-9]+ .*rank [01]')
say "hangs: $named of $(((hangs + 1) / 2 * 2)) named rightly; $((SECONDS - begin)) s"
[ "$named" = $(((hangs + 1) / 2 * 2)) ] || status=1
failures "$work"/hangs-*.log

say "$([ $status = 0 ] && echo "all is well" || echo "something failed"), $SECONDS s"
[ $status = 0 ] && rm -rf "$work"
exit $status
