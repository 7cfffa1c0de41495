#!/usr/bin/env python3
"""Each call in turn: a kill, or an error, at the first, second, third … of one kind in one rank, until a training needs
no more of them.

    every_call.py BRAID SOURCE FAULTY_CALLS [--what WHAT] [--step N] [--jobs N] [--seconds S] [--state FILE]
                  [--work DIR]

A tiny model on two ranks, three saves and a pruning, or a load. Then the run goes on without a fault: every committed
checkpoint is whole, and state and numbers are those of the run that nothing happened to. WHAT: kill-change, kill-read
(-9 at a call on checkpoints that writes, flushes, renames, removes …, or reads), error-change, error-read (EIO once),
full (ENOSPC from there on), kill-collective, memory, memory-load (a request for 4 KiB or more of host memory that finds
none, in a run from its begin or one that loads), memory-site, memory-site-load (a request of any size from a place in the
program that none came from before: the three innermost calls; one rank), and, only where they are named,
memory-place, memory-place-load (the whole chain of calls, of which there are ten thousand). One kind is brought to its
end after the other, in the order in which they are named. --step N takes every Nth, --jobs N has N trainings of one rank
under way or 2 N of two, and after S seconds no more are begun: then it says how far it came, and fails. FILE holds how
far each kind came and what failed; one that is there already is gone on from.
"""

import argparse
import concurrent.futures
import json
import os
import re
import shutil
import time
import typing

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
# The plan of faulty_calls.cpp, and whether the run loads. BRAID_FAULT makes each collective wait, for no time.
CALLS = {
    "kill-change": ({"on": "change", "do": "kill"}, False),
    "full": ({"on": "change", "do": 28, "times": 10**9}, False),
    "kill-read": ({"on": "read", "do": "kill"}, True),
    "error-read": ({"on": "read", "do": 5}, True),
    "kill-collective": ({"on": "delay", "do": "kill"}, False),
    "error-change": ({"on": "change", "do": 5}, False),
    "memory": ({"on": "memory"}, False),
    "memory-load": ({"on": "memory"}, True),
    "memory-site": ({"on": "memory", "least": 1, "frames": 3}, False),
    "memory-site-load": ({"on": "memory", "least": 1, "frames": 3}, True),
    "memory-place": ({"on": "memory", "least": 1, "frames": 256}, False),
    "memory-place-load": ({"on": "memory", "least": 1, "frames": 256}, True),
}
MOST_FAILURES = 3  # of a kind and rank in one call of this: the rest would fail in the same way
FEWEST_REQUESTS = 50  # for memory, of any training: fewer mean that faulty_calls does not see them
MISSES = 3  # numbers behind the last call that are tried, too: how many calls a run makes differs a little


def ranks_of(what):
    return 1 if "frames" in CALLS[what][0] else 2


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


class Loop:
    """The calls number 1, 1 + step, … of one kind in one rank, and how far they came."""

    def __init__(self, what, rank, site, step, state):
        self.what, self.rank, self.site, self.step = what, rank, site, step
        self.name = f"{what}, rank {rank}{' ' + site if site else ''}"
        before = state.get(self.name, {})
        self.of = before.get("of")  # how many a run makes that nothing happens to; counted first
        self.next = before.get("next", 1)
        self.hits = set(before.get("hits", []))
        failed = before.get("failed", {})
        self.failed = {number: why for number, why in failed.items() if number != "0"}  # what was wrong, by number
        self.most_failures = len(self.failed) + MOST_FAILURES
        self.running = set()

    def to_json(self):
        return {
            "of": self.of,
            "next": min(self.running - {0}, default=self.next),
            "hits": sorted(self.hits),
            "failed": self.failed,
            "ended": self.ended(),
        }

    def total(self):
        return max(self.of or 0, max(self.hits, default=0))

    def is_uncounted(self):
        return self.of is None and not self.running and "0" not in self.failed

    def is_tried(self):
        return self.of is not None and self.next > self.total() + MISSES * self.step

    def is_left(self):
        return self.of is not None and not self.is_tried() and len(self.failed) < self.most_failures

    def take(self):
        """The next number; 0 is the run that counts them."""
        number = 0
        if self.of is not None:
            number, self.next = self.next, self.next + self.step
        self.running.add(number)
        return number

    def done(self, number, result):
        self.running.remove(number)
        if number == 0:
            self.of = result
        elif result:
            self.hits.add(number)

    def has_failed(self, number, why):
        self.running.remove(number)
        self.failed[str(number)] = why

    def ended(self):
        return self.is_tried() and not self.running

    def __str__(self):
        said = f"{self.name}: {len(self.hits)} hit, number {min(self.hits, default=0)} to {max(self.hits, default=0)}"
        said += f" of {'?' if self.of is None else self.total()}"
        if self.failed:
            said += f", FAILED: number {', '.join(self.failed)}"
        return said + ("" if self.ended() else ", and no further")


