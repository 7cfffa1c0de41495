#!/usr/bin/env bash
# Two "hosts": network namespaces with a name, an address and a loopback of their own, and one cable between them. mpirun on the first starts
# a daemon on the second through a script in the place of ssh. The same bits as on one host; a cable that is cut, and a host whose
# ranks all die, end the job with the host's name. Needs root and `ip netns`; else it is skipped (77).
source "$(dirname "$0")/common.sh" "$@"
command -v ip >/dev/null && [ "$(id -u)" = 0 ] && unshare --uts --net true 2>/dev/null || { echo "not checked: needs root and ip"; exit 77; }

one=braid-one-$$ two=braid-two-$$
cleanup() {
  for host in $one $two; do
    ip netns pids $host 2>/dev/null | xargs -r kill -9 2>/dev/null || true
    ip netns delete $host 2>/dev/null || true
  done
  rm -rf "$WORK"
}
trap cleanup EXIT
ip netns add $one && ip netns add $two || { echo "not checked: no network namespaces here"; exit 77; }
ip link add b1-$$ netns $one type veth peer name b2-$$ netns $two
for host in "$one b1-$$ 10.77.0.1" "$two b2-$$ 10.77.0.2"; do
  read -r name cable address <<<"$host"
  ip -n $name addr add $address/24 dev $cable
  ip -n $name link set $cable up
  ip -n $name link set lo up
done

# on NAME COMMAND...: with that host's network and name
cat >"$WORK/on" <<'EOF'
#!/usr/bin/env bash
name=$1
shift
exec ip netns exec "$name" unshare --uts bash -c 'hostname "${0%-*}" && exec "$@"' "$name" "$@"
EOF
# What mpirun calls instead of ssh: REMOTE [options] ADDRESS COMMAND
cat >"$WORK/remote" <<EOF
#!/usr/bin/env bash
while [[ \$1 == -* ]]; do shift; done
[ "\$1" = 10.77.0.2 ] || { echo "remote: unknown host \$1" >&2; exit 1; }
shift
exec "$WORK/on" $two bash -c "\$*"
EOF
chmod +x "$WORK/on" "$WORK/remote"
printf '10.77.0.1 slots=2\n10.77.0.2 slots=2\n' >"$WORK/hosts"
across=("$WORK/on" $one mpirun --hostfile "$WORK/hosts" --mca plm_rsh_agent "$WORK/remote" --mca oob_tcp_if_include 10.77.0.0/24
  --mca btl_tcp_if_include 10.77.0.0/24 -n 4)

same=(parallel.expert=2 run.steps=4 schedule.warmup_steps=1 checkpoint.interval_steps=2)
train 4 "$WORK/here" "${same[@]}"
timeout 120 "${across[@]}" "$BRAID" train "$TINY" "run.dir=$WORK/across" "${same[@]}" >"$WORK/across.log" 2>&1 || { cat "$WORK/across.log" >&2; fail "no training across two hosts"; }
grep -q '^ranks 0, 1 *braid-one ' "$WORK/across.log" && grep -q '^ranks 2, 3 *braid-two ' "$WORK/across.log" || { head -20 "$WORK/across.log" >&2; fail "the start does not list both hosts"; }
same_numbers "$WORK/here" "$WORK/across" "one host, two hosts"
"$BRAID" ckpt diff "$WORK/here" "$WORK/across" >/dev/null || fail "weights differ between one host and two"
pass "4 ranks on two hosts have the bits of one host"

# lose WHAT HANG_TIMEOUT: a run without end on both hosts, to which something happens after its first steps
lose() {
  local run=$WORK/$1 waited=0 begin status=0
  timeout -k 5 100 "${across[@]}" "$BRAID" train "$TINY" "run.dir=$run" parallel.expert=2 run.steps=100000 "run.hang_timeout=$2" >"$run.log" 2>&1 &
  local job=$!
  until [ -s "$run/metrics.jsonl" ] && [ "$(wc -l <"$run/metrics.jsonl")" -gt 5 ]; do
    sleep 0.2
    waited=$((waited + 1))
    [ $waited -lt 300 ] || { cat "$run.log" >&2; fail "$1: the run does not start"; }
  done
  begin=$SECONDS
  "$1"
  wait $job || status=$?
  code=$status seconds=$((SECONDS - begin)) log=$run.log
}
kill_host() { ip netns pids $two | xargs kill -9; }
cut_cable() { ip -n $two link set b2-$$ down; }
# mpirun 4.1 that is told to end its ranks while a daemon is out of reach waits for it until TCP gives up, a quarter of an hour.
cut_cable_and_wait_for_braid() {
  cut_cable
  until [ "$(cat "$WORK/cut_cable_and_wait_for_braid/errors.jsonl" 2>/dev/null | wc -l)" = 2 ]; do sleep 0.2; done
  sleep 1
  ip netns pids $one | xargs kill -9
}

lose kill_host 60
[ $code != 0 ] && [ $code != 124 ] && [ $seconds -lt 20 ] || { cat "$log" >&2; fail "a host is killed: code $code after $seconds s"; }
grep -q 'on node 10.77.0.2' "$log" || { cat "$log" >&2; fail "mpirun does not name the host that was killed"; }
pass "a host that is killed ends the job after $seconds s with mpirun's code $code and its name"

# As scripts/launch/hostfile.sh sets them, but shorter.
export OMPI_MCA_oob_tcp_keepalive_time=3 OMPI_MCA_oob_tcp_keepalive_intvl=1 OMPI_MCA_oob_tcp_keepalive_probes=3
lose cut_cable 60
[ $code != 0 ] && [ $code != 124 ] && [ $seconds -lt 30 ] || { cat "$log" >&2; fail "the cable is cut: code $code after $seconds s"; }
grep -q 'on node 10.77.0.2' "$log" || { cat "$log" >&2; fail "mpirun does not name the host behind the cable"; }
pass "a cable that is cut ends the job after $seconds s with mpirun's code $code and the host's name"

ip -n $two link set b2-$$ up
unset OMPI_MCA_oob_tcp_keepalive_time OMPI_MCA_oob_tcp_keepalive_intvl OMPI_MCA_oob_tcp_keepalive_probes
lose cut_cable_and_wait_for_braid 5
for host in one two; do
  grep -q "\"code\":5,.*\"host\":\"braid-$host\".*of another host, or the network between hosts" "$WORK"/cut_cable_and_wait_for_braid/errors.jsonl ||
    { cat "$WORK"/cut_cable_and_wait_for_braid/errors.jsonl >&2; fail "the ranks of braid-$host do not say that they wait for another host"; }
done
pass "ranks on both sides of a cut cable say which host waits, in which step and collective"
echo "$checks passed, 0 failed"
