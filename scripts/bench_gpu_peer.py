#!/usr/bin/env python3
"""Speed of a training step of Braid and of transformers with FLA on the same GPU, one after the other.

The same model (from a Braid config without MTP and balance loss), batch and random tokens; a step is forward, backward,
clipping and the optimizer. The peer is put together from the fastest parts that PyTorch users have: transformers'
Qwen3NextForCausalLM in bf16 with grouped_mm experts, FLA's chunked gated delta rule, convolution and gated norm, cuDNN's
attention through SDPA, and PyTorch's fused AdamW on bf16 weights. Braid keeps fp32 masters and moments and accumulates
gradients in fp32, as it trains: it does more than the peer there.

Needs a GPU with room for both, one at a time (for 8 x 4096 tokens of group-128 the peer takes 100 GiB), a built braid and
the Python packages torch, transformers (5.x), fla-core, einops and pyyaml. FLA refuses its backward on Hopper where Triton is
older than 3.7, because some gradients come out wrong there; --speed-only times it all the same.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--braid", type=Path, default=ROOT / "build/release/braid", help="program (%(default)s)")
    parser.add_argument("--config", type=Path, default=ROOT / "configs/bench/group-128.yaml", help="%(default)s")
    parser.add_argument("--micro-batch", type=int, help="sequences of a step, for both; default: that of the config")
    parser.add_argument("--steps", type=int, default=10, help="timed steps, after 4 that are not (%(default)s)")
    parser.add_argument("--speed-only", action="store_true", help="let FLA run where its gradients are known to be wrong")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    return parser.parse_args()


def run_braid(arguments, *command):
    done = subprocess.run([arguments.braid, *map(str, command)], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{arguments.braid} {' '.join(map(str, command))} failed:\n{done.stdout[-2000:]}{done.stderr}")
    return done.stdout


def use_fla(modeling, speed_only):
    """Puts FLA's kernels into the place of transformers' own ones, whatever transformers would choose."""
    import fla.ops.common.chunk_o
    from fla.modules.conv import causal_conv1d
    from fla.modules.fused_norm_gate import FusedRMSNormGated
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule

    def convolution(x, weight, bias=None, activation=None, **_):  # x (B, channels, T), a transpose of (B, T, channels)
        return causal_conv1d(x.transpose(1, 2), weight, bias, activation=activation)[0].transpose(1, 2)

    def delta_rule(q, k, v, g, beta, output_final_state=False, use_qk_l2norm_in_kernel=False, **_):
        return chunk_gated_delta_rule(
            q, k, v, g, beta, output_final_state=output_final_state, use_qk_l2norm_in_kernel=use_qk_l2norm_in_kernel
        )

    def gated_norm(hidden_size, eps=1e-6, **_):
        return FusedRMSNormGated(hidden_size, eps=eps)

    modeling.causal_conv1d_fn = convolution
    modeling.torch_chunk_gated_delta_rule = delta_rule
    modeling.Qwen3NextRMSNormGated = gated_norm
    if speed_only:
        fla.ops.common.chunk_o.TRITON_ABOVE_3_4_0 = False


def time_peer(config, steps, speed_only):
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from transformers import Qwen3NextConfig, Qwen3NextForCausalLM
    from transformers.models.qwen3_next import modeling_qwen3_next

    use_fla(modeling_qwen3_next, speed_only)
    keys = dict(config["model"])
    interval = keys.pop("full_attention_interval")
    keys["layer_types"] = keys["layer_types"] or [
        "full_attention" if (layer + 1) % interval == 0 else "linear_attention"
        for layer in range(keys["num_hidden_layers"])
    ]
    model_config = Qwen3NextConfig(**keys, use_cache=False)
    model_config._attn_implementation = "sdpa"
    model_config._experts_implementation = "grouped_mm"
    torch.manual_seed(1)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = Qwen3NextForCausalLM(model_config).train()
    optimizer = config["optimizer"]
    adamw = torch.optim.AdamW(
        model.parameters(),
        lr=optimizer["lr"],
        betas=(optimizer["beta1"], optimizer["beta2"]),
        eps=optimizer["eps"],
        weight_decay=optimizer["weight_decay"],
        fused=True,
    )
    rows, length = config["train"]["micro_batch_size"], config["train"]["seq_length"]
    times_ms = []
    for step in range(4 + steps):
        ids = torch.randint(0, keys["vocab_size"], (rows, length), device="cuda")
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            loss = model(input_ids=ids, labels=ids).loss
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), optimizer["max_grad_norm"])
        adamw.step()
        adamw.zero_grad(set_to_none=True)
        end.record()
        torch.cuda.synchronize()
        if step >= 4:
            times_ms.append(start.elapsed_time(end))
        if step == 0 and not 0 < loss.item() < 100:
            sys.exit(f"the peer's loss is {loss.item()}")
    return {"step_ms": statistics.median(times_ms), "peak_gib": torch.cuda.max_memory_allocated() / 2**30}


def main():
    arguments = parse_arguments()
    os.environ["HF_HUB_OFFLINE"] = "1"  # nothing is downloaded: the model is made from its config
    try:
        import fla
        import torch
        import transformers
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
    tokens = config["train"]["micro_batch_size"] * config["train"]["seq_length"]

    measured = json.loads(
        run_braid(arguments, "bench", "step", arguments.config, *overrides, "--steps", arguments.steps, "--json")
        .strip()
        .splitlines()[-1]
    )
    braid = {"step_ms": measured["step_ms"], "peak_gib": measured["device_used_bytes"] / 2**30}
    peer = time_peer(config, arguments.steps, arguments.speed_only)
    result = {
        "gpu": torch.cuda.get_device_name(),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__, "fla": fla.__version__},
        "tokens": tokens,
        "braid": {**braid, "tokens_per_s": tokens / braid["step_ms"] * 1e3},
        "peer": {**peer, "tokens_per_s": tokens / peer["step_ms"] * 1e3},
    }
    if arguments.json:
        print(json.dumps(result))
        return
    print(f"{result['gpu']}; {result['versions']}; {tokens} tokens a step")
    for name in ("peer", "braid"):
        r = result[name]
        ratio = r["tokens_per_s"] / result["peer"]["tokens_per_s"]
        print(f"{name:8}{r['step_ms']:9.1f} ms{r['tokens_per_s']:10.0f} tokens/s{r['peak_gib']:8.1f} GiB{ratio:7.2f}x")


if __name__ == "__main__":
    main()
