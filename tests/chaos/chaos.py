#!/usr/bin/env python3
"""Random faults, and a training that must come out as if there had been none.

    chaos.py BRAID SOURCE FAULTY_CALLS [--faults N] [--seconds S] [--seed S] [--work DIR]

Trains a tiny model on two ranks again and again with --resume=auto; something happens to each start: killed ranks (at
any time, at a call of a save or load, in a collective, while starting), a killed launcher, signals, stopped ranks,
storage that is full or fails for a while, damaged checkpoints. After each: no process is left, every committed
checkpoint is whole, no message speaks of a defect. When a run is complete its state and the numbers of every step are
those of the run that nothing happened to, so every sample was used once; then the next run begins, until there were N
faults, or S seconds have passed. The same seed draws the same faults; when they hit depends on the machine.
"""

import argparse
import collections
import os
import random
import shutil
import signal
import time

from harness import Failure, Job, World, add_common_arguments, check, checkpoints, is_defect, run_main, work_folder

# Reliability is mostly about kills, so they are most of it.
MIX = {
    "kill a rank": 25,
    "kill a rank at a call of a save": 20,
    "kill a rank in a collective": 10,
    "kill a rank while it starts": 10,
    "kill all ranks": 5,
    "kill mpirun": 5,
    "stop a rank for ever": 3,
    "stop a rank for a second": 3,
    "ask to stop": 4,
    "no space for a while": 3,
    "storage errors": 3,
    "file size limit": 2,
    "damage the newest": 5,
    "garbage beside": 2,
}
COLLECTIVES = ["all_reduce", "reduce_scatter", "all_gather", "all_to_all_rows"]


