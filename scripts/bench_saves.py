#!/usr/bin/env python3
"""What saving and loading cost a run, beside what the disk can do.

    scripts/bench_saves.py BRAID CONFIG [key=value ...] [--ranks N] [--steps N] [--every N] [--rounds N] [--work DIR]

A round: a run that saves every N steps (8; a save goes on in stages from step to step, and one that is not over when the next
begins is waited for), the same run without saves, a resume, and dd with fsync of the bytes of its last
checkpoint into as many files at once, all on the disk of DIR (default: the working folder). Prints each round and medians:
  stall      that the training waited for a save beside it (the first and the last, which are waited for, do not count)
  overhead   of a save each 60 s: the stall, and what a save makes the steps beside it slower
  disk       bytes per second of saves, until they are on the disk, as a share of dd's; waited: of those that are waited for, with
             which no training shares the cores
  load       bytes that all ranks read over the bytes of the checkpoint
"""

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import tempfile
import time


def run(options, folder, *arguments):
    command = [options.braid, "train", options.config, "run.dir=" + folder, "eval.interval_steps=0", *options.keys, *arguments]
    if options.ranks > 1:
        command = ["mpirun", "-n", str(options.ranks), *command]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit((done.stdout + done.stderr)[-3000:])
    return done.stdout


def lines_of(folder, key):
    with open(os.path.join(folder, "metrics.jsonl"), encoding="utf-8") as file:
        return [line for line in map(json.loads, file) if key in line]


def newest(folder):
    folder = os.path.join(folder, "checkpoints")
    return os.path.join(folder, max(name for name in os.listdir(folder) if name.startswith("step-")))


def dd(checkpoint, work):
    """Bytes per second. What is read lies in the page cache, as the bytes of a save lie in memory."""
    names = [name for name in os.listdir(checkpoint) if name.endswith(".safetensors")]
    for name in names:
        subprocess.run(["cat", os.path.join(checkpoint, name)], stdout=subprocess.DEVNULL, check=True)
    begin = time.monotonic()
    copies = [
        subprocess.Popen(["dd", f"if={checkpoint}/{n}", f"of={work}/dd-{n}", "bs=4M", "conv=fsync", "status=none"])
        for n in names
    ]
    if any([copy.wait() for copy in copies]):
        raise SystemExit("dd failed")
    seconds = time.monotonic() - begin
    size = sum(os.path.getsize(os.path.join(checkpoint, name)) for name in names)
    for name in names:
        os.remove(f"{work}/dd-{name}")
    return size, size / seconds


def one_round(options, work):
    saving, silent = os.path.join(work, "saving"), os.path.join(work, "silent")
    steps = f"run.steps={options.steps}"
    run(options, saving, steps, f"checkpoint.interval_steps={options.every}", "checkpoint.keep=2")
    size, disk = dd(newest(saving), work)
    run(options, silent, steps, "checkpoint.interval_steps=0")
    saves = lines_of(saving, "checkpoint/stall_ms")
    waited, saves = [saves[0], saves[-1]], saves[1:-1]
    speed = lambda these: statistics.median(save["checkpoint/write_gb_per_s"] for save in these) * 1e9 / disk * 100
    times = [[line["perf/step_ms"] for line in lines_of(folder, "train/loss")[1:]] for folder in (saving, silent)]
    slower = (statistics.fmean(times[0]) - statistics.fmean(times[1])) * options.every
    stall = statistics.median(save["checkpoint/stall_ms"] for save in saves)
    said = run(options, saving, f"run.steps={options.steps + 1}", "checkpoint.interval_steps=0", "--resume")
    read, unit = re.search(r"loaded \S+: read ([0-9.]+) (GB|MB)", said).groups()
    found = {
        "stall ms": stall,
        "overhead %": (stall + slower) / 60e3 * 100,
        "disk %": speed(saves),
        "waited %": speed(waited),
        "dd GB/s": disk / 1e9,
        "load": float(read) * {"GB": 1e9, "MB": 1e6}[unit] / size,
        "step ms": statistics.fmean(times[1]),
        "GB": size / 1e9,
    }
    shutil.rmtree(saving)
    shutil.rmtree(silent)
    return found


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("braid")
    parser.add_argument("config")
    parser.add_argument("keys", nargs="*")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--steps", type=int, default=34)
    parser.add_argument("--every", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", default=".")
    options = parser.parse_args()
    options.braid = os.path.abspath(options.braid)
    work = tempfile.mkdtemp(prefix="bench_saves-", dir=options.work)
    rounds = []
    try:
        for _ in range(options.rounds):
            rounds.append(one_round(options, work))
            print("  ".join(f"{key} {value:.4g}" for key, value in rounds[-1].items()), flush=True)
    finally:
        shutil.rmtree(work)
    print("median: " + "  ".join(f"{key} {statistics.median(r[key] for r in rounds):.4g}" for key in rounds[0]))


if __name__ == "__main__":
    main()
