#!/usr/bin/env python3
"""Faults in thousands, on a machine with many cores, over as many calls as it takes.

    many.py BRAID SOURCE FAULTY_CALLS FOLDER [--jobs N] [--faults N] [--hangs N] [--what WHAT] [--seconds S]

Ranks that stand still (hangs.py, 50 by default), random faults (chaos.py, 1,000), then every call of saves and loads, of
requests for memory and of collectives, on either rank (every_call.py). FOLDER keeps what came out: the same command goes
on where it ended after S seconds, with other seeds, and report.txt there adds up all of it. Exit code 0: all of it is
done and nothing failed; 1: something failed, its log stays in FOLDER; 75: there was no more time.
Two ranks want two cores: more jobs at a time than half of the cores make every collective wait for the scheduler. Every call
has twice as many, as its trainings are over before they have computed much.
"""

import argparse
import collections
import concurrent.futures
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
FAULTS_OF_ONE, HANGS_OF_ONE = 10, 2  # programs; each makes a golden run first
GOLDEN = re.compile(r"^(\d+) faults, (\d+) hit, (\d+) runs complete, the same as the golden one", re.MULTILINE)
NAMED = re.compile(r"^(\d+) of \1 hangs named rightly", re.MULTILINE)


def gib_free(folder):
    return shutil.disk_usage(folder).free >> 30 if os.path.isdir(folder) else 0


def environment(work):
    """Hundreds of small checkpoints at a time: on a disk most of the time would be fsync's."""
    env = dict(os.environ, TMPDIR=work, OMP_NUM_THREADS="1", PYTHONDONTWRITEBYTECODE="1")
    if gib_free("/dev/shm") < 4:  # messages of the ranks of a job go through files
        env.update(OMPI_MCA_btl_vader_backing_directory=work, OMPI_MCA_osc_sm_backing_directory=work)
    return env


