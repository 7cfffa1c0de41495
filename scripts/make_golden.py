#!/usr/bin/env python3
"""Tiny random Qwen3-Next models, and what transformers computes with them, for `braid parity`.

Every shape of the table below becomes a folder: a model in the Hugging Face format and reference.safetensors with
tokens, logits, loss and gradients; for some also MTP logits, a training (train.safetensors) or wrong MTP blocks
(mtp_variants.safetensors). docs/parity.md describes the files, tests/golden/README.md the shapes.

The code that runs is transformers' own torch path. It casts to fp32 in its norms, gates, softmax, router, rotary table
and delta rule even in a model of dtype float64, so a mode turns each of these casts into one to fp64, and another makes
sure that no fp32 number is left. Every reference records how far transformers' unchanged arithmetic is from it.

The same files judge arithmetic in bf16: weights are numbers that bf16 holds, and tokens are chosen so that no result
hangs on rounding. See ROUTER_MARGIN and what follows it.

transformers has no MTP block. The one here has the structure of vLLM (vllm/model_executor/models/qwen3_next_mtp.py,
Qwen3NextMultiTokenPredictor, read at commit 055e47c2) and is made of transformers' layers: the embedding of the next
token and the hidden state, each normalised, concatenated with the embedding first, through fc, one full-attention layer
with experts, a norm of its own and the shared head. The hidden state is what vLLM's backbone returns (qwen3_next.py,
Qwen3NextModel, same commit): the one after the final norm.

Needs the Python packages torch, transformers and safetensors; must not find fla, causal_conv1d or kernels, which
transformers would use instead. Seeds are fixed; the last bits may differ between versions of torch and processors.
"""

import argparse
import copy
import functools
import importlib.util
import inspect
import itertools
import json
import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import safetensors.torch
import torch
import transformers
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Qwen3NextConfig, Qwen3NextForCausalLM
from transformers.models.qwen3_next import modeling_qwen3_next as modeling

# ----------------------------------------------------------------------------------------------------------------------
# Shapes

# Keys of config.json; a shape names those that it has differently.
DEFAULTS = dict(
    vocab_size=72,
    hidden_size=32,
    num_hidden_layers=4,
    full_attention_interval=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    partial_rotary_factor=0.25,
    rope_theta=10000.0,
    linear_num_key_heads=2,
    linear_num_value_heads=4,
    linear_key_head_dim=8,
    linear_value_head_dim=8,
    linear_conv_kernel_dim=4,
    num_experts=8,
    num_experts_per_tok=2,
    moe_intermediate_size=8,
    shared_expert_intermediate_size=12,
    max_position_embeddings=256,
)


@dataclass(frozen=True)
class Shape:
    covers: str
    config: dict  # in addition to DEFAULTS
    batch: tuple[int, int]  # B, T
    documents: tuple[int, ...] = ()  # lengths of documents packed in one row, else every row is one
    mtp: bool = False
    variants: bool = False  # also wrong MTP blocks
    train: bool = False  # also a training
    fresh: bool = False  # weights as initialised (bar the decay), instead of random ones as after a training
    layout: str = "per_expert"  # or fused (3-D tensors), saved (by save_pretrained, in shards)
    spelling: int = 5  # of config.json: the version of transformers
    dtype: torch.dtype = torch.float32