class Chaos:
    def __init__(self, world, calls, seed):
        self.world, self.calls, self.random = world, calls, random.Random(seed)
        self.golden, self.seconds = world.golden()
        self.counts, self.hits = collections.Counter(), collections.Counter()
        self.run_number = 0
        self.begin_run()

    def begin_run(self):
        self.run_number += 1
        self.dir = os.path.join(self.world.work, f"run-{self.run_number}")

    def faulty(self, **plan):
        return {"LD_PRELOAD": self.calls, "BRAID_CALLS": ",".join(f"{key}={value}" for key, value in plan.items())}

    def start(self, env=(), **options):
        return Job(self.world, self.dir, ["--resume=auto"], env, **options)

    def one(self):
        """One fault. Returns whether it hit, what the job ended with, and its log."""
        r = self.random
        kind = r.choices(list(MIX), list(MIX.values()))[0]
        rank = r.randrange(self.world.ranks)
        self.counts[kind] += 1
        hit = True
        if kind == "kill a rank at a call of a save":
            job = self.start(
                self.faulty(
                    rank=rank,
                    on=r.choice(["change", "change", "change", "read"]),
                    nth=r.randint(1, 60 if rank == 0 else 20),
                    do="kill",
                )
            )
        elif kind == "kill a rank in a collective":
            job = self.start(
                {"BRAID_FAULT": f"site=comm.{r.choice(COLLECTIVES)},rank={rank},nth={r.randint(1, 40)},do=kill"}
            )
        elif kind == "kill a rank while it starts":
            job = self.start({"BRAID_FAULT": f"site={r.choice(['load', 'data', 'init'])},rank={rank},do=kill"})
        elif kind == "no space for a while":
            job = self.start(self.faulty(rank=rank, on="change", nth=r.randint(1, 40), times=r.randint(1, 60), do=28))
        elif kind == "storage errors":
            job = self.start(
                self.faulty(
                    rank=rank, on=r.choice(["change", "read"]), nth=r.randint(1, 40), times=r.randint(1, 3), do=5
                )
            )
        elif kind == "file size limit":
            job = self.start(file_bytes=r.choice([100000, 300000, 1000000]))
        elif kind in ("damage the newest", "garbage beside"):
            hit = self.damage() if kind == "damage the newest" else self.garbage()
            job = self.start()
            self.wait_for_a_moment(job)
            job.send(rank, signal.SIGKILL)
        else:
            job = self.start()
            self.wait_for_a_moment(job)
            if kind == "kill a rank":
                hit = job.send(rank, signal.SIGKILL)
            elif kind == "kill all ranks":
                hit = any([job.send(other, signal.SIGKILL) for other in range(self.world.ranks)])
            elif kind == "kill mpirun":
                hit = job.process.poll() is None
                job.process.kill()
            elif kind == "stop a rank for ever":
                hit = job.send(rank, signal.SIGSTOP)
            elif kind == "stop a rank for a second":
                hit = job.send(rank, signal.SIGSTOP)
                time.sleep(1)
                job.send(rank, signal.SIGCONT)
            elif kind == "ask to stop":
                hit = job.send(rank, r.choice([signal.SIGTERM, signal.SIGUSR1]))
        code = self.end_of(job)
        self.hits[kind] += hit and (code != 0 or "damage" in kind or "garbage" in kind or "second" in kind)
        return kind, code, job

    def wait_for_a_moment(self, job):
        """While it starts, or some steps later and anywhere in a step."""
        r = self.random
        share, steps, rest = r.random(), r.randint(1, 8), r.random()
        if share < 0.2:
            time.sleep(share / 0.2 * self.seconds / 2)
            return
        path, begin = os.path.join(self.dir, "metrics.jsonl"), time.monotonic()
        lines = lambda: open(path, "rb").read().count(b"train/loss_lm") if os.path.exists(path) else 0
        goal = min(lines() + steps, self.world.steps - 1)
        while job.process.poll() is None and lines() < goal and time.monotonic() < begin + 10 * self.seconds:
            time.sleep(0.01)
        time.sleep(rest * self.seconds / 100)

    def end_of(self, job):
        code = job.wait(max(60, 10 * self.seconds))
        for _ in range(80):  # what outlives mpirun ends by itself
            if not self.left():
                break
            time.sleep(0.1)
        check(not self.left(), "processes are left:", self.left())
        return code

    def left(self):
        mark = ("run.dir=" + self.dir).encode()
        found = []
        for entry in os.listdir("/proc"):
            try:
                with open(f"/proc/{entry}/cmdline", "rb") as file:
                    if mark in file.read().split(b"\0"):
                        found.append(entry)
            except OSError:
                pass
        return found

    def damage(self):
        """Something is wrong with the newest checkpoint, if there is an older one."""
        r, paths = self.random, checkpoints(self.dir)
        if len(paths) < 2:
            return False
        path = os.path.join(paths[-1], r.choice(sorted(os.listdir(paths[-1]))))
        size = os.path.getsize(path)
        how = r.choice(["flip", "flip", "zero", "cut", "remove", "grow"])
        if how == "remove":
            os.remove(path)
        elif how == "cut":
            os.truncate(path, r.randrange(size))
        else:
            with open(path, "r+b") as file:
                if how == "grow":
                    file.seek(size)
                    file.write(b"\0")
                    return True
                at = r.randrange(size)
                file.seek(at)
                old = file.read(1 if how == "flip" else 4096)
                file.seek(at)
                file.write(
                    bytes([old[0] ^ (1 << r.randrange(8))])
                    if how == "flip"
                    else bytes(b ^ 0xFF if not any(old) else 0 for b in old)
                )
        return True

    def garbage(self):
        r, folder = self.random, os.path.join(self.dir, "checkpoints")
        if not os.path.isdir(folder):
            return False
        os.makedirs(os.path.join(folder, f".tmp-step-{r.randint(1, 30):09d}", "deep"), exist_ok=True)
        os.makedirs(os.path.join(folder, f".trash-step-{r.randint(1, 30):09d}"), exist_ok=True)
        with open(os.path.join(folder, "LATEST"), "wb") as file:
            file.write(r.choice([b"", b"\xff\xfe", b"step-000000999\n", b"../golden\n"]))
        return True

    def check_run(self, kind, code, job):
        log = job.log()
        check(not is_defect(log), "a defect:", log[-2000:])
        # 1, 137, -9: what mpirun and the shell make of a kill
        # A process hears a request to stop as soon as its program has begun.
        deaf = kind == "ask to stop" and "ranks:" not in log
        check(code in (0, 1, 4, 5, 9, 75, 137, -9, 134) or (deaf and code in (138, 143)), f"exit code {code}:", log[-2000:])
        check(code != 4 or kind in ("storage errors", "no space for a while"), "a checkpoint was refused:", log[-2000:])
        if kind not in ("damage the newest",):
            self.world.check_committed(self.dir)
        if code == 0:
            self.world.check_committed(self.dir)
            self.world.check_end(self.golden, self.dir)
            shutil.rmtree(self.dir)
            self.begin_run()

    def run(self, faults, begin, until):
        """How many there were."""
        number = 0
        while number < faults and time.monotonic() < until:
            number += 1
            kind = "?"
            try:
                kind, code, job = self.one()
                self.check_run(kind, code, job)
            except Failure as failure:
                raise Failure(f"fault {number}, {kind}, {self.dir}: {failure}") from None
            if number % 20 == 0 or number == faults:
                print(
                    f"{number} faults, {sum(self.hits.values())} hit, {self.run_number - 1} runs complete, "
                    f"{time.monotonic() - begin:.0f} s",
                    flush=True,
                )
        while self.run_number == 1 or os.path.isdir(self.dir):  # what was begun is brought to its end
            job = self.start()
            code = job.wait(max(60, 10 * self.seconds))
            check(code == 0, f"{self.dir}: without a fault it ends with {code}:", job.log()[-2000:])
            self.check_run("none", code, job)
            self.run_number = max(self.run_number, 2)
        for kind in MIX:
            if self.counts[kind]:
                print(f"  {self.counts[kind]:4d}  {kind}, {self.hits[kind]} hit")
        return number


def main():
    parser = argparse.ArgumentParser()
    add_common_arguments(parser)
    parser.add_argument("calls", type=os.path.abspath)
    parser.add_argument("--faults", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    options = parser.parse_args()
    begin = time.monotonic()
    print(f"seed {options.seed}, {options.faults} faults", flush=True)
    with work_folder(options) as work:
        chaos = Chaos(World(options.braid, options.source, work), options.calls, options.seed)
        faults = chaos.run(options.faults, begin, begin + options.seconds)
    print(
        f"{faults} faults, {sum(chaos.hits.values())} hit, {chaos.run_number - 1} runs complete, the same "
        "as the golden one, 0 corrupt checkpoints, "
        f"{time.monotonic() - begin:.0f} s",
        flush=True,
    )


if __name__ == "__main__":
    run_main(main)