class Case(typing.NamedTuple):
    """A call at which something happens to a training; number 0 counts the calls."""

    trained: Trained
    faulty_calls: str
    name: str
    what: str
    rank: int
    site: str
    number: int

    def run(self):
        """Whether there was such a call, or for number 0, how many there are."""
        path = os.path.join(self.trained.world.work, re.sub(r"\W+", "-", self.name))
        try:
            result = self.run_in(path)
        except Failure as failure:
            with open(path + ".log", encoding="utf-8", errors="replace") as log:
                raise Failure(f"{failure}; the log of the last start:\n{log.read()[-2000:]}") from None
        shutil.rmtree(path)
        os.remove(path + ".log")
        return result

    def run_in(self, path):
        world, mark = self.trained.world, path + ".hit"
        shutil.rmtree(path, ignore_errors=True)
        plan, loads = CALLS[self.what]
        plan = {"rank": self.rank, "nth": self.number, "mark": mark, **plan}
        env = {
            "LD_PRELOAD": self.faulty_calls,
            "BRAID_CALLS": ",".join(f"{key}={value}" for key, value in plan.items()),
        }
        if self.site:
            env["BRAID_FAULT"] = f"site=comm.{self.site},rank={self.rank},every=yes,do=delay=0"
        if loads:
            shutil.copytree(self.trained.begun, path)
        job = Job(world, path, ["--resume=auto"], env)
        code = job.wait(200)
        count, was_hit = 0, False
        if os.path.exists(mark):
            with open(mark, encoding="utf-8") as file:
                count, was_hit = int(file.read() or 0), self.number > 0
            os.remove(mark)
        self.check_answer(was_hit, code, job.log())
        world.check_committed(path)
        if code != 0:
            check(Job(world, path, ["--resume=auto"]).wait(200) == 0, "does not go on")
        world.check_end(self.trained.golden, path)
        if self.number:
            return was_hit
        check("memory" not in self.what or count >= FEWEST_REQUESTS, f"only {count} requests for memory were seen")
        return count

    def check_answer(self, was_hit, code, log):
        check(not is_defect(log), "a defect")
        check(was_hit or code == 0, f"exit code {code} for nothing")
        if self.what.startswith("kill"):
            check(code != 0 or not was_hit, "nobody noticed the kill")
        else:
            check(code in ((0, 7) if "memory" in self.what else (0, 4, 9)), f"exit code {code}")
            check(code == 0 or len(said_by_braid(log)) == 1, "not one sentence")


class EveryCall:
    def __init__(self, options, work, whats, until):
        self.calls, self.until, self.state_path = options.calls, until, options.state
        self.jobs, self.state = options.jobs, {}
        if self.state_path and os.path.exists(self.state_path):
            with open(self.state_path, encoding="utf-8") as file:
                self.state = json.load(file)
        self.loops = [
            Loop(what, rank, site, options.step, self.state)
            for what in whats
            for rank in range(ranks_of(what))
            for site in (COLLECTIVES if CALLS[what][0]["on"] == "delay" else [""])
        ]
        self.trained = {ranks: Trained(options, work, ranks) for ranks in sorted(set(map(ranks_of, whats)))}

    def keep(self):
        """In the state's file, which is whole whenever this ends."""
        self.state.update({loop.name: loop.to_json() for loop in self.loops})
        if self.state_path:
            with open(self.state_path + ".new", "w", encoding="utf-8") as file:
                json.dump(self.state, file, sort_keys=True)
            os.replace(self.state_path + ".new", self.state_path)

    def begin(self, pool):
        """The next case under way, if there is one: counts first, then kind after kind. Returns its future, loop and number."""
        loop = next((loop for loop in self.loops if loop.is_uncounted()), None) or next(
            (loop for loop in self.loops if loop.is_left()), None
        )
        if not loop:
            return None
        number = loop.take()
        name = f"{loop.name}, number {number}"
        case = Case(self.trained[ranks_of(loop.what)], self.calls, name, loop.what, loop.rank, loop.site, number)
        return pool.submit(case.run), loop, number

    def run(self):
        running, kept = {}, time.monotonic()
        # Two ranks wait more than they compute, most for the launcher that ends them: they count for one, one rank for two.
        load = lambda: sum(3 - ranks_of(loop.what) for loop, _ in running.values())
        with concurrent.futures.ProcessPoolExecutor(2 * self.jobs) as pool:
            while True:
                while load() < 2 * self.jobs and time.monotonic() < self.until and (begun := self.begin(pool)):
                    running[begun[0]] = begun[1:]
                if not running:
                    break
                for case in concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED).done:
                    loop, number = running.pop(case)
                    try:
                        loop.done(number, case.result())
                    except (Failure, OSError, ValueError) as failure:
                        print(f"  FAILED: {loop.name}, number {number}: {failure}", flush=True)
                        loop.has_failed(number, str(failure))
                if time.monotonic() > kept + 5:
                    self.keep()
                    kept = time.monotonic()
        self.keep()
        for loop in self.loops:
            print(f"  {loop}", flush=True)


def main():
    parser = argparse.ArgumentParser()
    add_common_arguments(parser, seed=False)
    parser.add_argument("calls", type=os.path.abspath)
    parser.add_argument("--what", default=",".join(what for what in CALLS if "place" not in what))
    parser.add_argument("--step", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--state")
    options = parser.parse_args()
    begin = time.monotonic()
    with work_folder(options) as work:
        whats = options.what.split(",")
        check(all(what in CALLS for what in whats), "kinds are", ", ".join(CALLS))
        every = EveryCall(options, work, whats, begin + options.seconds)
        every.run()
        failed, whole = sum(len(loop.failed) for loop in every.loops), all(loop.ended() for loop in every.loops)
        for what in whats:
            loops = [loop for loop in every.loops if loop.what == what]
            hit = sum(len(loop.hits) for loop in loops)
            check(hit > 0 or not all(loop.ended() for loop in loops), f"{what}: nothing was hit")
            print(f"{what}: {hit} hit, each with the golden run's state in the end")
        print(f"{sum(len(loop.hits) for loop in every.loops)} hit in all, {time.monotonic() - begin:.0f} s", flush=True)
        check(failed == 0, failed, "cases failed")
        check(whole, "there was no time for every call")


if __name__ == "__main__":
    run_main(main)
