"""A training step of transformers' Qwen3NextForCausalLM with FLA's or FlashQLA's kernels, in bf16."""

import torch
from settings import adamw_settings, transformers_keys
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import Qwen3NextConfig, Qwen3NextForCausalLM
from transformers.models.qwen3_next import modeling_qwen3_next


def put_kernels_in(flashqla, speed_only):
    """Puts FLA's kernels into the place of transformers' own ones, whatever transformers would choose."""
    import fla.ops.common.chunk_o
    from fla.modules.conv import causal_conv1d
    from fla.modules.fused_norm_gate import FusedRMSNormGated

    if flashqla:
        from flash_qla import chunk_gated_delta_rule
    else:
        from fla.ops.gated_delta_rule import chunk_gated_delta_rule

    def convolution(x, weight, bias=None, activation=None, **_):  # x (B, channels, T), a transpose of (B, T, channels)
        return causal_conv1d(x.transpose(1, 2), weight, bias, activation=activation)[0].transpose(1, 2)

    def delta_rule(q, k, v, g, beta, output_final_state=False, use_qk_l2norm_in_kernel=False, **_):
        return chunk_gated_delta_rule(
            q, k, v, g, beta, output_final_state=output_final_state, use_qk_l2norm_in_kernel=use_qk_l2norm_in_kernel
        )

    def gated_norm(hidden_size, eps=1e-6, **_):
        return FusedRMSNormGated(hidden_size, eps=eps)

    modeling_qwen3_next.causal_conv1d_fn = convolution
    modeling_qwen3_next.torch_chunk_gated_delta_rule = delta_rule
    modeling_qwen3_next.Qwen3NextRMSNormGated = gated_norm
    if speed_only:
        fla.ops.common.chunk_o.TRITON_ABOVE_3_4_0 = False


def make_step(name, config, speed_only):
    """The model and what trains it on a batch and returns the loss."""
    put_kernels_in(name == "transformers-flashqla", speed_only)
    model_config = Qwen3NextConfig(**transformers_keys(config["model"]))
    model_config._attn_implementation = "sdpa"
    model_config._experts_implementation = "grouped_mm"
    torch.manual_seed(1)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = Qwen3NextForCausalLM(model_config).train()
    optimizer = config["optimizer"]
    adamw = torch.optim.AdamW(model.parameters(), **adamw_settings(optimizer))

    def train_step(ids):
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            loss = model(input_ids=ids, labels=ids).loss
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), optimizer["max_grad_norm"])
        adamw.step()
        adamw.zero_grad(set_to_none=True)
        return loss.detach()

    return model, train_step
