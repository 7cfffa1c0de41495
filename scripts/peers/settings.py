"""What transformers and PyTorch call the settings of a Braid config."""


def layer_types(model):
    interval = model["full_attention_interval"]
    return model["layer_types"] or [
        "full_attention" if (layer + 1) % interval == 0 else "linear_attention"
        for layer in range(model["num_hidden_layers"])
    ]


def transformers_keys(model):
    """The keyword arguments of Qwen3NextConfig."""
    keys = {key: value for key, value in model.items() if key != "full_attention_interval"}
    return {**keys, "layer_types": layer_types(model), "use_cache": False}


def adamw_settings(optimizer):
    """The keyword arguments of torch.optim.AdamW; fused is PyTorch's fastest, on a CPU too."""
    return {
        "lr": optimizer["lr"],
        "betas": (optimizer["beta1"], optimizer["beta2"]),
        "eps": optimizer["eps"],
        "weight_decay": optimizer["weight_decay"],
        "fused": True,
    }
