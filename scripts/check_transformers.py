#!/usr/bin/env python3
"""Proves, with the transformers installed here, that models pass between Braid and transformers unharmed.

For every model in tests/golden:
  bytes   import into a Braid checkpoint and export again keeps every tensor: name, dtype, shape and bytes
  load    what is exported loads in transformers with no key missing or left over, bar the MTP block that it ignores
  logits  and computes the same logits there, bit for bit
  adamw   where the folder has a training: losses and gradient norms of AdamW steps in PyTorch and in Braid
And for a model that Braid has trained a few steps on this machine:
  load    its export loads in transformers
  logits  transformers' logits and loss and, with the layers of transformers, the MTP block's logits agree with Braid's

transformers computes here as it is, in fp32. Needs the Python packages torch, transformers and safetensors, and a built
braid.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
import transformers
from make_golden import check_environment, load_network, next_token_loss, per_expert, save_tensors, train_curves
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
TRAIN_OVERRIDES = ("run.steps=20", "eval.interval_steps=0", "checkpoint.interval_steps=0")
BATCH = (2, 130)


@dataclass
class Check:
    model: str
    name: str
    passed: bool
    found: str


class Braid:
    def __init__(self, program: Path):
        self.program = program

    def run(self, *arguments: str | Path, may_fail: bool = False) -> str:
        """Standard output; leaves with the program's message if it fails and must not."""
        command = [str(self.program), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "2"})
        if done.returncode not in ((0, 1) if may_fail else (0,)):
            sys.exit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr}")
        return done.stdout

    def export(self, checkpoint: Path, folder: Path, *options: str) -> Path:
        self.run("ckpt", "export", "--from", checkpoint, "--to", folder, *options)
        return folder

    def parity(self, model: Path, option: str, reference: Path) -> dict:
        return json.loads(self.run("parity", "--model", model, option, reference, "--json", may_fail=True))


def stored_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a model folder, experts one by one."""
    tensors = {}
    for file in sorted(folder.glob("model*.safetensors")):
        tensors |= safetensors.torch.load_file(file)
    return per_expert(tensors)


def same_bytes(got: Tensor, expected: Tensor) -> bool:
    if got.dtype != expected.dtype or got.shape != expected.shape:
        return False
    return torch.equal(got.contiguous().view(torch.uint8), expected.contiguous().view(torch.uint8))


def compare_bytes(model: str, got: dict[str, Tensor], expected: dict[str, Tensor]) -> Check:
    differing = [name for name in expected if name not in got or not same_bytes(got[name], expected[name])]
    differing += [name for name in got if name not in expected]
    found = f"{len(differing)} differ, {differing[0]} first" if differing else f"{len(expected)} tensors"
    return Check(model, "bytes", not differing, found)


def check_load(model: str, folder: Path) -> Check:
    _, info = transformers.Qwen3NextForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    wrong = {key: sorted(names) for key, names in info.items() if names}
    wrong["unexpected_keys"] = [name for name in wrong.get("unexpected_keys", []) if not name.startswith("mtp.")]
    wrong = {key: names for key, names in wrong.items() if names}
    return Check(model, "load", not wrong, str(wrong) if wrong else "no key missing or left over")


def compute_logits(folder: Path, input_ids: Tensor) -> dict[str, Tensor]:
    """Runs tokens [B, T]: logits [B, T, V] and, with an MTP block, mtp_logits [B, T-1, V], by transformers in fp32."""
    network = load_network(folder, torch.float32)
    with torch.no_grad():
        logits, _, hidden = network(input_ids)
        tensors = {"logits": logits}
        if network.mtp is not None:
            tensors["mtp_logits"] = network.mtp_logits(input_ids, hidden)
    return tensors


def compare_logits(model: str, got: dict[str, Tensor], expected: dict[str, Tensor]) -> Check:
    passed = got.keys() == expected.keys() and all(torch.equal(got[name], expected[name]) for name in expected)
    return Check(model, "logits", passed, " and ".join(expected) + (" are the same" if passed else " are not the same"))


def parity_check(model: str, name: str, report: dict) -> Check:
    parts = [f"{tensor['name']} {tensor['relative_rms']:.1e}" for tensor in report["tensors"]]
    for curve in ("loss", "losses", "grad_norms"):
        if report.get(curve):
            parts.append(f"{curve} {report[curve]['relative_difference']:.1e}")
    return Check(model, name, report["passed"], ", ".join(parts))


def check_golden(braid: Braid, folder: Path, work: Path) -> Iterator[Check]:
    model = folder.name
    checkpoint = work / "checkpoint"
    braid.run("ckpt", "import", "--from", folder, "--to", checkpoint)
    same = braid.export(checkpoint, work / "same")
    yield compare_bytes(model, stored_tensors(same), stored_tensors(folder))
    fp32 = braid.export(checkpoint, work / "fp32", "--dtype", "fp32")
    yield check_load(model, fp32)
    input_ids = safetensors.torch.load_file(folder / "reference.safetensors")["input_ids"]
    yield compare_logits(model, compute_logits(fp32, input_ids), compute_logits(folder, input_ids))
    if (folder / "train.safetensors").exists():
        yield check_adamw(braid, folder, work)


def check_adamw(braid: Braid, folder: Path, work: Path) -> Check:
    """The folder's training again, by transformers and torch.optim.AdamW of this machine."""
    with safetensors.safe_open(folder / "train.safetensors", framework="pt") as golden:
        batches, metadata = golden.get_tensor("batches"), golden.metadata()
    curves = train_curves(load_network(folder, torch.float32), batches)
    tensors = {name: torch.tensor(values, dtype=torch.float64) for name, values in curves.items()}
    save_tensors(work / "train.safetensors", {"batches": batches} | tensors, metadata)
    return parity_check(folder.name, "adamw", braid.parity(folder, "--train", work / "train.safetensors"))


