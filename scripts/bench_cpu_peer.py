#!/usr/bin/env python3
"""Tokens per second of Braid and of transformers' Qwen3NextForCausalLM on PyTorch, on this CPU, in one run.

The same model shape, micro-batch, global batch, sequence length and number of threads; fp32; forward, backward, clipping and AdamW on
tokens of the same shard. The matched comparison trains without MTP and without balance loss, which transformers lacks; Braid as
shipped (with both) is measured as well. transformers runs each of its expert implementations, and the fastest counts.

Needs torch, transformers, h5py, pyyaml from pip, a built braid and a shard (build/release/braid data demo --out runs/laptop-data).

    python3 scripts/bench_cpu_peer.py --threads 2
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

ROOT = Path(__file__).resolve().parent.parent


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--config", default=str(ROOT / "configs/runs/laptop.yaml"))
    parser.add_argument("--braid", default=str(ROOT / "build/release/braid"))
    parser.add_argument("--shard", default=str(ROOT / "runs/laptop-data/train.h5"))
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--seq-length", type=int, help="instead of the config's")
    parser.add_argument("--micro-batch-size", type=int, help="instead of the config's")
    parser.add_argument("--steps", type=int, default=6, help="timed steps; one more in front is not counted")
    parser.add_argument("--repeats", type=int, default=2, help="Braid and the peer take turns this often")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def overrides(args):
    values = [f"data.sources=[{{name: demo, shards: [{args.shard}]}}]", "eval.interval_steps=0"]
    if args.seq_length:
        values.append(f"train.seq_length={args.seq_length}")
    if args.micro_batch_size:
        values += [f"train.micro_batch_size={args.micro_batch_size}"]
    return values


def braid_config(args):
    import yaml

    text = subprocess.run(
        [args.braid, "config", "print", args.config, *overrides(args)], check=True, capture_output=True, text=True
    ).stdout
    return yaml.safe_load(text)


def time_braid(args, extra):
    """Median tokens/s over the timed steps of a fresh run."""
    with tempfile.TemporaryDirectory() as folder:
        command = [args.braid, "train", args.config, *overrides(args), f"run.dir={folder}/run",
                   f"run.steps={args.steps + 1}", *extra]
        environment = dict(os.environ, OMP_NUM_THREADS=str(args.threads))
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
        lines = [json.loads(line) for line in open(f"{folder}/run/metrics.jsonl")]
    return statistics.median(line["perf/tokens_per_s"] for line in lines[1:])


class Peer:
    """The same training step in transformers and torch."""

    def __init__(self, config, args, experts):
        import h5py
        import torch
        from transformers import Qwen3NextConfig, Qwen3NextForCausalLM

        torch.set_num_threads(args.threads)
        torch.manual_seed(1)
        self.torch, self.train = torch, config["train"]
        shape = dict(config["model"])
        if not shape.get("layer_types"):
            shape.pop("layer_types", None)
        rope = {"rope_type": "default", "rope_theta": shape.pop("rope_theta"),
                "partial_rotary_factor": shape.pop("partial_rotary_factor")}
        hf = Qwen3NextConfig(**shape, rope_parameters=rope, use_cache=False, mlp_only_layers=[], decoder_sparse_step=1)
        hf._attn_implementation = "sdpa"
        if experts:
            hf._experts_implementation = experts
        self.model = Qwen3NextForCausalLM(hf).float().train()
        decay = [p for p in self.model.parameters() if p.dim() > 1]
        rest = [p for p in self.model.parameters() if p.dim() <= 1]
        self.optimizer = torch.optim.AdamW([{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}],
                                           lr=1e-3, betas=(0.9, 0.95))
        with h5py.File(args.shard) as shard:
            self.tokens = torch.from_numpy(shard["tokens"][:4_000_000].astype("int64"))
        self.position = 0

    def step(self):
        torch, train = self.torch, self.train
        rows, length = train["micro_batch_size"], train["seq_length"]
        micro_batches = train["global_batch_size"] // rows
        for _ in range(micro_batches):
            begin = self.position % (len(self.tokens) - rows * length)
            batch = self.tokens[begin : begin + rows * length].view(rows, length)
            self.position += rows * length
            loss = self.model(input_ids=batch, labels=batch).loss / micro_batches
            loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(loss.detach()) * micro_batches

    def tokens_per_s(self, steps):
        self.step()
        times = []
        for _ in range(steps):
            start = time.perf_counter()
            self.step()
            times.append(time.perf_counter() - start)
        return self.train["global_batch_size"] * self.train["seq_length"] / statistics.median(times)


def main():
    args = arguments()
    config = braid_config(args)
    peers = {}
    for experts in (None, "eager", "batched_mm", "grouped_mm"):
        try:
            peer = Peer(config, args, experts)
            peer.step()
            peers[experts or "default"] = peer
        except Exception as error:  # an implementation this version or this CPU does not have
            print(f"transformers with experts {experts}: {type(error).__name__}: {error}", file=sys.stderr)
    if not peers:
        sys.exit("transformers could not train with any expert implementation")

    matched = ["mtp.depth=0", "balance.loss_weight=0"]
    braid, shipped, peer = [], [], {name: [] for name in peers}
    for _ in range(args.repeats):
        braid.append(time_braid(args, matched))
        shipped.append(time_braid(args, []))
        for name in peers:
            peer[name].append(peers[name].tokens_per_s(args.steps))
    medians = {name: statistics.median(values) for name, values in peer.items()}
    best = max(medians, key=medians.get)

    import torch
    import transformers

    result = {
        "threads": args.threads,
        "seq_length": config["train"]["seq_length"],
        "micro_batch_size": config["train"]["micro_batch_size"],
        "global_batch_size": config["train"]["global_batch_size"],
        "braid_tokens_per_s": statistics.median(braid),
        "braid_as_shipped_tokens_per_s": statistics.median(shipped),
        "transformers_tokens_per_s": medians,
        "ratio": statistics.median(braid) / medians[best],
        "ratio_as_shipped": statistics.median(shipped) / medians[best],
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    if args.json:
        print(json.dumps(result))
        return
    print(f"{args.threads} threads, {result['global_batch_size']} x {result['seq_length']} tokens per step, "
          f"micro-batch {result['micro_batch_size']}, fp32; torch {torch.__version__}, transformers {transformers.__version__}")
    for name, value in medians.items():
        print(f"  transformers, experts {name:12} {value:10.0f} tokens/s")
    print(f"  Braid, same work             {result['braid_tokens_per_s']:10.0f} tokens/s   {result['ratio']:.2f}x")
    print(f"  Braid as shipped (MTP, balance) {result['braid_as_shipped_tokens_per_s']:7.0f} tokens/s   "
          f"{result['ratio_as_shipped']:.2f}x")


if __name__ == "__main__":
    main()
