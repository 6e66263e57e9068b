"""A model's shape as the part of a torchtitan configuration that builds it: torchtitan describes models in Python."""

from __future__ import annotations

from thrifty.planner.emit.common import number, refuse
from thrifty.spec.job import ModelShape

# Family -> (the module under torchtitan.models, its model, block and function that applies a layout).
FAMILIES = {
    "llama3": ("Llama3Model", "Llama3TransformerBlock", "parallelize_llama"),
    "qwen3": ("Qwen3Model", "Qwen3TransformerBlock", "parallelize_qwen3"),
    "deepseek_v3": ("DeepSeekV3Model", "DeepSeekV3TransformerBlock", "parallelize_deepseekv3"),
}

IMPORTS = {
    name: {
        f"torchtitan.models.{name}": [model, parallelize, "make_mla_attention_config"],
        f"torchtitan.models.{name}.model": [block],
    }
    for name, (model, block, parallelize) in FAMILIES.items()
}


def family(shape: ModelShape) -> str:
    """The model of torchtitan that has a shape's parts.

    Raises:
        ThriftyError: none has.
    """
    for key, only, value in (
        ("norm", "rmsnorm", shape.norm), ("mlp", "swiglu", shape.mlp), ("positions", "rope", shape.positions),
        ("bias", "none", shape.bias), ("sliding_window", None, shape.sliding_window),
    ):  # fmt: skip
        if value != only:
            what = f"has no model with {key} {value}"
            refuse("torchtitan", f"job.model.{key}", what, "emit it for megatron, or train it with Thrifty")
    experts, latent = shape.experts, shape.latent
    name = "deepseek_v3" if latent is not None else "qwen3" if experts is not None or shape.qk_norm else "llama3"
    if shape.rope_scaling is not None and name != "llama3":
        hint = "emit it for megatron, or leave rope_scaling out where sequence_length allows it"
        refuse("torchtitan", "job.model.rope_scaling", f"does not scale rotary positions in {name}", hint)
    if latent is not None and (experts is None or shape.tied_embeddings or shape.qk_norm):
        what = "has latent attention with experts, untied embeddings and no qk_norm only (deepseek_v3)"
        refuse("torchtitan", "job.model.latent", what, "emit it for megatron")
    if name == "qwen3" and experts is not None and (experts.dense_layers or experts.shared or not shape.qk_norm):
        what = "has grouped-query models with experts as in Qwen 3 only: qk_norm, no shared experts, no dense layers"
        refuse("torchtitan", "job.model.experts", what, "emit it for megatron")
    return name


def source(shape: ModelShape, name: str) -> str:
    """The functions `layer` and `model` of the configuration."""
    model, block, _ = FAMILIES[name]
    # A tied table has the head's weights, which the head fills.
    start = '{"weight": skip_param_init}' if shape.tied_embeddings else "init()"
    return f"""\
def norm(width):
    return RMSNorm.Config(normalized_shape=width, eps={number(shape.norm_eps)}, param_init={{"weight": nn.init.ones_}})


def init():
    return {{"weight": partial(nn.init.normal_, std=0.02), "bias": nn.init.zeros_}}


{_rope(shape, name)}

{_layer(shape, name, block)}

def model():
    return {model}.Config(
        dim={shape.hidden},
        vocab_size={shape.vocab_size},
        enable_weight_tying={shape.tied_embeddings},
        tok_embeddings=Embedding.Config(
            num_embeddings={shape.vocab_size}, embedding_dim={shape.hidden}, param_init={start}
        ),
        norm=norm({shape.hidden}),
        lm_head=Linear.Config(in_features={shape.hidden}, out_features={shape.vocab_size}, param_init=init()),
        layers=[layer(number) for number in range({shape.layers})],{_more(name)}
    )
"""


def _more(name: str) -> str:
    return "\n        mtp_layers=[]," if name == "deepseek_v3" else ""


