#!/usr/bin/env python3
"""Times one rival of scripts/bench_gpu_peer.py, which starts this: run.py NAME, with what to run on stdin."""

import importlib
import json
import math
import os
import sys
import traceback
from pathlib import Path

MODULES = {"transformers-fla": "transformers_peer", "transformers-flashqla": "transformers_peer", "megatron": "megatron_peer"}
OFFLINE = {"HF_HUB_OFFLINE": "1"}  # nothing is downloaded: the model is made from its config
ENVIRONMENT = {
    "transformers-fla": {**OFFLINE, "FLA_FLASH_QLA": "0"},  # FLA would call FlashQLA where it is there
    "transformers-flashqla": OFFLINE,
    "megatron": {"NVTE_USE_CUTLASS_GROUPED_GEMM": "1", "CUDA_DEVICE_MAX_CONNECTIONS": "1"},  # as its recipes say
}


def time_steps(model, train_step, config, warm_up, steps):
    """Times `train_step(ids)` on random tokens."""
    import torch

    parameters = sum(p.numel() for p in model.parameters())
    if parameters != config["parameters"]:
        raise ValueError(f"it has {parameters:,} parameters, Braid {config['parameters']:,}")
    vocabulary = config["model"]["vocab_size"]
    rows, length = config["train"]["micro_batch_size"], config["train"]["seq_length"]
    times_ms = []
    for step in range(warm_up + steps):
        ids = torch.randint(0, vocabulary, (rows, length), device="cuda")
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        loss = train_step(ids)
        end.record()
        torch.cuda.synchronize()
        if step == 0 and not abs(loss.item() - math.log(vocabulary)) < 2:
            raise ValueError(f"its first loss is {loss.item()}, that of a guess {math.log(vocabulary):.2f}")
        if step >= warm_up:
            times_ms.append(start.elapsed_time(end))
    return {"times_ms": times_ms, "peak_gib": torch.cuda.max_memory_allocated() / 2**30}


def main():
    name, task = sys.argv[1], json.load(sys.stdin)
    os.environ.update(ENVIRONMENT[name])
    try:
        peer = importlib.import_module(MODULES[name])
        model, train_step = peer.make_step(name, task["config"], task["speed_only"])
        result = time_steps(model, train_step, task["config"], task["warm_up"], task["steps"])
    except Exception as error:
        traceback.print_exc()
        result = {"left_out": f"{type(error).__name__}: {error}".splitlines()[0]}
    Path(task["output"]).write_text(json.dumps(result))


if __name__ == "__main__":
    main()