SHAPES: dict[str, Shape] = {
    "base": Shape(
        covers="three DeltaNet layers and one attention layer; two value heads per key head; three chunks",
        config={},
        batch=(2, 130),
    ),
    "mtp": Shape(
        covers="MTP block and two wrong ones; one DeltaNet head with Dk != Dv; hidden size 40; 3 of 5 experts",
        config=dict(
            hidden_size=40,
            num_hidden_layers=2,
            full_attention_interval=2,
            linear_num_key_heads=1,
            linear_num_value_heads=1,
            linear_key_head_dim=12,
            linear_value_head_dim=20,
            num_experts=5,
            num_experts_per_tok=3,
            partial_rotary_factor=0.5,
            rope_theta=1e7,
        ),
        batch=(2, 70),
        mtp=True,
        variants=True,
        spelling=4,
    ),
    "attention_first": Shape(
        covers="layer_types with attention first; three value heads per key head; one key-value head; conv of 3 taps; "
        "norm_topk_prob off; fused experts; training",
        config=dict(
            hidden_size=36,
            num_hidden_layers=3,
            layer_types=["full_attention", "linear_attention", "linear_attention"],
            num_key_value_heads=1,
            head_dim=12,
            partial_rotary_factor=0.5,
            rope_theta=100.0,
            linear_num_value_heads=6,
            linear_key_head_dim=12,
            linear_conv_kernel_dim=3,
            rms_norm_eps=1e-3,
            num_experts=6,
            norm_topk_prob=False,
        ),
        batch=(3, 100),
        train=True,
        layout="fused",
    ),
    "all_linear": Shape(
        covers="DeltaNet layers only; three chunks; 1 of 16 experts, so the router's gradient is zero; bf16 weights",
        config=dict(
            hidden_size=48,
            num_hidden_layers=3,
            linear_value_head_dim=16,
            num_experts=16,
            num_experts_per_tok=1,
        ),
        batch=(1, 150),
        spelling=4,
        dtype=torch.bfloat16,
    ),
    "all_attention": Shape(
        covers="attention layers only; all of a head rotates; T one more than a chunk; shards written by transformers",
        config=dict(
            num_hidden_layers=2,
            full_attention_interval=1,
            num_attention_heads=6,
            num_key_value_heads=3,
            head_dim=10,
            partial_rotary_factor=1.0,
            rms_norm_eps=1e-5,
            num_experts=7,
            num_experts_per_tok=4,
        ),
        batch=(2, 65),
        layout="saved",
    ),
    "packed": Shape(
        covers="documents packed in a row: one of a single token, one shorter than the conv, one of a whole chunk; MTP",
        config=dict(linear_value_head_dim=12, num_experts=5),
        batch=(1, 151),
        documents=(67, 1, 3, 64, 16),
        mtp=True,
    ),
    "ungated": Shape(
        covers="attention without output gates, in the MTP block too; training",
        config=dict(
            attn_output_gate=False,
            hidden_size=24,
            num_hidden_layers=2,
            full_attention_interval=2,
            num_experts=5,
        ),
        batch=(2, 70),
        mtp=True,
        train=True,
    ),
    "short": Shape(
        covers="rows shorter than the conv; all experts chosen; bf16 weights in shards written by transformers",
        config=dict(
            hidden_size=24,
            num_hidden_layers=2,
            full_attention_interval=2,
            linear_num_key_heads=3,
            linear_num_value_heads=3,
            num_experts=4,
            num_experts_per_tok=4,
        ),
        batch=(5, 3),
        layout="saved",
        dtype=torch.bfloat16,
    ),
    "yarn": Shape(
        covers="rotary positions stretched by yarn, with pairs on either side of the ramp and on it; rows twice as long as "
        "the original length",
        config=dict(
            num_hidden_layers=2,
            full_attention_interval=2,
            partial_rotary_factor=1.0,
            rope=dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=64, beta_fast=4.0, beta_slow=0.5),
        ),
        batch=(2, 130),
        mtp=True,
    ),
    "yarn_by_hand": Shape(
        covers="yarn with a ramp that is not truncated and attention_factor from mscale",
        config=dict(
            num_hidden_layers=1,
            full_attention_interval=1,
            rope=dict(
                rope_type="yarn", factor=8.0, original_max_position_embeddings=32, mscale=0.8, mscale_all_dim=0.4, truncate=False
            ),
            partial_rotary_factor=0.5,
        ),
        batch=(1, 100),
    ),
    "linear_rope": Shape(
        covers="rotary positions divided by 2.5",
        config=dict(num_hidden_layers=1, full_attention_interval=1, rope=dict(rope_type="linear", factor=2.5)),
        batch=(1, 70),
    ),
    "fresh": Shape(
        covers="weights as transformers initialises them, but decay of all speeds; training",
        config=dict(vocab_size=96, hidden_size=24, num_experts=6),
        batch=(2, 70),
        train=True,
        fresh=True,
    ),
}

# Routing is a choice: where two experts score nearly alike, rounding decides, and nothing agrees any more. A token lies
# this far from where the router would choose another expert: the distance of the router's input from that border, per
# component, in units of the input's RMS. In bf16 inputs are off by about 0.01 of their RMS.
ROUTER_MARGIN = 0.07
TRAIN_ROUTER_MARGIN = 3e-6  # of a training, in fp32, where many more choices are made

# The gated norm blows up what a head reads from its state when next to nothing is read, with its rounding. What is read,
# and the norm's epsilon, are at least this share of what a query in a random direction reads from the same state.
READ_MARGIN = 0.5

# A model is taken only if fp32 arithmetic of transformers itself stays this close to fp64: in logits and every gradient
# (relative RMS), in losses and gradient norms (largest relative difference). So a bound of 1e-4 on somebody else's fp32
# arithmetic asks for the same formulas and not for luck.
MAX_ROUNDING = 3e-5

# And only if bf16 arithmetic stays this close: in logits (relative RMS), loss (relative difference) and the direction of
# every gradient (1 - cosine, which grows with the square of the error). The bounds of `braid parity --precision bf16`
# are 1.2e-2, 1e-3 and 1e-3. Samples of bf16_rounding have twice the error, squared, of rounding to the nearest number.
MAX_BF16_ERRORS = {
    "unchanged_bf16": {"logits": 9e-3, "loss": 5e-4, "worst gradient": 5e-4},  # transformers, which rounds more often
    "rounded_to_bf16": {"logits": 1e-2, "loss": 7e-4, "worst gradient": 1e-3},
}
BF16_SAMPLES = 4
BF16_ZERO_GRADIENT = 1e-4  # share of the largest gradient's RMS that is rounding, as docs/parity.md puts it

LM_HEADS = 40  # tried with a model and its tokens
TOKEN_CANDIDATES = 32  # continuations tried at a time
TOKEN_LOOKAHEAD = 12  # and their length
MAX_TOKEN_ROUNDS = 400  # then the model is given up

TRAIN_BATCH = (2, 70)
TRAIN_BATCHES = 4  # taken in turn, so that there is something to learn
TRAIN_STEPS = 20
TRAIN_SETTINGS = dict(lr=1e-3, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1, max_grad_norm=1.0)


def make_config(shape: Shape) -> Qwen3NextConfig:
    keys = DEFAULTS | shape.config
    rope = dict(
        rope_type="default",
        rope_theta=keys.pop("rope_theta"),
        partial_rotary_factor=keys.pop("partial_rotary_factor"),
    ) | keys.pop("rope", {})
    return Qwen3NextConfig(
        **keys, rope_parameters=rope, architectures=["Qwen3NextForCausalLM"], dtype=shape.dtype, use_cache=False
    )


