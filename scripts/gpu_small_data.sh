#!/usr/bin/env bash
# The tokens that configs/runs/gpu-small.yaml trains on, from text that is installed on this machine.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
  cat <<'TEXT'
Usage: scripts/gpu_small_data.sh [--braid PROGRAM] [--out FOLDER] [--text PATH]...
Writes FOLDER/train.h5 (default runs/gpu-small-data) from the source texts that nearly every Linux machine has: the C++
standard headers, Python's and Perl's standard libraries; what is not there is left out. 38 MB on Debian 12.
  --braid PROGRAM  default: build/release/braid, or that of the bundle
  --text PATH      a text file or folder instead of them (repeatable)
TEXT
}

braid=bin/braid out=runs/gpu-small-data text=()
[ -x $braid ] || braid=build/release/braid
while [ $# -gt 0 ]; do
  case $1 in
    --braid | --out | --text)
      [ $# -ge 2 ] || die "$1 needs a value"
      case $1 in
        --braid) braid=$(from_caller "$2") ;;
        --out) out=$(from_caller "$2") ;;
        --text) text+=(--text "$(from_caller "$2")") ;;
      esac
      shift ;;
    -h | --help) usage; exit 0 ;;
    *) usage >&2; die "unknown option $1" ;;
  esac
  shift
done
[ -x "$braid" ] || die "$braid is not there; build it, or name it with --braid"

if [ ${#text[@]} = 0 ]; then
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  # collect NAME FOLDER PATTERN...: copies the files of FOLDER that match
  collect() {
    local name=$1 folder=$2 patterns=() count
    shift 2
    [ -d "$folder" ] || { echo "$name: not installed here"; return; }
    for pattern in "$@"; do patterns+=(-o -name "$pattern"); done
    mkdir -p "$work/$name"
    (cd "$folder" && find . \( -name site-packages -o -name dist-packages \) -prune -o \
      -type f \( "${patterns[@]:1}" \) -print0 | tar -c --null -T - | tar -x -C "$work/$name")
    count=$(find "$work/$name" -type f | wc -l)
    [ "$count" -gt 0 ] || { echo "$name: $folder holds no such files"; rm -r "${work:?}/$name"; return; }
    echo "$name: $count files, $(du -sb --apparent-size "$work/$name" | cut -f1) bytes, from $folder"
    text+=(--text "$work/$name")
  }
  python=$(PATH=/usr/bin:$PATH python3 -c 'import sysconfig; print(sysconfig.get_path("stdlib"))' 2>/dev/null || true)
  perl=$(PATH=/usr/bin:$PATH perl -MCPAN -MFile::Basename -e 'print dirname($INC{"CPAN.pm"})' 2>/dev/null || true)
  collect cpp "$(find /usr/include/c++ -mindepth 1 -maxdepth 1 -type d 2>/dev/null | sort -V | tail -1)" '*'
  collect python "$python" '*.py'
  collect perl "$perl" '*.pm' '*.pl' '*.pod'
  [ ${#text[@]} -gt 0 ] || die "none of these texts is installed here; name text with --text"
fi
"$braid" data demo --out "$out" "${text[@]}"