def check_trained(braid: Braid, work: Path) -> Iterator[Check]:
    model = "trained by Braid"
    braid.run("data", "demo", "--out", work / "data", "--text", ROOT / "kernels")
    source = f"data.sources=[{{name: demo, shards: [{json.dumps(str(work / 'data' / 'train.h5'))}]}}]"
    run = work / "run"
    braid.run("train", ROOT / "configs/runs/tiny.yaml", f"run.dir={run}", source, *TRAIN_OVERRIDES)
    folder = braid.export(run, work / "trained")
    yield check_load(model, folder)
    vocab_size = json.loads((folder / "config.json").read_text())["vocab_size"]
    input_ids = torch.randint(vocab_size, BATCH, generator=torch.Generator().manual_seed(1))
    tensors = compute_logits(folder, input_ids)
    tensors |= {"input_ids": input_ids, "loss": next_token_loss(tensors["logits"], input_ids).reshape(1)}
    save_tensors(work / "reference.safetensors", tensors, {})
    yield parity_check(model, "logits", braid.parity(folder, "--reference", work / "reference.safetensors"))


def check_all(braid: Braid, work: Path) -> Iterator[Check]:
    for reference in sorted((ROOT / "tests/golden").glob("*/reference.safetensors")):
        folder = reference.parent
        (work / folder.name).mkdir(parents=True)
        yield from check_golden(braid, folder, work / folder.name)
    yield from check_trained(braid, work)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--braid", type=Path, default=ROOT / "build/release/braid", help="program (%(default)s)")
    parser.add_argument("--work", type=Path, help="empty folder for the files made; default: a temporary one")
    arguments = parser.parse_args()
    arguments.braid = arguments.braid.resolve()
    if not arguments.braid.exists():
        parser.error(f"{arguments.braid} does not exist")
    if arguments.work and arguments.work.exists() and any(arguments.work.iterdir()):
        parser.error(f"{arguments.work} is not empty")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    check_environment()
    torch.set_num_threads(2)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    print(f"transformers {transformers.__version__}, torch {torch.__version__}")
    failed = []
    with tempfile.TemporaryDirectory() as temporary:
        for check in check_all(Braid(arguments.braid), arguments.work or Path(temporary)):
            print(f"{check.model:18}{check.name:8}{'passed' if check.passed else 'FAILED':8}{check.found}", flush=True)
            failed += [] if check.passed else [check]
    if failed:
        sys.exit(f"{len(failed)} checks failed")
    print("all checks passed")


if __name__ == "__main__":
    main()
