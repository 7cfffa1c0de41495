"""A training step of Megatron-Core's GPT model with TransformerEngine and FlashQLA: bf16 weights, fp32 state."""

import flash_qla
import torch
from megatron.core import parallel_state, tensor_parallel
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt import experimental_attention_variant_module_specs as specs
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.tensor_parallel import layers
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.enums import AttnBackend
from megatron.core.transformer.module import Float16Module


def megatron_config(config):
    """Megatron-Core's description of the model, with the settings of its recipes for Qwen3-Next on one GPU."""
    model = config["model"]
    assert not model["layer_types"] and model["norm_topk_prob"] and not model["tie_word_embeddings"]
    return TransformerConfig(
        num_layers=model["num_hidden_layers"],
        hidden_size=model["hidden_size"],
        ffn_hidden_size=model["moe_intermediate_size"],
        num_attention_heads=model["num_attention_heads"],
        num_query_groups=model["num_key_value_heads"],
        kv_channels=model["head_dim"],
        normalization="RMSNorm",
        layernorm_epsilon=model["rms_norm_eps"],
        layernorm_zero_centered_gamma=True,
        qk_layernorm=True,
        attention_output_gate=True,
        experimental_attention_variant="gated_delta_net",
        linear_attention_freq=model["full_attention_interval"],
        linear_conv_kernel_dim=model["linear_conv_kernel_dim"],
        linear_key_head_dim=model["linear_key_head_dim"],
        linear_value_head_dim=model["linear_value_head_dim"],
        linear_num_key_heads=model["linear_num_key_heads"],
        linear_num_value_heads=model["linear_num_value_heads"],
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        add_bias_linear=False,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        init_method_std=model["initializer_range"],
        num_moe_experts=model["num_experts"],
        moe_ffn_hidden_size=model["moe_intermediate_size"],
        moe_shared_expert_intermediate_size=model["shared_expert_intermediate_size"],
        moe_shared_expert_gate=True,
        moe_router_topk=model["num_experts_per_tok"],
        moe_router_load_balancing_type="none",
        moe_router_dtype="fp32",
        moe_router_fusion=True,
        moe_grouped_gemm=True,
        moe_token_dispatcher_type="alltoall",
        moe_permute_fusion=True,
        attention_backend=AttnBackend.fused,
        apply_rope_fusion=True,
        bias_activation_fusion=True,
        bias_dropout_fusion=True,
        cross_entropy_loss_fusion=True,
        cross_entropy_fusion_impl="te",  # by default logits are converted to fp32: 23 GiB
        gradient_accumulation_fusion=True,
        bf16=True,
        params_dtype=torch.bfloat16,
        transformer_impl="transformer_engine",
    )


def megatron_model(config):
    model_config = megatron_config(config)
    # TransformerEngine adds weight gradients in fp32; only the head's layer would need a kernel of Apex for that.
    layers._grad_accum_fusion_available = True
    model = GPTModel(
        config=model_config,
        transformer_layer_spec=specs.get_transformer_block_with_experimental_attention_variant_spec(model_config),
        vocab_size=config["model"]["vocab_size"],
        max_sequence_length=config["train"]["seq_length"],
        position_embedding_type="rope",
        rotary_percent=config["model"]["partial_rotary_factor"],
        rotary_base=int(config["model"]["rope_theta"]),
        share_embeddings_and_output_weights=False,
    )
    model.output_layer.gradient_accumulation_fusion = False
    return model


def make_step(name, config, speed_only):
    """The model and what trains it on a batch and returns the loss."""
    calls = []  # FLA falls back to its own kernels without a word
    delta_rule = flash_qla.chunk_gated_delta_rule
    flash_qla.chunk_gated_delta_rule = lambda *a, **k: calls.append(1) or delta_rule(*a, **k)

    torch.cuda.set_device(0)
    torch.distributed.init_process_group("nccl", store=torch.distributed.HashStore(), rank=0, world_size=1)
    parallel_state.initialize_model_parallel(create_gloo_process_groups=False)
    tensor_parallel.model_parallel_cuda_manual_seed(1)
    model = megatron_model(config).cuda()
    for parameter in model.parameters():
        tensor_parallel.set_defaults_if_not_set_tensor_model_parallel_attributes(parameter)
    model = DistributedDataParallel(
        config=model.config,
        ddp_config=DistributedDataParallelConfig(use_distributed_optimizer=True, grad_reduce_in_fp32=True),
        module=Float16Module(model.config, model),
    ).train()
    settings = config["optimizer"]
    optimizer = get_megatron_optimizer(
        OptimizerConfig(
            optimizer="adam",
            lr=settings["lr"],
            min_lr=settings["lr"],
            weight_decay=settings["weight_decay"],
            adam_beta1=settings["beta1"],
            adam_beta2=settings["beta2"],
            adam_eps=settings["eps"],
            clip_grad=settings["max_grad_norm"],
            bf16=True,
            params_dtype=torch.bfloat16,
            use_distributed_optimizer=True,
            use_precision_aware_optimizer=True,  # fp32 state, the masters' upper halves being the weights
        ),
        [model],
        use_gloo_process_groups=False,
    )
    position_ids = torch.arange(config["train"]["seq_length"], device="cuda").unsqueeze(0)

    def train_step(ids):
        model.zero_grad_buffer()
        optimizer.zero_grad()
        loss = model(input_ids=ids, position_ids=position_ids, attention_mask=None, labels=ids).float().mean()
        loss.backward()
        model.finish_grad_sync()
        optimizer.step()
        if not calls:
            raise RuntimeError("FLA did not call FlashQLA")
        return loss.detach()

    return model, train_step