class Many:
    def __init__(self, options, work):
        self.options, self.env = options, environment(work)
        self.begin = time.monotonic()
        self.until = self.begin + options.seconds
        self.version = subprocess.run([options.braid, "--version"], capture_output=True, text=True, check=True).stdout
        os.makedirs(options.folder, exist_ok=True)

    def path(self, name):
        return os.path.join(self.options.folder, name)

    def logs(self, kind):
        found = {}
        for name in os.listdir(self.options.folder):
            match = re.fullmatch(kind + r"-(\d+)\.log", name)
            if match:
                with open(self.path(name), encoding="utf-8", errors="replace") as file:
                    found[int(match[1])] = file.read()
        return found

    def left(self):
        return max(0.0, self.until - time.monotonic())

    def run(self, log, *command):
        with open(self.path(log), "w", encoding="utf-8") as file:
            file.write(self.version)
            file.flush()
            subprocess.run(
                [sys.executable, *map(str, command)], stdout=file, stderr=subprocess.STDOUT, env=self.env, check=False
            )

    def programs(self, kind, good, wanted, of_one, command):
        """Programs with seeds of their own until so many faults have gone well in all, as `good` finds them in a log, or there is
        no more time."""
        done = sum(int(m[1]) for m in map(good.search, self.logs(kind).values()) if m)
        missing = -((done - wanted) // of_one) if done < wanted else 0
        first = max(self.logs(kind), default=0) + 1

        def one(seed):
            if self.left() > 0:
                self.run(f"{kind}-{seed}.log", *command(seed))

        with concurrent.futures.ThreadPoolExecutor(self.options.jobs) as pool:
            list(pool.map(one, range(first, first + missing)))

    def hangs(self):
        o = self.options
        arguments = (f"{HERE}/hangs.py", o.braid, o.source, "--hangs", HANGS_OF_ONE)
        self.programs("hangs", NAMED, o.hangs, HANGS_OF_ONE, lambda seed: (*arguments, "--seed", seed))

    def random(self):
        o = self.options
        arguments = (f"{HERE}/chaos.py", o.braid, o.source, o.calls, "--faults", min(FAULTS_OF_ONE, o.faults))
        self.programs(
            "random", GOLDEN, o.faults, FAULTS_OF_ONE, lambda seed: (*arguments, "--seed", seed, "--seconds", self.left())
        )

    def every_call(self):
        o = self.options
        if self.left() == 0:
            return
        number = max(self.logs("calls"), default=0) + 1
        self.run(
            f"calls-{number}.log",
            f"{HERE}/every_call.py",
            *(o.braid, o.source, o.calls, "--jobs", 2 * o.jobs, "--seconds", self.left(), "--state", self.path("calls.json")),
            *(("--what", o.what) if o.what else ()),
        )

    def report(self):
        """The sum of everything in the folder. Returns the exit code."""
        o, lines = self.options, []
        logs = {kind: self.logs(kind) for kind in ("random", "hangs", "calls")}
        versions = sorted({text.split("\n")[0] for each in logs.values() for text in each.values()})
        lines += [f"{', '.join(versions)}; {os.cpu_count()} cores, {o.jobs} jobs at a time"]
        failed = [f"{kind}-{n}.log" for kind in logs for n, text in logs[kind].items() if re.search("FAILED: (?!there was no time)|Traceback", text)]

        good = [(m, text) for m, text in ((GOLDEN.search(text), text) for text in logs["random"].values()) if m]
        faults, hit, runs = (sum(int(m[i]) for m, _ in good) for i in (1, 2, 3))
        lines.append(f"random faults: {faults}, of which {hit} hit, {runs} runs complete, each as the golden one")
        kinds = collections.defaultdict(lambda: [0, 0])
        for _, text in good:
            for number, kind, hits in re.findall(r"^ +(\d+)  (.*), (\d+) hit$", text, re.MULTILINE):
                kinds[kind][0] += int(number)
                kinds[kind][1] += int(hits)
        lines += [f"  {number:4d} {kind}, {hits} hit" for kind, (number, hits) in kinds.items()]

        calls = {}
        if os.path.exists(self.path("calls.json")):
            with open(self.path("calls.json"), encoding="utf-8") as file:
                calls = json.load(file)
        whole = bool(calls) and all(loop["ended"] for loop in calls.values())
        total = sum(len(loop["hits"]) for loop in calls.values())
        lines.append(f"every call: {total} hit, each with the golden state in the end" + ("" if whole else "; not to the end"))
        for name, loop in calls.items():
            first, last = min(loop["hits"], default=0), max(loop["hits"], default=0)
            lines.append(
                f"  {name}: {len(loop['hits'])} hit, number {first} to {last} of {max(loop['of'] or 0, last)}"
                + ("" if loop["ended"] else ", and no further")
            )
            failed += [f"{name}, number {number}: {why}" for number, why in loop["failed"].items()]

        named = sum(int(m[1]) for m in map(NAMED.search, logs["hangs"].values()) if m)
        lines.append(f"hangs: {named} of {named} named rightly")
        done = faults >= o.faults and named >= o.hangs and whole
        lines += [f"FAILED: {name}" for name in sorted(failed)]
        lines.append("something failed" if failed else "all is well" if done else "nothing failed; not all is done: the same command goes on")
        lines.append(f"this call: {time.monotonic() - self.begin:.0f} s")
        with open(self.path("report.txt"), "w", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")
        print("\n".join(lines), flush=True)
        return 1 if failed else 0 if done else 75


def main():
    parser = argparse.ArgumentParser()
    for name in ("braid", "source", "calls", "folder"):
        parser.add_argument(name, type=os.path.abspath)
    parser.add_argument("--jobs", type=int, default=max(1, len(os.sched_getaffinity(0)) // 2))
    parser.add_argument("--faults", type=int, default=1000)
    parser.add_argument("--hangs", type=int, default=50)
    parser.add_argument("--what", help="kinds of every_call.py, all by default")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="no new fault is begun after them")
    options = parser.parse_args()
    place = os.environ.get("TMPDIR") or ("/dev/shm" if gib_free("/dev/shm") >= 8 else "/tmp")
    work = tempfile.mkdtemp(prefix="braid-many-", dir=place)
    many = Many(options, work)
    many.hangs()
    many.random()
    many.every_call()
    code = many.report()
    if code != 1:
        shutil.rmtree(work)
    sys.exit(code)


if __name__ == "__main__":
    main()