# ----------------------------------------------------------------------------------------------------------------------
# fp64


class DoubleCasts(TorchFunctionMode):
    """Turns every cast to fp32 and every fp32 tensor that Python code asks for into fp64."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is Tensor.float:
            function = Tensor.double
        args = tuple(torch.float64 if value is torch.float32 else value for value in args)
        kwargs = {
            key: torch.float64 if value is torch.float32 else value for key, value in (kwargs or {}).items()
        }
        return function(*args, **kwargs)


class ForbidFloat32(TorchDispatchMode):
    """Fails at the first operation with an fp32 result."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        results = function(*args, **(kwargs or {}))
        for result in results if isinstance(results, (tuple, list)) else (results,):
            if isinstance(result, Tensor) and result.dtype == torch.float32:
                raise AssertionError(f"{function} computes in fp32")
        return results


def check_environment() -> None:
    """The torch path must run, in the version that normalises queries and keys in fp32 (pull request 47625)."""
    for package in ("fla", "causal_conv1d", "kernels"):
        if importlib.util.find_spec(package):
            raise SystemExit(f"{package} is installed: transformers would use it instead of its torch path")
    source = inspect.getsource(modeling.torch_chunk_gated_delta_rule)
    if not 0 <= source.find(".to(torch.float32") < source.find("l2norm(query"):
        raise SystemExit(f"transformers {transformers.__version__} normalises queries and keys before its cast to fp32")


# ----------------------------------------------------------------------------------------------------------------------
# Attention without output gates, and the MTP block


class UngatedProjection(nn.Module):
    """In place of q_proj, whose result transformers takes for query and gate of every head: its queries, beside gates
    whose sigmoid is exactly 1 in every dtype."""

    OPEN = 100.0

    def __init__(self, heads: int, head_dim: int, hidden_size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(heads * head_dim, hidden_size))
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        queries = nn.functional.linear(x, self.weight).unflatten(-1, (self.heads, -1))
        return torch.cat([queries, torch.full_like(queries, self.OPEN)], dim=-1).flatten(-2)


