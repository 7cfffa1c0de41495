#!/usr/bin/env python3
"""Ranks that stand still at random places: is the right one named?

    hangs.py BRAID SOURCE [--hangs N] [--seed S] [--work DIR]

Two ranks of a tiny model. One is stopped by SIGSTOP at a random time, or, by BRAID_FAULT, stopped or asleep for ever
in a random phase or collective. The job must end with 5 and one sentence that names this rank, what is the matter
with it, and where that is known beforehand the phase or the collective; no process is left.
"""

import argparse
import os
import random
import re
import shutil
import signal
import time

from harness import Job, World, add_common_arguments, check, run_main, said_by_braid, work_folder

PHASES = {"data": "data", "step.begin": "step", "loss": "step", "optim": "step", "eval": "evaluation", "save": "save"}
COLLECTIVES = ["all_reduce", "reduce_scatter", "all_gather", "all_to_all_rows"]


def one(world, r, path, loaded):
    rank = r.randrange(world.ranks)
    how = r.choice(["signal", "stop", "hang", "collective", "collective"])
    arguments, env = ["run.steps=1000000"], {}
    place = ""
    if how in ("stop", "hang"):
        site = r.choice(sorted(PHASES) + ["load"])
        place = f"phase {PHASES.get(site, site)}"
        nth = 1 if site == "load" else r.randint(1, 3) if site in ("eval", "save") else r.randint(1, 12)
        if site == "load":
            shutil.copytree(loaded, path)
            arguments.append("--resume")
        env["BRAID_FAULT"] = f"site={site},rank={rank},nth={nth},do={how}"
    elif how == "collective":
        site = r.choice(COLLECTIVES)
        deed = r.choice(["hang", "stop"])
        place = f"in {site} number "
        # not the first ones: before the ranks watch each other a launcher alone could tell
        env["BRAID_FAULT"] = f"site=comm.{site},rank={rank},nth={r.randint(30, 90)},do={deed}"
        how = "stop" if deed == "stop" else how
    job = Job(world, path, arguments, env)
    if how == "signal":
        begin = time.monotonic()
        while len(job.pids()) < world.ranks and time.monotonic() < begin + 100:
            time.sleep(0.02)
        time.sleep(r.uniform(0, 3))
        check(job.send(rank, signal.SIGSTOP), "the rank is not there:", job.log()[-1000:])
    what = {
        "signal": "is stopped",
        "stop": "is stopped",
        "hang": "does nothing for",
        "collective": "(sleeps inside|is behind|does nothing)",
    }[how]
    code, log = job.wait(150), job.log()
    said = said_by_braid(log)
    case = f"{how} rank {rank} {env.get('BRAID_FAULT', '')}"
    check(code == 5, case, f"exit code {code}:", log[-1500:])
    check(len(said) == 1, case, "not one sentence:", said)
    check(re.search(rf"rank {rank} of \S+ {what}.*{place}", said[0].split(";")[0]), case, "is not named:", said[0])
    time.sleep(0.2)
    check(not job.pids(), case, "processes are left")
    shutil.rmtree(path, ignore_errors=True)  # it may have ended before there was one
    return f"{case}: {said[0][:150]}"


def main():
    parser = argparse.ArgumentParser()
    add_common_arguments(parser)
    parser.add_argument("--hangs", type=int, default=50)
    options = parser.parse_args()
    begin, r = time.monotonic(), random.Random(options.seed)
    with work_folder(options) as work:
        world = World(options.braid, options.source, work)
        loaded = os.path.join(work, "loaded")
        job = Job(world, loaded)
        check(job.wait(300) == 0, "the run to be resumed failed:", job.log()[-1000:])
        print(f"seed {options.seed}", flush=True)
        for number in range(1, options.hangs + 1):
            print(f"{number:3d} {one(world, r, os.path.join(work, 'run'), loaded)}", flush=True)
    print(f"{options.hangs} of {options.hangs} hangs named rightly, {time.monotonic() - begin:.0f} s")


if __name__ == "__main__":
    run_main(main)
