#!/usr/bin/env python3
"""Training speed of Braid and of transformers on PyTorch, side by side on this machine's CPU.

The same model (read from a Braid config), micro-batch, global batch, number of threads, precision (fp32) and token file for
both; a step is forward, backward, clipping and AdamW. Braid runs once matched (no MTP, no balance loss: the peer has
neither switched on) and once with the config as it is. For the peer, every implementation of attention and experts that
runs on a CPU is tried first and the fastest is measured; torch.compile is off. Repeats of all of them take turns, so a
change of the machine's load meets all alike; medians are reported.

With --braid-avx2 the same comparison is made once more, in the same run, with AVX2 at most on both sides: that program is a
build with -DBRAID_NATIVE=OFF, and the libraries of both are limited by their own settings.

Needs the Python packages torch, transformers (4.57 or newer), h5py, numpy and pyyaml, a built braid, and the config's token
shard (for configs/runs/laptop.yaml: build/release/braid data demo --out runs/laptop-data).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from peers.settings import adamw_settings, transformers_keys

ROOT = Path(__file__).resolve().parent.parent
WARMUP_STEPS = 2
PILOT_STEPS = 2
PILOT_ROUNDS = 2


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--braid", type=Path, default=ROOT / "build/release/braid", help="program (%(default)s)")
    parser.add_argument("--braid-avx2", type=Path, help="a program built with -DBRAID_NATIVE=OFF: compare with AVX2, too")
    parser.add_argument("--config", type=Path, default=ROOT / "configs/runs/laptop.yaml", help="%(default)s")
    parser.add_argument("--shard", type=Path, help="token shard; default: the first of the config")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="%(default)s")
    parser.add_argument("--seq-length", type=int, help="tokens per sequence; default: that of the config")
    parser.add_argument("--steps", type=int, default=5, help="timed steps of a repeat, after 2 that are not (%(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="repeats of every measurement (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    parser.add_argument("--serve-peer", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


# What keeps the libraries of both sides from more than AVX2.
AVX2 = {
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "DNNL_MAX_CPU_ISA": "AVX2",
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
}


def run_braid(program, *command, threads=1, limits={}):
    environment = {**os.environ, **limits, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run([program, *command], capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        sys.exit(f"{program} {' '.join(map(str, command))} failed:\n{done.stdout[-2000:]}{done.stderr}")
    return done.stdout


class Braid:
    """Each repeat is a short run of its own; the steps' times are those in its metrics."""

    def __init__(self, program, limits, arguments, config, shard, overrides):
        self.program, self.limits, self.arguments = program, limits, arguments
        self.products = None
        self.overrides = [
            f"data.sources=[{{name: bench, shards: [{json.dumps(str(shard))}]}}]",
            f"train.seq_length={config['train']['seq_length']}",
            f"run.steps={WARMUP_STEPS + arguments.steps}",
            "schedule.warmup_steps=0",
            "eval.interval_steps=0",
            "checkpoint.interval_steps=0",
            *overrides,
        ]

    def tokens_per_s(self):
        with tempfile.TemporaryDirectory() as folder:
            command = ["train", self.arguments.config, f"run.dir={folder}", *self.overrides]
            text = run_braid(self.program, *command, threads=self.arguments.threads, limits=self.limits)
            self.products = next((line for line in text.splitlines() if line.startswith("device ")), "")
            lines = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
        steps = (line for line in lines if "perf/tokens_per_s" in line)  # others are of saves and evaluations
        return [line["perf/tokens_per_s"] for line in steps if line["step"] > WARMUP_STEPS]


class Peer:
    """transformers' Qwen3NextForCausalLM with torch.optim.AdamW, a fresh model for every repeat."""

    def __init__(self, config, tokens, implementations):
        self.config, self.tokens, self.implementations = config, tokens, implementations

    def make_model(self):
        import torch
        from transformers import Qwen3NextConfig, Qwen3NextForCausalLM

        model_config = Qwen3NextConfig(**transformers_keys(self.config["model"]))
        model_config._attn_implementation = self.implementations["attention"]
        if "experts" in self.implementations:
            model_config._experts_implementation = self.implementations["experts"]
        torch.manual_seed(1)
        return Qwen3NextForCausalLM(model_config).float().train()

    def tokens_per_s(self, steps):
        import torch

        train, optimizer = self.config["train"], self.config["optimizer"]
        rows, length, micro = train["global_batch_size"], train["seq_length"], train["micro_batch_size"]
        model = self.make_model()
        adamw = torch.optim.AdamW(model.parameters(), **adamw_settings(optimizer))
        speeds = []
        for step in range(WARMUP_STEPS + steps):
            begin = step * rows * length % (len(self.tokens) - rows * length)
            batch = torch.from_numpy(self.tokens[begin : begin + rows * length]).view(rows, length)
            start = time.perf_counter()
            for first in range(0, rows, micro):
                ids = batch[first : first + micro]
                (model(input_ids=ids, labels=ids).loss * (len(ids) / rows)).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), optimizer["max_grad_norm"])
            adamw.step()
            adamw.zero_grad(set_to_none=True)
            if step >= WARMUP_STEPS:
                speeds.append(rows * length / (time.perf_counter() - start))
        return speeds