class Attention(modeling.Qwen3NextAttention):
    """transformers' attention, which knows no attn_output_gate: false, as vLLM's does."""

    def __init__(self, config: Qwen3NextConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        if not getattr(config, "attn_output_gate", True):
            self.q_proj = UngatedProjection(config.num_attention_heads, self.head_dim, config.hidden_size)


modeling.Qwen3NextAttention = Attention


class MtpBlock(nn.Module):
    """Predicts token t + 2 from the hidden state of position t and the embedding of token t + 1."""

    def __init__(self, config: Qwen3NextConfig):
        super().__init__()
        layer_config = copy.deepcopy(config)
        layer_config.num_hidden_layers, layer_config.layer_types = 1, ["full_attention"]

        def norm() -> nn.Module:
            return modeling.Qwen3NextRMSNorm(config.hidden_size, eps=config.rms_norm_eps)

        self.pre_fc_norm_embedding, self.pre_fc_norm_hidden, self.norm = norm(), norm(), norm()
        self.fc = nn.Linear(2 * config.hidden_size, config.hidden_size, bias=False)
        self.layers = nn.ModuleList([modeling.Qwen3NextDecoderLayer(layer_config, 0)])

    def forward(self, embeddings: Tensor, hidden: Tensor, rotary: nn.Module, hidden_first: bool = False) -> Tensor:
        """embeddings: of tokens 1 .. T-1, hidden: of positions 0 .. T-2, result: all [B, T-1, C]."""
        inputs = [self.pre_fc_norm_embedding(embeddings), self.pre_fc_norm_hidden(hidden)]
        x = self.fc(torch.cat(inputs[::-1] if hidden_first else inputs, dim=-1))
        length = x.shape[1]
        causal = torch.full((1, 1, length, length), float("-inf"), dtype=x.dtype).triu(1)
        for layer in self.layers:
            x = layer(x, position_embeddings=rotary(x, torch.arange(length)[None]), attention_mask=causal)
        return self.norm(x)


class Network(nn.Module):
    """A transformers model and, if there is one, its MTP block, under the names of the released weights."""

    def __init__(self, main: Qwen3NextForCausalLM, mtp: MtpBlock | None):
        super().__init__()
        self.main, self.mtp = main, mtp

    def named_weights(self) -> dict[str, nn.Parameter]:
        named = dict(self.main.named_parameters())
        return named | {f"mtp.{name}": p for name, p in (self.mtp.named_parameters() if self.mtp else ())}

    def forward(self, input_ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens [B, T] to logits [B, T, V] and the hidden states [B, T, C] before and after the final norm."""
        seen = []
        hook = self.main.model.norm.register_forward_hook(lambda _, inputs, output: seen.extend([*inputs, output]))
        logits = self.main(input_ids=input_ids, use_cache=False).logits
        hook.remove()
        return logits, *seen

    def mtp_logits(self, input_ids: Tensor, hidden: Tensor, hidden_first: bool = False) -> Tensor:
        """[B, T-1, V] for tokens [B, T] and hidden states [B, T, C]."""
        backbone = self.main.model
        x = self.mtp(backbone.embed_tokens(input_ids[:, 1:]), hidden[:, :-1], backbone.rotary_emb, hidden_first)
        return self.main.lm_head(x)


# ----------------------------------------------------------------------------------------------------------------------
# Weights and model folders


def random_weight(name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    """No weight keeps the value that it is initialised with, and every part of the model has a visible share.

    What a layer adds to the stream is smaller than the stream, as in trained models, or layers amplify rounding.
    """
    normal = torch.randn(shape, generator=generator)
    uniform = torch.rand(shape, generator=generator)
    if name.endswith("A_log"):  # decay per token from a thousandth to practically all, in every layer
        speeds = (torch.argsort(uniform) + torch.rand(shape, generator=generator)) / shape[0]
        return math.log(0.002) + speeds * math.log(8 / 0.002)
    if name.endswith("dt_bias"):
        return uniform * 5 - 4
    if name.endswith("linear_attn.norm.weight"):
        return 1 + 0.3 * normal
    if "norm" in name:
        return 0.3 * normal
    if name.endswith("conv1d.weight"):
        return normal
    if name.endswith("embed_tokens.weight"):
        return normal
    gain = 1.2
    if name.endswith("mlp.gate.weight"):
        gain = 2.0
    elif name.endswith(("o_proj.weight", "out_proj.weight", "down_proj.weight", "down_proj")):
        gain = 0.3
    return gain * normal / math.sqrt(shape[-1])


def align_keys(mixer: nn.Module) -> None:
    """Turns a head's keys towards its queries, in weights and taps: with random ones it often reads nearly nothing."""
    Hk, Dk = mixer.num_k_heads, mixer.head_k_dim
    projections = mixer.in_proj_qkvz.weight.view(Hk, -1, mixer.hidden_size)
    taps = mixer.conv1d.weight
    for queries, keys in (
        (projections[:, :Dk], projections[:, Dk : 2 * Dk]),
        (taps[: Hk * Dk], taps[Hk * Dk : 2 * Hk * Dk]),
    ):
        keys.copy_(0.9 * queries + math.sqrt(1 - 0.9**2) * keys)


def random_network(shape: Shape, generator: torch.Generator) -> Network:
    config = make_config(shape)
    torch.manual_seed(generator.initial_seed())
    network = Network(Qwen3NextForCausalLM(config), MtpBlock(config) if shape.mtp else None)
    with torch.no_grad():
        for name, parameter in network.named_weights().items():
            # As initialised, most heads forget within a token, and the gradient of A_log is less than fp32 rounding.
            if shape.fresh and not name.endswith(("A_log", "dt_bias")):
                continue
            parameter.copy_(random_weight(name, parameter.shape, generator))
        for module in network.modules():
            if isinstance(module, modeling.Qwen3NextGatedDeltaNet) and not shape.fresh:
                align_keys(module)
        for parameter in network.parameters():  # numbers that bf16 holds, whatever dtype stores them
            parameter.copy_(parameter.to(torch.bfloat16))
    return network.to(shape.dtype)


def per_expert(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Splits experts.gate_up_proj [E, 2F, C] and experts.down_proj [E, C, F] into three matrices per expert."""
    result = {}
    for name, tensor in tensors.items():
        stem, _, last = name.rpartition(".")
        if not stem.endswith(".experts"):
            result[name] = tensor
            continue
        for expert, matrix in enumerate(tensor):
            pieces = zip(("gate_proj", "up_proj"), matrix.chunk(2)) if last == "gate_up_proj" else [(last, matrix)]
            result |= {f"{stem}.{expert}.{piece}.weight": part for piece, part in pieces}
    return result


def fused(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of per_expert; leaves tensors that are 3-D already alone."""
    result, experts = {}, {}
    for name, tensor in tensors.items():
        stem, _, rest = name.partition(".experts.")
        if rest.count(".") != 2:
            result[name] = tensor
            continue
        expert, projection, _ = rest.split(".")
        experts.setdefault(f"{stem}.experts.", {})[int(expert), projection] = tensor
    for stem, pieces in experts.items():
        number = range(len(pieces) // 3)
        gate_up = [torch.cat([pieces[expert, "gate_proj"], pieces[expert, "up_proj"]]) for expert in number]
        result[stem + "gate_up_proj"] = torch.stack(gate_up)
        result[stem + "down_proj"] = torch.stack([pieces[expert, "down_proj"] for expert in number])
    return result


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """safetensors writes metadata in an order that changes from run to run; here it is sorted."""
    tensors = {name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}
    content = safetensors.torch.save(tensors, metadata)
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    path.write_bytes(content[:8] + text.ljust(end - 8) + content[end:])


def version_4_config(config: Qwen3NextConfig, shape: Shape) -> dict:
    """config.json as released: no layer_types, rotary keys of their own, torch_dtype."""
    keys = config.to_dict()
    for key in ("rope_parameters", "layer_types", "dtype"):
        keys.pop(key)
    rope = config.rope_parameters
    return keys | dict(
        full_attention_interval=(DEFAULTS | shape.config)["full_attention_interval"],
        partial_rotary_factor=rope["partial_rotary_factor"],
        rope_theta=rope["rope_theta"],
        rope_scaling=None,
        torch_dtype=str(shape.dtype).removeprefix("torch."),
        transformers_version="4.57.0",
        use_sliding_window=False,
    )


def write_model(folder: Path, shape: Shape, network: Network) -> None:
    config = network.main.config
    if shape.layout == "saved":
        network.main.save_pretrained(folder, max_shard_size="64KB")
        (folder / "generation_config.json").unlink()
        return
    weights = {name: p.data for name, p in network.named_weights().items()}
    save_tensors(
        folder / "model.safetensors", weights if shape.layout == "fused" else per_expert(weights), {"format": "pt"}
    )
    if shape.spelling == 4:
        text = json.dumps(version_4_config(config, shape), indent=2, sort_keys=True)
        (folder / "config.json").write_text(text + "\n")
    else:
        config.save_pretrained(folder)


def load_mtp(folder: Path, config: Qwen3NextConfig) -> MtpBlock | None:
    weights = {}
    for file in sorted(folder.glob("*.safetensors")):
        weights |= {name: t for name, t in safetensors.torch.load_file(file).items() if name.startswith("mtp.")}
    if not weights:
        return None
    block = MtpBlock(config)
    block.load_state_dict({name.removeprefix("mtp."): tensor for name, tensor in fused(weights).items()})
    return block


def load_network(folder: Path, dtype: torch.dtype) -> Network:
    """Reads a model folder by transformers itself, in the torch path with the plainest attention and experts."""
    main, info = Qwen3NextForCausalLM.from_pretrained(
        folder,
        dtype=torch.float32,
        attn_implementation="eager",
        experts_implementation="eager",
        output_loading_info=True,
    )
    for key in ("missing_keys", "mismatched_keys", "error_msgs"):
        assert not info[key], f"{folder}: {key} {info[key]}"
    unexpected = [name for name in info["unexpected_keys"] if not name.startswith("mtp.")]
    assert not unexpected, f"{folder}: unexpected_keys {unexpected}"
    network = Network(main, load_mtp(folder, main.config)).to(dtype)
    main.model.rotary_emb = modeling.Qwen3NextRotaryEmbedding(main.config)  # its table stays in fp32
    # Out of the mapped file, where a tensor begins anywhere: its alignment changes the last bit of a product.
    for parameter in network.parameters():
        parameter.data = parameter.data.clone()
    return network


def load_double_network(folder: Path) -> Network:
    """For use under DoubleCasts."""
    network = load_network(folder, torch.float64)
    with DoubleCasts():  # a table of fp32 frequencies would stay one when cast to fp64
        network.main.model.rotary_emb = modeling.Qwen3NextRotaryEmbedding(network.main.config)
    return network


# ----------------------------------------------------------------------------------------------------------------------
# References


def routing_distance(router: nn.Module, inputs: Tensor, logits: Tensor) -> Tensor:
    """How far each row of inputs [N, C] lies from where another set of experts is chosen, see ROUTER_MARGIN; [N]."""
    values, order = logits.sort(dim=-1, descending=True)
    K, weights = router.top_k, router.weight[order]
    distances = [torch.full_like(values[:, 0], math.inf)]
    for chosen, other in itertools.product(range(K), range(K, router.num_experts)):
        gap = values[:, chosen] - values[:, other]
        distances.append(gap / (weights[:, chosen] - weights[:, other]).norm(dim=-1))
    return torch.stack(distances).amin(dim=0) / inputs.square().mean(dim=-1).sqrt()


@contextmanager
def routing_distances(network: Network) -> Iterator[list[Tensor]]:
    """Collects the routing distances of every call of a router."""
    distances = []

    def collect(router: nn.Module, inputs: tuple, outputs: tuple) -> None:
        rows = inputs[0].detach().flatten(0, -2)
        with torch.no_grad():
            distances.append(routing_distance(router, rows, outputs[0].detach()))

    routers = [module for module in network.modules() if isinstance(module, modeling.Qwen3NextTopKRouter)]
    hooks = [router.register_forward_hook(collect) for router in routers]
    yield distances
    for hook in hooks:
        hook.remove()


@contextmanager
def around_delta_rule(wrap: Callable) -> Iterator[None]:
    """Every delta rule runs as wrap(rule, query, key, value, **others)."""
    rule = modeling.torch_chunk_gated_delta_rule
    modeling.torch_chunk_gated_delta_rule = functools.partial(wrap, rule)
    yield
    modeling.torch_chunk_gated_delta_rule = rule


@contextmanager
def read_shares(eps: float) -> Iterator[list[Tensor]]:
    """Collects, for every delta rule, what a query reads from the state, |S^T q|, as a share of what one in a random
    direction would, |q| |S| / sqrt(Dk), see READ_MARGIN: [B, T, Hv]."""
    shares = []

    def collect(rule: Callable, query: Tensor, key: Tensor, value: Tensor, g: Tensor, beta: Tensor, **others) -> tuple:
        output, last_state = rule(query, key, value, g=g, beta=beta, **others)
        k = modeling.l2norm(key, dim=-1, eps=1e-6).repeat_interleave(value.shape[2] // key.shape[2], dim=2)
        state = k.new_zeros(*value[:, 0].shape[:2], k.shape[-1], value.shape[-1])
        sizes = []
        for t in range(k.shape[1]):
            state = state * g[:, t, :, None, None].exp()
            delta = beta[:, t, :, None] * (value[:, t] - torch.einsum("bhkv,bhk->bhv", state, k[:, t]))
            state = state + k[:, t, :, :, None] * delta[:, :, None]
            sizes.append(state.flatten(2).norm(dim=-1))
        read = (output.square().sum(dim=-1) + output.shape[-1] * eps).sqrt()  # with a unit query over sqrt(Dk)
        shares.append(read * k.shape[-1] / torch.stack(sizes, dim=1))
        return output, last_state

    with around_delta_rule(collect):
        yield shares


def conditions(network: Network, input_ids: Tensor) -> tuple[Tensor, Tensor]:
    """The smallest routing distance and the smallest read share of any layer, both by token [B, T]; with DoubleCasts.

    The MTP block's choice at a position counts for the next token, which it reads.
    """
    eps = network.main.config.rms_norm_eps
    with torch.no_grad(), routing_distances(network) as routing, read_shares(eps) as reads:
        hidden = network(input_ids)[2]
        layers = len(routing)
        if network.mtp is not None and input_ids.shape[1] > 1:
            network.mtp_logits(input_ids, hidden)
    distance, share = torch.full((2, *input_ids.shape), math.inf, dtype=torch.float64)
    for i, values in enumerate(routing):
        positions = distance if i < layers else distance[:, 1:]
        positions.copy_(torch.minimum(positions, values.view_as(positions)))
    for values in reads:
        share = torch.minimum(share, values.amin(dim=-1))
    return distance, share


def choose_tokens(network: Network, length: int, generator: torch.Generator) -> Tensor | None:
    """Random tokens [length] that meet both margins everywhere, chosen from the left; None if none were found."""
    vocab_size = network.main.config.vocab_size
    chosen = torch.empty(0, dtype=torch.int64)
    for _ in range(MAX_TOKEN_ROUNDS):
        new = min(TOKEN_LOOKAHEAD, length - len(chosen))
        candidates = torch.randint(vocab_size, (TOKEN_CANDIDATES, new), generator=generator)
        candidates = torch.cat([chosen.expand(TOKEN_CANDIDATES, -1), candidates], dim=1)
        with DoubleCasts():
            distance, share = conditions(network, candidates)
        good = ((distance >= ROUTER_MARGIN) & (share >= READ_MARGIN)).cumprod(dim=1).sum(dim=1)
        best = int(good.argmax())
        if good[best] > len(chosen):
            chosen = candidates[best, : good[best]]
        else:  # a dead end
            chosen = chosen[:-2]
        if len(chosen) == length:
            return chosen
    return None


def choose_input_ids(network: Network, shape: Shape, generator: torch.Generator) -> Tensor | None:
    """[B, T]"""
    batch, length = shape.batch
    pieces = []
    for piece in shape.documents or (length,) * batch:
        pieces.append(choose_tokens(network, piece, generator))
        if pieces[-1] is None:
            return None
    return torch.cat(pieces).view(batch, length)


def next_token_loss(logits: Tensor, input_ids: Tensor) -> Tensor:
    """Mean cross entropy of logits [B, T, V] over all B (T - 1) next tokens."""
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), input_ids[:, 1:].flatten())


@dataclass
class Results:
    input_ids: Tensor  # [B, T]
    logits: Tensor  # [B, T, V]
    loss: Tensor  # []
    gradients: dict[str, Tensor]
    mtp_logits: dict[str, Tensor] = field(default_factory=dict)  # by definition ("") or variant, each [B, T-1, V]


def run_mtp(network: Network, input_ids: Tensor, before: Tensor, after: Tensor) -> dict[str, Tensor]:
    """before, after: hidden states around the final norm, [B, T, C]."""
    return {
        "": network.mtp_logits(input_ids, after),
        ".hidden_first": network.mtp_logits(input_ids, after, hidden_first=True),
        ".pre_norm": network.mtp_logits(input_ids, before),
    }


def run_reference(network: Network, input_ids: Tensor, documents: tuple[int, ...]) -> Results:
    """Documents of one row are run one by one: transformers would let DeltaNet states run on into the next."""
    batch, length = input_ids.shape
    vocab_size = network.main.config.vocab_size
    logits, mtp_logits = [], {}
    start = 0
    for document in documents or (length,):
        tokens = input_ids[:, start : start + document]
        piece, before, after = network(tokens)
        logits.append(piece)
        if network.mtp is not None and document > 1:
            with torch.no_grad():
                for variant, values in run_mtp(network, tokens, before, after).items():
                    whole = mtp_logits.setdefault(variant, values.new_zeros(batch, length - 1, vocab_size))
                    whole[:, start : start + document - 1] = values
        start += document
    assert start == length
    logits = torch.cat(logits, dim=1)
    loss = next_token_loss(logits, input_ids)
    loss.backward()
    gradients = {name: p.grad for name, p in network.named_weights().items() if not name.startswith("mtp.")}
    return Results(input_ids, logits.detach(), loss.detach(), gradients, mtp_logits)


def rms(tensor: Tensor) -> float:
    return float(tensor.double().square().mean().sqrt())


def relative_rms(got: Tensor, expected: Tensor) -> float:
    return rms(got.double() - expected.double()) / rms(expected)


def unchanged_error(folder: Path, dtype: torch.dtype, input_ids: Tensor, shape: Shape, exact: Results) -> dict:
    """Relative RMS error of transformers with its casts as they are: of the logits and of the worst gradient."""
    results = run_reference(load_network(folder, dtype), input_ids, shape.documents)
    largest = max(rms(gradient) for gradient in exact.gradients.values())
    gradients = [
        relative_rms(results.gradients[name], expected)
        for name, expected in exact.gradients.items()
        if rms(expected) >= 1e-6 * largest  # else it is zero but for rounding, as docs/parity.md puts it
    ]
    return {"logits": relative_rms(results.logits, exact.logits), "worst gradient": max(gradients)}


class RoundToBf16(torch.autograd.Function):
    """Rounds fp64 numbers and their gradients to bf16, up or down at random: nearer neighbours are likelier."""

    @staticmethod
    def rounded(x: Tensor, generator: torch.Generator) -> Tensor:
        _, exponent = torch.frexp(x)
        return torch.ldexp(
            torch.floor(torch.ldexp(x, 8 - exponent) + torch.rand(x.shape, generator=generator, dtype=x.dtype)),
            exponent - 8,
        )

    @staticmethod
    def forward(ctx, x: Tensor, generator: torch.Generator) -> Tensor:
        ctx.generator = generator
        return RoundToBf16.rounded(x, generator)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return RoundToBf16.rounded(gradient, ctx.generator), None


@contextmanager
def bf16_rounding(network: Network, seed: int) -> Iterator[None]:
    """What modules of an fp64 network read and write is rounded to bf16, and so are the gradients: a model of mixed
    precision, of which a seed gives a sample. Router logits and logits are not rounded."""
    generator = torch.Generator().manual_seed(seed)

    def rounded(x):
        return RoundToBf16.apply(x, generator) if isinstance(x, Tensor) and x.is_floating_point() else x

    def round_rule(rule: Callable, query: Tensor, key: Tensor, value: Tensor, **others) -> tuple:
        return rule(rounded(query), rounded(key), rounded(value), **others)

    hooks = []
    for name, module in network.named_modules():
        hooks.append(module.register_forward_pre_hook(lambda _, inputs: tuple(map(rounded, inputs))))
        if not name.endswith("lm_head"):
            hooks.append(module.register_forward_hook(lambda _, inputs, output: rounded(output)))
    with around_delta_rule(round_rule):
        yield
    for hook in hooks:
        hook.remove()


def bf16_error(results: Results, exact: Results) -> dict[str, float]:
    """Of a computation in bf16: relative RMS error of the logits, relative difference of the loss, 1 - cosine of the
    worst gradient, experts one by one."""
    logits = [relative_rms(results.logits, exact.logits)]
    if exact.mtp_logits:
        logits.append(relative_rms(results.mtp_logits[""], exact.mtp_logits[""]))
    loss = float(next_token_loss(results.logits.double(), results.input_ids))
    got, expected = per_expert(results.gradients), per_expert(exact.gradients)
    level = BF16_ZERO_GRADIENT * max(rms(gradient) for gradient in expected.values())
    worst = 0.0
    for name, e in expected.items():
        g = got[name].double()
        if rms(e) >= level and rms(g - e) > level:
            worst = max(worst, 1 - float((g * e).sum() / (g.norm() * e.norm())))
    return {"logits": max(logits), "loss": abs(loss / float(exact.loss) - 1), "worst gradient": worst}


def bf16_errors(folder: Path, input_ids: Tensor, shape: Shape, exact: Results) -> Iterator[tuple[str, dict[str, float]]]:
    """Of transformers with a model of dtype bf16, and of samples of bf16_rounding."""
    results = run_reference(load_network(folder, torch.bfloat16), input_ids, shape.documents)
    yield "unchanged_bf16", bf16_error(results, exact)
    for seed in range(BF16_SAMPLES):
        network = load_double_network(folder)
        with DoubleCasts(), bf16_rounding(network, seed):
            results = run_reference(network, input_ids, shape.documents)
        yield "rounded_to_bf16", bf16_error(results, exact)


def to_text(errors: dict[str, float]) -> str:
    return ", ".join(f"{key} {error:.1e}" for key, error in errors.items())


def versions() -> dict[str, str]:
    return dict(torch=torch.__version__, transformers=transformers.__version__, arithmetic="fp64")


def make_reference(folder: Path, shape: Shape, input_ids: Tensor) -> dict[str, str] | None:
    """Writes the reference of a model folder and returns its metadata; None if the model is no good one."""
    network = load_double_network(folder)
    with DoubleCasts(), ForbidFloat32():
        results = run_reference(network, input_ids, shape.documents)
    metadata = versions() | {"router_margin": str(ROUTER_MARGIN), "read_margin": str(READ_MARGIN)}
    for dtype, name in ((torch.float32, "fp32"), (torch.float64, "fp64")):
        errors = unchanged_error(folder, dtype, input_ids, shape, results)
        if max(errors.values()) > MAX_ROUNDING:
            return None
        metadata[f"unchanged_{name}"] = to_text(errors)
    worst = {}
    for name, errors in bf16_errors(folder, input_ids, shape, results):
        if any(errors[key] > limit for key, limit in MAX_BF16_ERRORS[name].items()):
            return None
        worst[name] = {key: max(error, worst.get(name, errors)[key]) for key, error in errors.items()}
    metadata |= {name: to_text(errors) for name, errors in worst.items()}
    gradients = results.gradients if shape.layout == "fused" else per_expert(results.gradients)
    tensors = {"input_ids": input_ids, "logits": results.logits.float(), "loss": results.loss.float().reshape(1)}
    tensors |= {f"grad.{name}": gradient.float() for name, gradient in gradients.items()}
    if shape.mtp:
        tensors["mtp_logits"] = results.mtp_logits[""].float()
    if shape.documents:
        tensors["cu_seqlens"] = torch.tensor([0, *itertools.accumulate(shape.documents)])
    save_tensors(folder / "reference.safetensors", tensors, metadata)
    if shape.variants:
        variants = {f"mtp_logits{name}": logits.float() for name, logits in results.mtp_logits.items() if name}
        save_tensors(folder / "mtp_variants.safetensors", variants, versions())
    return metadata


def train_curves(network: Network, batches: Tensor) -> dict[str, list[float]]:
    """One AdamW step per batch [B, T]; losses, and gradient norms before clipping."""
    settings = TRAIN_SETTINGS
    parameters = list(network.main.parameters())
    groups = [
        dict(params=[p for p in parameters if p.dim() > 1], weight_decay=settings["weight_decay"]),
        dict(params=[p for p in parameters if p.dim() == 1], weight_decay=0.0),
    ]
    betas = (settings["beta1"], settings["beta2"])
    optimizer = torch.optim.AdamW(groups, lr=settings["lr"], betas=betas, eps=settings["eps"], foreach=False)
    losses, grad_norms = [], []
    for input_ids in batches:
        optimizer.zero_grad()
        loss = next_token_loss(network(input_ids)[0], input_ids)
        loss.backward()
        grad_norms.append(float(nn.utils.clip_grad_norm_(parameters, settings["max_grad_norm"])))
        losses.append(float(loss.detach()))
        optimizer.step()
    return {"losses": losses, "grad_norms": grad_norms}


def largest_difference(got: list[float], expected: list[float]) -> float:
    return max(abs(x - y) / abs(y) for x, y in zip(got, expected))


def make_training(folder: Path, shape: Shape, generator: torch.Generator) -> bool:
    """Writes the training reference of a model folder; False if the training is no good one."""
    vocab_size = (DEFAULTS | shape.config)["vocab_size"]
    batches = torch.randint(vocab_size, (TRAIN_BATCHES, *TRAIN_BATCH), generator=generator)
    batches = batches.repeat(TRAIN_STEPS // TRAIN_BATCHES, 1, 1)
    network = load_double_network(folder)
    with DoubleCasts(), routing_distances(network) as distances:
        curves = train_curves(network, batches)
    unchanged = train_curves(load_network(folder, torch.float32), batches)
    errors = {name: largest_difference(unchanged[name], curves[name]) for name in curves}
    margin = min(float(values.min()) for values in distances)
    if margin < TRAIN_ROUTER_MARGIN or max(errors.values()) > MAX_ROUNDING:
        return False
    metadata = {"router_margin": f"{margin:.1e}", "unchanged_fp32": to_text(errors)}
    metadata |= versions() | {key: repr(value) for key, value in TRAIN_SETTINGS.items()}
    tensors = {name: torch.tensor(values, dtype=torch.float64) for name, values in curves.items()}
    save_tensors(folder / "train.safetensors", {"batches": batches} | tensors, metadata)
    return True


def make_model(folder: Path, shape: Shape, seed: int) -> dict[str, str] | None:
    """Writes a model and its references and returns the metadata; None if no good one was found from this seed."""
    generator = torch.Generator().manual_seed(seed)
    network = random_network(shape, generator)
    lm_head = network.main.lm_head.weight
    input_ids = None
    for _ in range(LM_HEADS):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        write_model(folder, shape, network)
        if input_ids is None:
            input_ids = choose_input_ids(load_double_network(folder), shape, generator)
        if input_ids is None:
            return None
        metadata = make_reference(folder, shape, input_ids)
        if metadata and (not shape.train or make_training(folder, shape, generator)):
            return metadata
        # Another head has other gradients; the tokens hang on the rest.
        lm_head.data = lm_head.data[:, torch.randperm(lm_head.shape[1], generator=generator)]
    return None


def make_shape(name: str, shape: Shape, folder: Path) -> None:
    for seed in itertools.count(1):
        metadata = make_model(folder, shape, seed)
        if metadata:
            break
    size = sum(file.stat().st_size for file in folder.iterdir())
    print(f"{name}: seed {seed}, {size / 1e3:.0f} kB; errors")
    for precision in ("fp32", "fp64", "bf16"):
        print(f"  of transformers as it is in {precision}: {metadata[f'unchanged_{precision}']}")
    print(f"  of {BF16_SAMPLES} samples of rounding to bf16: {metadata['rounded_to_bf16']}", flush=True)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out_dir", metavar="OUT_DIR", type=Path, nargs="?", help="a folder per shape is made here")
    parser.add_argument("--only", metavar="SHAPE", choices=SHAPES, help="one of: " + ", ".join(SHAPES))
    parser.add_argument("--list", action="store_true", help="list the shapes and leave")
    arguments = parser.parse_args()
    if not arguments.list and arguments.out_dir is None:
        parser.error("OUT_DIR is missing")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    if arguments.list:
        for name, shape in SHAPES.items():
            print(f"{name:16} {shape.covers}")
        return
    check_environment()
    torch.set_num_threads(1)  # tensors are small
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    for name, shape in SHAPES.items():
        if arguments.only in (None, name):
            make_shape(name, shape, arguments.out_dir / name)


if __name__ == "__main__":
    main()
