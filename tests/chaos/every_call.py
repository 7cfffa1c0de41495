#!/usr/bin/env python3
"""Each call in turn: a kill, or an error, at the first, second, third … of one kind in one rank, until a training needs
no more of them.

    every_call.py BRAID SOURCE FAULTY_CALLS [--what WHAT] [--step N] [--jobs N] [--seconds S] [--state FILE]
                  [--work DIR]

A tiny model on two ranks, three saves and a pruning, or a load. Then the run goes on without a fault: every committed
checkpoint is whole, and state and numbers are those of the run that nothing happened to. WHAT: kill-change, kill-read
(-9 at a call on checkpoints that writes, flushes, renames, removes …, or reads), error-change, error-read (EIO once),
full (ENOSPC from there on), memory, memory-load (a request for 4 KiB or more of host memory that finds none, in a run from
its begin or one that loads), memory-place, memory-place-load (a request of any size from a place in the program that none
came from before; one rank, as there are ten thousand places), kill-collective. --step N takes every Nth, --jobs N does
so many at a time, and after S seconds no more are begun: then it says how far it came, and fails. FILE holds how far each
loop came; one that is there already is gone on from.
"""

import argparse
import collections
import concurrent.futures
import json
import os
import shutil
import time

from harness import (
    SMALLEST,
    Failure,
    Job,
    World,
    add_common_arguments,
    check,
    is_defect,
    run_main,
    said_by_braid,
    work_folder,
)

STEPS = 3
COLLECTIVES = ["all_reduce", "reduce_scatter", "all_gather", "all_to_all_rows", "broadcast", "barrier", "split"]
# The plan of faulty_calls.cpp, and whether the run loads.
CALLS = {
    "kill-change": ({"on": "change", "do": "kill"}, False),
    "kill-read": ({"on": "read", "do": "kill"}, True),
    "error-change": ({"on": "change", "do": 5}, False),
    "error-read": ({"on": "read", "do": 5}, True),
    "full": ({"on": "change", "do": 28, "times": 10**9}, False),
    "memory": ({"on": "memory"}, False),
    "memory-load": ({"on": "memory"}, True),
    "memory-place": ({"on": "memory", "least": 1, "places": "yes"}, False),
    "memory-place-load": ({"on": "memory", "least": 1, "places": "yes"}, True),
}
KINDS = [*CALLS, "kill-collective"]


def name_of(what, rank, site):
    return f"{what}, rank {rank}{' ' + site if site else ''}"


class Trained:
    """What the faults of so many ranks happen to, and what must come out."""

    def __init__(self, options, work, ranks):
        folder = os.path.join(work, f"ranks-{ranks}")
        self.world = World(options.braid, options.source, folder, ranks, STEPS, 1, SMALLEST, lines=300)
        self.world.arguments += ["checkpoint.keep=1", "schedule.kind=constant", "eval.interval_steps=2"]
        self.golden, _ = self.world.golden()
        self.begun = os.path.join(folder, "begun")  # to be resumed after step 2: a load and one save
        job = Job(self.world, self.begun, ["run.steps=2"])
        check(job.wait(300) == 0, "the run to be resumed failed:", job.log()[-2000:])


