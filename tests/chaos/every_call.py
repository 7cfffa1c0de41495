#!/usr/bin/env python3
"""Each call in turn: a kill, or an error, at the first, second, third … of one kind in one rank, until a training needs
no more of them.

    every_call.py BRAID SOURCE FAULTY_CALLS [--what WHAT] [--step N] [--jobs N] [--seconds S] [--state FILE]
                  [--work DIR]

A tiny model on two ranks, three saves and a pruning, or a load. Then the run goes on without a fault: every committed
checkpoint is whole, and state and numbers are those of the run that nothing happened to. WHAT: kill-change, kill-read
(-9 at a call on checkpoints that writes, flushes, renames, removes …, or reads), error-change, error-read (EIO once),
full (ENOSPC from there on), memory (a request for host memory that finds none), kill-collective. --step N takes every Nth,
--jobs N does so many at a time, and after S seconds no more are begun: then it says how far it came, and fails. FILE holds
how far each loop came; one that is there already is gone on from.
"""

import argparse
import collections
import concurrent.futures
import json
import os
import shutil
import time

from harness import Failure, Job, World, add_common_arguments, check, is_defect, run_main, said_by_braid, work_folder

STEPS = 3
COLLECTIVES = ["all_reduce", "reduce_scatter", "all_gather", "all_to_all_rows", "broadcast", "barrier", "split"]


def name_of(what, rank, site):
    return f"{what}, rank {rank}{' ' + site if site else ''}"


class EveryCall:
    def __init__(self, world, calls, jobs, until, state):
        self.world, self.calls, self.until, self.state_path = world, calls, until, state
        self.state = {}  # of each loop: hit, last (number that was), next, ended
        if state and os.path.exists(state):
            with open(state, encoding="utf-8") as file:
                self.state = json.load(file)
        self.jobs, self.cases = jobs, concurrent.futures.ThreadPoolExecutor(jobs)
        self.loops = 0  # that run; they share the jobs
        self.failed = 0
        self.golden, _ = world.golden()
        self.begun = os.path.join(world.work, "begun")  # to be resumed after step 2: a load and one save
        job = Job(world, self.begun, ["run.steps=2"])
        check(job.wait(300) == 0, "the run to be resumed failed:", job.log()[-2000:])

    def faulty(self, what, rank, nth, mark):
        plan = {
            "rank": rank,
            "on": "read" if what.endswith("read") else "memory" if what == "memory" else "change",
            "nth": nth,
            "times": 10**9 if what == "full" else 1,
            "do": "kill" if what.startswith("kill") else 28 if what == "full" else 5,
            "mark": mark,
        }
        return {"LD_PRELOAD": self.calls, "BRAID_CALLS": ",".join(f"{key}={value}" for key, value in plan.items())}

    def case(self, what, rank, site, nth):
        """Returns False if the run needed no such call."""
        name = f"{what}-{rank}-{site or 'any'}-{nth}"
        path = os.path.join(self.world.work, name)
        mark = path + ".hit"
        shutil.rmtree(path, ignore_errors=True)
        if what.endswith("read"):
            shutil.copytree(self.begun, path)
        if site:
            env = {"BRAID_FAULT": f"site=comm.{site},rank={rank},nth={nth},do=kill"}
        else:
            env = self.faulty(what, rank, nth, mark)
        job = Job(self.world, path, ["--resume=auto"], env)
        code, log = job.wait(200), job.log()
        check(not is_defect(log), name, "a defect:", log[-2000:])
        if what.startswith("kill"):
            was_hit = code != 0
        else:
            was_hit = os.path.exists(mark)
            check(was_hit or code == 0, name, f"exit code {code} for nothing:", log[-2000:])
            check(code in ((0, 7) if what == "memory" else (0, 4, 9)), name, f"exit code {code}:", log[-2000:])
            check(code == 0 or len(said_by_braid(log)) == 1, name, "not one sentence:", log[-2000:])
        self.world.check_committed(path)
        if code != 0:
            again = Job(self.world, path, ["--resume=auto"])
            check(again.wait(200) == 0, name, "does not go on:", again.log()[-2000:])
            os.remove(again.log_path)
        self.world.check_end(self.golden, path)
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
            for rank in range(self.world.ranks)
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
    parser.add_argument("calls")
    parser.add_argument("--what", default="kill-change,kill-read,error-change,error-read,full,memory,kill-collective")
    parser.add_argument("--step", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--state")
    options = parser.parse_args()
    begin = time.monotonic()
    with work_folder(options) as work:
        world = World(options.braid, options.source, work, steps=STEPS, interval=1)
        world.arguments += ["checkpoint.keep=1", "schedule.kind=constant"]
        every = EveryCall(world, options.calls, options.jobs, begin + options.seconds, options.state)
        hits, whole = every.run(options.what.split(","), options.step)
        for what, hit in hits.items():
            check(hit > 0 or not whole, f"{what}: nothing was hit")
            print(f"{what}: {hit} hit, each with the golden run's state in the end")
        print(f"{sum(hits.values())} hit in all, {time.monotonic() - begin:.0f} s", flush=True)
        check(every.failed == 0, every.failed, "cases failed")
        check(whole, "there was no time for every call")


if __name__ == "__main__":
    run_main(main)