def _rope(shape: ModelShape, name: str) -> str:
    kind = "CosSinRoPE" if name == "qwen3" else "ComplexRoPE"
    width = shape.latent.rope_dim if shape.latent is not None else shape.head_dim
    values = {"dim": str(width), "max_seq_len": str(shape.max_positions), "theta": number(shape.rope_theta)}
    scaling = shape.rope_scaling
    if scaling is not None:
        values |= {
            "scaling": '"llama"',
            "scaling_factor": number(scaling.factor),
            "low_freq_factor": number(scaling.low_freq_factor),
            "high_freq_factor": number(scaling.high_freq_factor),
            "original_max_position_embeddings": str(scaling.original_max_positions),
        }
    return f"def rope():\n    return {kind}.Config({', '.join(f'{key}={value}' for key, value in values.items())})\n"


def _layer(shape: ModelShape, name: str, block: str) -> str:
    experts = shape.experts
    plain = f"make_ffn_config(dim={shape.hidden}, hidden_dim={shape.ffn}, w1_param_init=init(), w2w3_param_init=init())"
    lines = [f"def layer(number):\n    return {block}.Config(", *_attention(shape)]
    lines += [f"        attention_norm=norm({shape.hidden}),", f"        ffn_norm=norm({shape.hidden}),"]
    if experts is None:
        lines.append(f"        feed_forward={plain},")
    elif experts.dense_layers:
        lines.append(f"        feed_forward={plain} if number < {experts.dense_layers} else None,")
        lines.append(f"        moe=None if number < {experts.dense_layers} else experts(),")
    else:
        lines.append("        moe=experts(),")
    return _experts(shape) + "\n".join([*lines, "    )", ""])


def _attention(shape: ModelShape) -> list[str]:
    latent = shape.latent
    if latent is None:
        values = {
            "dim": str(shape.hidden),
            "n_heads": str(shape.heads),
            "n_kv_heads": str(shape.kv_heads),
            "head_dim": str(shape.head_dim),
            "fuse_qkv": "True",
            "qk_norm": f"norm({shape.head_dim})" if shape.qk_norm else "None",
            "rope": "rope()",
            "wqkv_param_init": "init()",
            "wo_param_init": "init()",
            "inner_attention": 'get_attention_config("flex")',
        }
        made = "make_gqa_config"
    else:
        values = {
            "layer_id": "number",
            "dim": str(shape.hidden),
            "n_heads": str(shape.heads),
            "q_lora_rank": str(latent.q_rank or 0),
            "kv_lora_rank": str(latent.kv_rank),
            "qk_nope_head_dim": str(latent.nope_dim),
            "qk_rope_head_dim": str(latent.rope_dim),
            "v_head_dim": str(latent.value_dim),
            "attn_backend": '"flex"',
            "linear_init": "init()",
            "norm_init": '{"weight": nn.init.ones_}',
            "depth_init": "lambda number: init()",
            "rope": "rope()",
        }
        made = "make_mla_attention_config"
    return [
        f"        attention={made}(",
        *(f"            {key}={value}," for key, value in values.items()),
        "        ),",
    ]


def _experts(shape: ModelShape) -> str:
    experts = shape.experts
    if experts is None:
        return ""
    shared = "None"
    if experts.shared:
        width = experts.shared * experts.ffn
        shared = (
            f"make_ffn_config(dim={shape.hidden}, hidden_dim={width}, w1_param_init=init(), w2w3_param_init=init())"
        )
    return f"""\
def experts():
    weight = partial(nn.init.normal_, std=0.02)
    return make_moe_config(
        num_experts={experts.count},
        router=make_router_config(
            dim={shape.hidden}, num_experts={experts.count}, top_k={experts.active}, gate_param_init=init(),
            score_func="softmax", route_norm=True,
        ),
        routed_experts=make_routed_experts_config(
            dim={shape.hidden}, hidden_dim={experts.ffn}, num_experts={experts.count}, top_k={experts.active},
            param_init={{"w1_EFD": weight, "w2_EDF": weight, "w3_EFD": weight}}, comm_backend="standard",
        ),
        shared_experts={shared},
    )


"""