class EveryCall:
    def __init__(self, options, work, whats, until):
        self.calls, self.until, self.state_path = options.calls, until, options.state
        self.state = {}  # of each loop: hit, last (number that was), next, ended
        if self.state_path and os.path.exists(self.state_path):
            with open(self.state_path, encoding="utf-8") as file:
                self.state = json.load(file)
        self.jobs, self.cases = options.jobs, concurrent.futures.ThreadPoolExecutor(options.jobs)
        self.loops = 0  # that run; they share the jobs
        self.failed = 0
        self.trained = {ranks: Trained(options, work, ranks) for ranks in sorted({self.ranks_of(what) for what in whats})}

    @staticmethod
    def ranks_of(what):
        return 1 if "place" in what else 2

    def case(self, what, rank, site, nth):
        """Returns False if the run needed no such call."""
        trained = self.trained[self.ranks_of(what)]
        world = trained.world
        name = f"{what}-{rank}-{site or 'any'}-{nth}"
        path = os.path.join(world.work, name)
        mark = path + ".hit"
        shutil.rmtree(path, ignore_errors=True)
        if site:
            env = {"BRAID_FAULT": f"site=comm.{site},rank={rank},nth={nth},do=kill"}
        else:
            plan, loads = CALLS[what]
            plan = {"rank": rank, "nth": nth, "mark": mark, **plan}
            env = {"LD_PRELOAD": self.calls, "BRAID_CALLS": ",".join(f"{key}={value}" for key, value in plan.items())}
            if loads:
                shutil.copytree(trained.begun, path)
        job = Job(world, path, ["--resume=auto"], env)
        code, log = job.wait(200), job.log()
        check(not is_defect(log), name, "a defect:", log[-2000:])
        if what.startswith("kill"):
            was_hit = code != 0
        else:
            was_hit = os.path.exists(mark)
            check(was_hit or code == 0, name, f"exit code {code} for nothing:", log[-2000:])
            check(code in ((0, 7) if "memory" in what else (0, 4, 9)), name, f"exit code {code}:", log[-2000:])
            check(code == 0 or len(said_by_braid(log)) == 1, name, "not one sentence:", log[-2000:])
        world.check_committed(path)
        if code != 0:
            again = Job(world, path, ["--resume=auto"])
            check(again.wait(200) == 0, name, "does not go on:", again.log()[-2000:])
            os.remove(again.log_path)
        world.check_end(trained.golden, path)
        shutil.rmtree(path)
        for left in (mark, job.log_path):
            if os.path.exists(left):
                os.remove(left)
        return was_hit

    def before(self, what, rank, site):
        return self.state.get(name_of(what, rank, site), {"hit": 0, "last": 0, "next": 1, "ended": False})

    def loop(self, what, rank, site, step):
        """How many of the calls number 1, 1 + step, … were hit, and whether that was all: three runs in a row needed no
        such call (how many a run makes differs a little)."""
        before = self.before(what, rank, site)
        if before["ended"]:
            return before["hit"], True
        nth, hit, last = before["next"], before["hit"], before["last"]
        misses, failed, running, in_time = 0, 0, collections.deque(), True
        while misses < 3 and failed < 3 and (in_time or running):
            in_time = time.monotonic() < self.until
            while in_time and len(running) < max(1, self.jobs // max(1, self.loops)):
                running.append((nth, self.cases.submit(self.case, what, rank, site, nth)))
                nth += step
            if running:
                number, case = running.popleft()
                if not in_time and case.cancel():
                    continue
                try:
                    was_hit = case.result()
                except Failure as failure:
                    print(f"  FAILED: {failure}", flush=True)
                    was_hit, failed = True, failed + 1
                if was_hit:
                    hit, misses, last = hit + 1, 0, number
                else:
                    misses += 1
        for _, case in running:
            case.cancel()
        concurrent.futures.wait([case for _, case in running])
        whole = misses == 3
        self.failed += failed
        self.loops -= 1
        name = name_of(what, rank, site)
        self.state[name] = {"hit": hit, "last": last, "next": last + step if last else 1, "ended": whole}
        print(
            f"  {name}: {hit} hit, up to number {last}"
            + ("" if whole else ", and no further: " + ("too many failed" if failed else "there was no more time")),
            flush=True,
        )
        return hit, whole

    def run(self, whats, step):
        """How many of each were hit, and whether all were."""
        loops = [
            (what, rank, site)
            for what in whats
            for rank in range(self.ranks_of(what))
            for site in (COLLECTIVES if what == "kill-collective" else [""])
        ]
        hits, whole = collections.Counter(), True
        at_once = len(loops) if self.jobs > 1 else 1
        self.loops = min(at_once, sum(not self.before(*loop)["ended"] for loop in loops))
        with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
            for (what, *_), (hit, ended) in zip(loops, pool.map(lambda of: self.loop(*of, step), loops)):
                hits[what] += hit
                whole = whole and ended
        if self.state_path:
            with open(self.state_path, "w", encoding="utf-8") as file:
                json.dump(self.state, file, indent=1, sort_keys=True)
        return hits, whole


def main():
    parser = argparse.ArgumentParser()
    add_common_arguments(parser, seed=False)
    parser.add_argument("calls", type=os.path.abspath)
    parser.add_argument("--what", default=",".join(KINDS))
    parser.add_argument("--step", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--state")
    options = parser.parse_args()
    begin = time.monotonic()
    with work_folder(options) as work:
        whats = options.what.split(",")
        check(all(what in KINDS for what in whats), "kinds are", ", ".join(KINDS))
        every = EveryCall(options, work, whats, begin + options.seconds)
        hits, whole = every.run(whats, options.step)
        for what, hit in hits.items():
            check(hit > 0 or not whole, f"{what}: nothing was hit")
            print(f"{what}: {hit} hit, each with the golden run's state in the end")
        print(f"{sum(hits.values())} hit in all, {time.monotonic() - begin:.0f} s", flush=True)
        check(every.failed == 0, every.failed, "cases failed")
        check(whole, "there was no time for every call")


if __name__ == "__main__":
    run_main(main)
