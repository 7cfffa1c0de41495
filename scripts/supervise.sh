#!/usr/bin/env bash
# Starts a training again until it is complete:   scripts/supervise.sh mpirun -n 8 braid train run.yaml run.dir=runs/mine
# The command is a `braid train` of any launcher; --resume=auto is added to it. What another start cannot mend (config, data, a checkpoint
# that is refused, numerics, a folder in use, the environment) ends it with braid's exit code; so does a stop on request (75, 76). SIGTERM,
# SIGINT and SIGUSR1 are passed on as SIGUSR1, which mpirun hands to its ranks as it is: the run saves and leaves. What cannot be started
# (126, 127) is not tried again. New checkpoints are looked for where the command or its config says that the run lies.
#   BRAID_RETRIES   failures in a row without a new checkpoint before it gives up (default 5)
#   BRAID_PAUSE_S   seconds before a new start, doubled after each failure without a new checkpoint (default 2, at most 300)
set -u
usage() { sed -n '2,/^[^#]/s/^# //p' "$0"; }
case ${1-} in
  '') usage >&2; exit 2 ;;
  -h | --help) usage; exit 0 ;;
esac
retries=${BRAID_RETRIES:-5} first_pause=${BRAID_PAUSE_S:-2}

# run_dir_of COMMAND...: run.dir of the `braid train` in it, by its overrides or else its config; nothing if that cannot be told
run_dir_of() {
  local word program= config= dir= overrides=()
  while [ $# -gt 0 ] && [ "$1" != train ]; do program=$1; shift; done
  for word in "${@:2}"; do
    case $word in
      -*) ;;
      run.dir=*) dir=${word#run.dir=} ;;
      *) if [ -z "$config" ]; then config=$word; else case $word in *=*) overrides+=("$word") ;; esac; fi ;;
    esac
  done
  [ -n "$dir" ] || dir=$("$program" config print "$config" "${overrides[@]}" 2>/dev/null | sed -n '/^run:/,/^[^ ]/s/^  dir: "\{0,1\}\([^"]*\)"\{0,1\}$/\1/p')
  echo "$dir"
}
run_dir=$(run_dir_of "$@")

child= asked=
pass_on() {
  asked=yes
  [ -n "$child" ] && kill -USR1 "$child" 2>/dev/null
}
trap pass_on TERM INT USR1

newest() { [ -n "$run_dir" ] && ls -d "$run_dir"/checkpoints/step-* 2>/dev/null | tail -1; }

failures=0 pause=$first_pause
while :; do
  before=$(newest)
  "$@" --resume=auto &
  child=$!
  code=255
  while :; do  # a trapped signal ends `wait` early
    wait "$child"
    code=$?
    kill -0 "$child" 2>/dev/null || break
  done
  child=
  case $code in
    0 | 75 | 76) exit $code ;;
    2 | 3 | 4 | 6 | 8 | 10 | 126 | 127)
      echo "supervise: the command ended with $code, which a new start does not mend" >&2
      exit $code ;;
  esac
  [ -z "$asked" ] || exit "$code"
  if [ "$(newest)" != "$before" ]; then failures=0 pause=$first_pause; fi
  failures=$((failures + 1))
  if [ $failures -gt "$retries" ]; then
    echo "supervise: $failures failures in a row without a new checkpoint, the last with exit code $code" >&2
    exit "$code"
  fi
  echo "supervise: exit code $code; start again in $pause s" >&2
  sleep "$pause" &
  wait $!
  [ -z "$asked" ] || exit 75
  pause=$((pause * 2 < 300 ? pause * 2 : 300))
done