class PeerProcess:
    """A process of its own, as torch chooses its kernels when it is loaded."""

    def __init__(self, limits):
        environment = {**os.environ, **limits}
        command = [sys.executable, __file__, "--serve-peer"]
        self.process = subprocess.Popen(command, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def ask(self, **request):
        print(json.dumps(request), file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            sys.exit("the process that runs transformers ended")
        return json.loads(answer)

    def speeds(self, implementations, steps):
        return self.ask(implementations=implementations, steps=steps)


def serve_peer():
    """Answers the requests of PeerProcess, a line of JSON each; the first one is the setup."""
    import torch
    import transformers

    setup = json.loads(sys.stdin.readline())
    torch.set_num_threads(setup["threads"])
    transformers.logging.set_verbosity_error()
    tokens = load_tokens(setup["shard"], setup["tokens"])
    print(json.dumps(torch.backends.cpu.get_cpu_capability()), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = {"speeds": Peer(setup["config"], tokens, request["implementations"]).tokens_per_s(request["steps"])}
        except (RuntimeError, ValueError, NotImplementedError) as error:
            answer = {"error": str(error).splitlines()[0]}
        print(json.dumps(answer), flush=True)


def candidates(config):
    """What transformers offers on a CPU."""
    model = config["model"]
    copies = config["train"]["micro_batch_size"] * config["train"]["seq_length"] * model["num_experts_per_tok"]
    copied_bytes = 4 * copies * 2 * model["moe_intermediate_size"] * model["hidden_size"]
    try:
        from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS  # noqa: F401
    except ImportError:  # before transformers 5 there is one implementation
        return [{"attention": attention} for attention in ("sdpa", "eager")]
    # batched_mm copies an expert's weights for every token that uses it: meant for a few tokens, minutes a step for many.
    experts = ["grouped_mm", "eager"] + (["batched_mm"] if copied_bytes < 2**27 else [])
    return [{"attention": attention, "experts": name} for attention in ("sdpa", "eager") for name in experts]


def load_tokens(shard, count):
    import h5py
    import numpy

    with h5py.File(shard) as file:
        tokens = file["tokens"]
        return tokens[: min(count, len(tokens))].astype(numpy.int64)


class Comparison:
    """Both sides with the same instructions."""

    def __init__(self, name, program, limits, arguments, config, shard, num_tokens):
        self.name, self.peer = name, PeerProcess(limits)
        self.capability = self.peer.ask(config=config, shard=str(shard), tokens=num_tokens, threads=arguments.threads)
        self.pilots = [{**implementations, "tokens_per_s": None} for implementations in candidates(config)]
        for pilot in self.pilots * PILOT_ROUNDS:
            answer = self.peer.speeds(used(pilot), PILOT_STEPS)
            if "error" in answer:
                pilot["error"] = answer["error"]
            else:
                pilot["tokens_per_s"] = max(pilot["tokens_per_s"] or 0, *answer["speeds"])
        self.best = used(max((p for p in self.pilots if p["tokens_per_s"]), key=lambda p: p["tokens_per_s"]))
        self.version = run_braid(program, "--version").splitlines()[0]
        self.matched = Braid(program, limits, arguments, config, shard, ["mtp.depth=0", "balance.loss_weight=0"])
        self.shipped = Braid(program, limits, arguments, config, shard, [])
        self.speeds = {"transformers": [], "braid_matched": [], "braid_shipped": []}

    def repeat(self, steps):
        self.speeds["transformers"].append(statistics.median(self.peer.speeds(self.best, steps)["speeds"]))
        self.speeds["braid_matched"].append(statistics.median(self.matched.tokens_per_s()))
        self.speeds["braid_shipped"].append(statistics.median(self.shipped.tokens_per_s()))

    def result(self):
        medians = {name: statistics.median(values) for name, values in self.speeds.items()}
        return {
            "instructions": self.name,
            "braid": self.version,
            "braid_products": self.matched.products,
            "torch_capability": self.capability,
            "peer_implementations": self.pilots,
            "peer_used": self.best,
            "tokens_per_s": medians,
            "tokens_per_s_of_repeats": self.speeds,
            "ratio_matched": medians["braid_matched"] / medians["transformers"],
            "ratio_shipped": medians["braid_shipped"] / medians["transformers"],
        }


def used(pilot):
    return {key: pilot[key] for key in ("attention", "experts") if key in pilot}


def main():
    arguments = parse_arguments()
    os.environ["HF_HUB_OFFLINE"] = "1"  # nothing is downloaded: the model is made from its config
    if arguments.serve_peer:
        return serve_peer()
    try:
        import h5py  # noqa: F401
        import torch
        import transformers
        import yaml
    except ImportError as error:
        sys.exit(f"{error}; this script needs: pip install torch transformers h5py numpy pyyaml")
    for program in filter(None, (arguments.braid, arguments.braid_avx2)):
        if not program.exists():
            sys.exit(f"{program}: not there; build it (cmake --preset release && cmake --build --preset release)")

    config = yaml.safe_load(run_braid(arguments.braid, "config", "print", arguments.config))
    if arguments.seq_length:
        config["train"]["seq_length"] = arguments.seq_length
    shard = arguments.shard or Path(config["data"]["sources"][0]["shards"][0])
    if not shard.exists():
        sys.exit(f"{shard}: not there; make it with: braid data demo --out {shard.parent}")
    shard = shard.resolve()
    step_tokens = config["train"]["global_batch_size"] * config["train"]["seq_length"]
    num_tokens = step_tokens * (WARMUP_STEPS + arguments.steps + 1)

    comparisons = [Comparison("all of this CPU", arguments.braid, {}, arguments, config, shard, num_tokens)]
    if arguments.braid_avx2:
        comparisons.append(Comparison("AVX2", arguments.braid_avx2, AVX2, arguments, config, shard, num_tokens))
    for _ in range(arguments.repeats):
        for comparison in comparisons:
            comparison.repeat(arguments.steps)

    result = {
        "threads": arguments.threads,
        "seq_length": config["train"]["seq_length"],
        "micro_batch_size": config["train"]["micro_batch_size"],
        "global_batch_size": config["train"]["global_batch_size"],
        "steps": arguments.steps,
        "repeats": arguments.repeats,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "comparisons": [comparison.result() for comparison in comparisons],
    }
    print(json.dumps(result) if arguments.json else table(result))


def table(result):
    def described(implementations):
        return ", ".join(f"{key} {implementations[key]}" for key in ("attention", "experts") if key in implementations)

    lines = [
        f"torch {result['torch']}, transformers {result['transformers']}; "
        f"{result['threads']} threads, fp32, {result['global_batch_size']} x {result['seq_length']} tokens a step in "
        f"micro-batches of {result['micro_batch_size']}; medians of {result['repeats']} repeats of {result['steps']} steps",
    ]
    for comparison in result["comparisons"]:
        lines += [
            "",
            f"instructions: {comparison['instructions']} (torch uses {comparison['torch_capability']})",
            comparison["braid"],
            comparison["braid_products"],
            f"{'':44}{'tokens/s':>10}{'lowest':>10}{'highest':>10}{'ratio':>8}",
        ]
        names = {
            "transformers": f"transformers ({described(comparison['peer_used'])})",
            "braid_matched": "Braid, matched (no MTP, no balance loss)",
            "braid_shipped": "Braid, config as it is",
        }
        for key, name in names.items():
            speed, repeats = comparison["tokens_per_s"][key], comparison["tokens_per_s_of_repeats"][key]
            ratio = speed / comparison["tokens_per_s"]["transformers"]
            lines.append(f"{name:44}{speed:10.0f}{min(repeats):10.0f}{max(repeats):10.0f}{ratio:8.2f}")
        lines.append("transformers' implementations, fastest of a few steps each:")
        for pilot in comparison["peer_implementations"]:
            speed = f"{pilot['tokens_per_s']:10.0f}" if pilot["tokens_per_s"] else f"  {pilot['error']}"
            lines.append(f"  {described(pilot):42}{speed}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
