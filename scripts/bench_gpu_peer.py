#!/usr/bin/env python3
"""Speed of a training step of Braid and of its rivals on the same GPU, one after the other; Braid first and last.

The same model (from a Braid config without MTP and balance loss), batch and random tokens; a step is forward, backward,
clipping and the optimizer. Every rival runs in a process of its own, with a limit of time; one that fails or whose packages
are missing is left out by name. Each must have as many parameters as Braid and begin at the loss of a guess.

    transformers-fla       transformers' Qwen3NextForCausalLM in bf16 with grouped_mm experts, FLA's chunked gated delta rule,
                           convolution and gated norm, cuDNN's attention through SDPA, PyTorch's fused AdamW on bf16 weights
    transformers-flashqla  the same with FlashQLA's delta rule
    megatron               Megatron-Core's GPT model with TransformerEngine (fused layers, grouped products by CUTLASS, cuDNN's
                           attention, FusedAdam in the distributed optimizer) and FLA, which calls FlashQLA; bf16 weights, fp32
                           gradients, moments and masters; weight gradients are added in fp32 by TransformerEngine's products

Braid keeps fp32 masters and moments and accumulates gradients in fp32, as it trains; so does megatron. The transformers do
less: their state is bf16.

Needs a GPU with room for each, one at a time (for 8 x 4096 tokens of group-128 transformers take 100 GiB), a built braid and
the Python packages torch, transformers (5.x), fla-core, einops and pyyaml; for the stronger rivals flash-qla (with tilelang),
megatron-core and transformer-engine[pytorch,core_cu13]. FLA refuses its backward on Hopper where Triton is older than 3.7.1,
because some gradients come out wrong there; with tilelang it takes another kernel, and --speed-only times it all the same.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WARM_UP = 4  # steps that are not timed

# A rival's modules, each with the package that has it.
COMMON = {"torch": "torch", "fla": "fla-core", "einops": "einops"}
FLASHQLA = {"tilelang": "tilelang", "flash_qla": "flash-qla"}
RIVALS = {
    "transformers-fla": {**COMMON, "transformers": "transformers"},
    "transformers-flashqla": {**COMMON, "transformers": "transformers", **FLASHQLA},
    "megatron": {
        **COMMON,
        **FLASHQLA,
        "megatron.core": "megatron-core",
        "transformer_engine": "transformer-engine",
        "transformer_engine_torch": "transformer-engine-torch",
    },
}


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--braid", type=Path, default=ROOT / "build/release/braid", help="program (%(default)s)")
    parser.add_argument("--config", type=Path, default=ROOT / "configs/bench/group-128.yaml", help="%(default)s")
    parser.add_argument("--rivals", help=f"names, with commas; default: all that can be imported of {','.join(RIVALS)}")
    parser.add_argument("--micro-batch", type=int, help="sequences of a step, for all; default: that of the config")
    parser.add_argument("--steps", type=int, default=10, help=f"timed steps, after {WARM_UP} that are not (%(default)s)")
    parser.add_argument("--limit", type=float, default=300, help="seconds that a rival may take in all (%(default)s)")
    parser.add_argument(
        "--compile-first", action="store_true", help="let all compile their kernels side by side before any is timed"
    )
    parser.add_argument("--speed-only", action="store_true", help="let FLA run where its gradients are known to be wrong")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    arguments = parser.parse_args()
    arguments.rivals = arguments.rivals.split(",") if arguments.rivals else list(RIVALS)
    for name in arguments.rivals:
        if name not in RIVALS:
            parser.error(f"--rivals: there is no {name}; there are {', '.join(RIVALS)}")
    return arguments


def run_braid(arguments, *command):
    done = subprocess.run([arguments.braid, *map(str, command)], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{arguments.braid} {' '.join(map(str, command))} failed:\n{done.stdout[-2000:]}{done.stderr}")
    return done.stdout


def missing_packages(name):
    def is_there(module):
        try:
            return importlib.util.find_spec(module) is not None
        except ModuleNotFoundError:  # of a parent
            return False

    return [package for module, package in RIVALS[name].items() if not is_there(module)]


def start_rival(name, config, warm_up, steps, arguments, folder):
    """Starts a rival; what it prints goes into a file of the folder, and so does its result."""
    task = {
        "config": config,
        "warm_up": warm_up,
        "steps": steps,
        "speed_only": arguments.speed_only,
        "output": str(folder / f"{name}.json"),
    }
    with open(folder / f"{name}.log", "w") as log:
        program = [sys.executable, ROOT / "scripts/peers/run.py", name]
        process = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=log, stderr=log)
    process.stdin.write(json.dumps(task).encode())
    process.stdin.close()
    return process


def finish_rival(name, process, limit, folder):
    """Waits for a rival; says on stderr why one is left out, with the end of what it printed."""
    try:
        process.wait(limit)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        result = {"left_out": "it took longer than --limit"}
    else:
        output = folder / f"{name}.json"
        ended = {"left_out": f"it ended with {process.returncode}"}
        result = json.loads(output.read_text()) if output.exists() else ended
    if "left_out" in result:
        print(f"---- {name}: {result['left_out']}\n{(folder / f'{name}.log').read_text()[-6000:]}", file=sys.stderr, flush=True)
    return result


def compile_kernels(names, config, arguments, folder):
    """Runs all rivals at once on little, so that later ones find their kernels in the caches on disk."""
    little = {**config, "train": {**config["train"], "micro_batch_size": 2, "seq_length": 512}}
    processes = {name: start_rival(name, little, 0, 1, arguments, folder) for name in names}
    end = time.monotonic() + arguments.limit
    for name, process in processes.items():
        finish_rival(name, process, max(0, end - time.monotonic()), folder)
        (folder / f"{name}.json").unlink(missing_ok=True)


def bench_braid(arguments, overrides):
    output = run_braid(arguments, "bench", "step", arguments.config, *overrides, "--steps", arguments.steps, "--json")
    measured = json.loads(output.strip().splitlines()[-1])
    return {"times_ms": measured["times_ms"], "peak_gib": measured["device_used_bytes"] / 2**30}


def summarize(result, tokens):
    if "left_out" in result:
        return result
    times = result["times_ms"]
    median = statistics.median(times)
    spread = {"lowest_ms": min(times), "highest_ms": max(times)}
    return {"step_ms": median, **spread, "tokens_per_s": tokens / median * 1e3, "peak_gib": result["peak_gib"]}


def versions():
    packages = dict.fromkeys(package for modules in RIVALS.values() for package in modules.values())
    found = {}
    for package in [*packages, "triton", "nvidia-cudnn-cu13"]:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            pass
    return found


def main():
    arguments = parse_arguments()
    try:
        import torch
        import yaml
    except ImportError as error:
        sys.exit(f"{error}; this script needs: pip install torch transformers fla-core einops pyyaml")
    if not torch.cuda.is_available():
        print("there is no GPU that PyTorch can use", file=sys.stderr)
        sys.exit(10)

    overrides = ["mtp.depth=0", "balance.loss_weight=0"]
    if arguments.micro_batch:
        overrides += [f"train.{key}_batch_size={arguments.micro_batch}" for key in ("micro", "global")]
    config = yaml.safe_load(run_braid(arguments, "config", "print", arguments.config, *overrides))
    plan = json.loads(run_braid(arguments, "plan", arguments.config, *overrides, "--json"))
    config["parameters"] = plan["parameters"]["main_model"]
    tokens = config["train"]["micro_batch_size"] * config["train"]["seq_length"]

    results = {}

    def add(name, result):
        results[name] = summarize(result, tokens)
        print(f"{name}: {json.dumps(results[name])}", file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        missing = {name: missing_packages(name) for name in arguments.rivals}
        if arguments.compile_first:
            compile_kernels([name for name in missing if not missing[name]], config, arguments, folder)
        add("braid", bench_braid(arguments, overrides))
        for name, packages in missing.items():
            if packages:
                add(name, {"left_out": f"there is no {', '.join(packages)}"})
            else:
                process = start_rival(name, config, WARM_UP, arguments.steps, arguments, folder)
                add(name, finish_rival(name, process, arguments.limit, folder))
        add("braid, again", bench_braid(arguments, overrides))

    summary = {"gpu": torch.cuda.get_device_name(), "versions": versions(), "tokens": tokens}
    if arguments.json:
        print(json.dumps({**summary, "results": results}))
        return
    print(f"{summary['gpu']}; {tokens} tokens a step; {', '.join(f'{k} {v}' for k, v in summary['versions'].items())}")
    print(f"{'':22}{'ms':>9}{'lowest':>9}{'highest':>9}{'tokens/s':>10}{'GiB':>8}{'to Braid':>10}")
    for name, r in results.items():
        if "left_out" in r:
            print(f"{name:22}left out: {r['left_out']}")
            continue
        ratio = r["tokens_per_s"] / results["braid"]["tokens_per_s"]
        print(
            f"{name:22}{r['step_ms']:9.1f}{r['lowest_ms']:9.1f}{r['highest_ms']:9.1f}{r['tokens_per_s']:10.0f}"
            f"{r['peak_gib']:8.1f}{ratio:10.2f}"
        )


if __name__ == "__main__":
    main()
