#!/usr/bin/env python3
"""Each call in turn: a kill, or an error, at the first, second, third … of one kind in one rank, until a training needs
no more of them.

    every_call.py BRAID SOURCE FAULTY_CALLS [--what WHAT] [--step N] [--work DIR]

A tiny model on two ranks, three saves and a pruning, or a load. Then the run goes on without a fault: every committed
checkpoint is whole, and state and numbers are those of the run that nothing happened to. WHAT: kill-change, kill-read
(-9 at a call on checkpoints that writes, flushes, renames, removes …, or reads), error-change, error-read (EIO once),
full (ENOSPC from there on), memory (a request for host memory that finds none), kill-collective. --step N takes every Nth.
"""

import argparse
import os
import shutil
import time

from harness import Failure, Job, World, add_common_arguments, check, is_defect, run_main, work_folder

STEPS = 3
COLLECTIVES = ["all_reduce", "reduce_scatter", "all_gather", "all_to_all_rows", "broadcast", "barrier", "split"]


class EveryCall:
    def __init__(self, world, calls):
        self.world, self.calls = world, calls
        self.golden, _ = world.golden()
        self.begun = os.path.join(world.work, "begun")  # to be resumed after step 2: a load and one save
        job = Job(world, self.begun, ["run.steps=2"])
        check(job.wait(300) == 0, "the run to be resumed failed:", job.log()[-2000:])

    def plan(self, what, rank, nth):
        on = "read" if what.endswith("read") else "memory" if what == "memory" else "change"
        plan = {
            "rank": rank,
            "on": on,
            "nth": nth,
            "do": "kill" if what.startswith("kill") else 28 if what == "full" else 5,
        }
        if what == "full":
            plan["times"] = 10**9
        return {"LD_PRELOAD": self.calls, "BRAID_CALLS": ",".join(f"{key}={value}" for key, value in plan.items())}

    def case(self, what, name, env):
        """Returns False if the run needed no such call."""
        path = os.path.join(self.world.work, name)
        shutil.rmtree(path, ignore_errors=True)
        if what.endswith("read"):
            shutil.copytree(self.begun, path)
        job = Job(self.world, path, ["--resume=auto"], env)
        code, log = job.wait(200), job.log()
        check(not is_defect(log), name, "a defect:", log[-2000:])
        if what.startswith("kill"):
            was_hit = code != 0
        else:
            was_hit = code != 0 or "WARNING" in log
            check(code in ((0, 7) if what == "memory" else (0, 4, 9)), name, f"exit code {code}:", log[-2000:])
            check(
                code == 0 or log.count("\nbraid: ") + log.startswith("braid: ") == 1,
                name,
                "not one sentence:",
                log[-2000:],
            )
        self.world.check_committed(path)
        if code != 0:
            again = Job(self.world, path, ["--resume=auto"])
            check(again.wait(200) == 0, name, "does not go on:", again.log()[-2000:])
        self.world.check_end(self.golden, path)
        shutil.rmtree(path)
        return was_hit

    def loop(self, what, label, step, env_of):
        nth, hit, misses = 1, 0, 0
        # A kill is seen; an error that does no harm (of a removal, or a hint) looks like none.
        while misses < (1 if what.startswith("kill") else 3):
            if self.case(what, f"{what}-{label}-{nth}".replace(" ", "-"), env_of(nth)):
                hit, misses = hit + 1, 0
            else:
                misses += 1
            nth += step
        print(f"  {what}, {label}: {hit} hit, up to number {nth - (misses + 1) * step}", flush=True)
        return hit

    def run(self, what, step):
        total = 0
        for rank in range(self.world.ranks):
            if what == "kill-collective":
                for site in COLLECTIVES:
                    total += self.loop(
                        what,
                        f"rank {rank} {site}",
                        step,
                        lambda nth: {"BRAID_FAULT": f"site=comm.{site},rank={rank},nth={nth},do=kill"},
                    )
            else:
                total += self.loop(what, f"rank {rank}", step, lambda nth: self.plan(what, rank, nth))
        return total


def main():
    parser = argparse.ArgumentParser()
    add_common_arguments(parser, seed=False)
    parser.add_argument("calls")
    parser.add_argument("--what", default="kill-change,kill-read,error-change,error-read,full,memory,kill-collective")
    parser.add_argument("--step", type=int, default=1)
    options = parser.parse_args()
    begin = time.monotonic()
    with work_folder(options) as work:
        world = World(options.braid, options.source, work, steps=STEPS, interval=1)
        world.arguments += ["checkpoint.keep=1", "schedule.kind=constant"]
        every = EveryCall(world, options.calls)
        for what in options.what.split(","):
            hit = every.run(what, options.step)
            if hit == 0:
                raise Failure(f"{what}: nothing was hit")
            print(
                f"{what}: {hit} hit, each with the golden run's state in the end, {time.monotonic() - begin:.0f} s",
                flush=True,
            )


if __name__ == "__main__":
    run_main(main)
