"""Families that are priced only: the shapes of published configs, and the parameters that transformers gives them."""

import json
from collections import Counter
from math import prod

import pytest

from thrifty.catalog.hf_config import read_shape, shape_from_config
from thrifty.catalog.lookup import model
from thrifty.cost.params import block_shapes, parameter_shapes
from thrifty.spec.errors import ThriftyError
from thrifty.spec.job import ModelShape
from thrifty.spec.load import build

# As published on huggingface.co, keys that do not concern the shape left out.
QWEN3_30B_A3B = {
    "model_type": "qwen3_moe",
    "attention_bias": False,
    "decoder_sparse_step": 1,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "max_position_embeddings": 40960,
    "mlp_only_layers": [],
    "moe_intermediate_size": 768,
    "num_attention_heads": 32,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 48,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
DEEPSEEK_V3 = {
    "model_type": "deepseek_v3",
    "attention_bias": False,
    "first_k_dense_replace": 3,
    "hidden_act": "silu",
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "kv_lora_rank": 512,
    "max_position_embeddings": 163840,
    "moe_intermediate_size": 2048,
    "moe_layer_freq": 1,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_attention_heads": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 61,
    "num_key_value_heads": 128,
    "num_nextn_predict_layers": 1,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "rms_norm_eps": 1e-06,
    "rope_scaling": {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096},
    "rope_theta": 10000,
    "tie_word_embeddings": False,
    "v_head_dim": 128,
    "vocab_size": 129280,
}
GPT_OSS_20B = {
    "model_type": "gpt_oss",
    "attention_bias": True,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2880,
    "intermediate_size": 2880,
    "layer_types": ["sliding_attention", "full_attention"] * 12,
    "max_position_embeddings": 131072,
    "num_attention_heads": 64,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 24,
    "num_key_value_heads": 8,
    "num_local_experts": 32,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {"rope_type": "yarn", "factor": 32.0},
    "rope_theta": 150000,
    "sliding_window": 128,
    "tie_word_embeddings": False,
    "vocab_size": 201088,
}
BERT_BASE = {
    "model_type": "bert",
    "hidden_act": "gelu",
    "hidden_size": 768,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 512,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "position_embedding_type": "absolute",
    "type_vocab_size": 2,
    "vocab_size": 30522,
}
VIT_L_16 = {
    "model_type": "vit",
    "hidden_act": "gelu",
    "hidden_size": 1024,
    "id2label": {str(number): f"class {number}" for number in range(1000)},
    "image_size": 224,
    "intermediate_size": 4096,
    "layer_norm_eps": 1e-12,
    "num_attention_heads": 16,
    "num_channels": 3,
    "num_hidden_layers": 24,
    "patch_size": 16,
    "qkv_bias": True,
}


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (QWEN3_30B_A3B, "qwen3-30b-a3b"),
        (DEEPSEEK_V3, "deepseek-v3"),
        (GPT_OSS_20B, "gpt-oss-20b"),
        (BERT_BASE, "bert-base"),
        (VIT_L_16, "vit-l-16"),
    ],
)
def test_published_configs_give_the_shapes_of_the_catalog(config, name):
    ours = build(ModelShape, model(name), "")
    same = {"name": ours.name, "source": ours.source, "norm_eps": ours.norm_eps}
    assert shape_from_config(config).model_copy(update=same) == ours


WIDTHS = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 48}
TEXT = WIDTHS | {"vocab_size": 96, "max_position_embeddings": 64}
GROUPED = TEXT | {"num_key_value_heads": 2, "eos_token_id": 1}
LATENT = TEXT | {"qk_nope_head_dim": 6, "qk_rope_head_dim": 4, "v_head_dim": 5, "kv_lora_rank": 8, "eos_token_id": 1}
ROUTED = {"n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "n_shared_experts": 2}
CASES = {
    "mixtral": ("Mixtral", "CausalLM", GROUPED | {"num_local_experts": 4}),
    "qwen3 moe": (
        "Qwen3Moe",
        "CausalLM",
        GROUPED | {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 20, "mlp_only_layers": [0, 1]},
    ),
    "deepseek v2 lite": ("DeepseekV2", "CausalLM", LATENT | ROUTED | {"q_lora_rank": None, "first_k_dense_replace": 1}),
    "deepseek v3": (
        "DeepseekV3",
        "CausalLM",
        LATENT | ROUTED | {"q_lora_rank": 12, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 3},
    ),
    "gpt-oss": ("GptOss", "CausalLM", GROUPED | {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 12}),
    "olmo 2": ("Olmo2", "CausalLM", GROUPED),
    "olmoe": ("Olmoe", "CausalLM", GROUPED | {"num_experts": 4, "num_experts_per_tok": 2}),
    "bert": ("Bert", "MaskedLM", TEXT),
    "roberta": ("Roberta", "MaskedLM", TEXT | {"type_vocab_size": 1}),
    "vit": ("ViT", "ImageClassification", WIDTHS | {"image_size": 24, "patch_size": 8, "num_labels": 7}),
}
OURS = {  # the last part of their names -> ours
    "embed_tokens.weight": "embed.weight",
    "mlp.experts.gate_up_proj": "experts.gate_up.weight",
    "mlp.experts.gate_up_proj_bias": "experts.gate_up.bias",
    "mlp.experts.down_proj": "experts.down.weight",
    "mlp.experts.down_proj_bias": "experts.down.bias",
    "mlp.gate.weight": "router.weight",
    "mlp.router.weight": "router.weight",
    "mlp.router.bias": "router.bias",
    "mlp.shared_experts.gate_proj.weight": "shared.gate.weight",
    "self_attn.q_a_proj.weight": "attention.query_down.weight",
    "self_attn.q_a_layernorm.weight": "attention.query_norm.weight",
    "self_attn.q_b_proj.weight": "attention.query_up.weight",
    "self_attn.q_proj.weight": "attention.query.weight",
    "self_attn.kv_a_proj_with_mqa.weight": "attention.kv_down.weight",
    "self_attn.kv_a_layernorm.weight": "attention.kv_norm.weight",
    "self_attn.kv_b_proj.weight": "attention.kv_up.weight",
    "self_attn.o_proj.weight": "attention.output.weight",
    "self_attn.sinks": "attention.sinks",
    "self_attn.q_norm.weight": "attention.query_norm.weight",
    "self_attn.k_norm.weight": "attention.key_norm.weight",
    "token_type_embeddings.weight": "token_types.weight",
    "embeddings.LayerNorm.weight": "embed_norm.weight",
    "attention.self.query.bias": "attention.query.bias",
    "transform.dense.weight": "transform.weight",
    "cls_token": "class_token",
    "patch_embeddings.projection.weight": "patch.weight",
    "classifier.bias": "head.bias",
    "lm_head.weight": "head.weight",
}


def with_gate_and_up_together(shapes):
    """transformers keeps the two matrices of an expert that read its input in one tensor."""
    for name, size in shapes:
        if name.endswith(("experts.gate.weight", "experts.gate.bias")):
            yield name.replace("experts.gate", "experts.gate_up"), 2 * prod(size)
        elif not name.endswith(("experts.up.weight", "experts.up.bias")):
            yield name, prod(size)


@pytest.mark.parametrize("case", CASES)
def test_parameters_are_those_of_transformers(case):
    transformers = pytest.importorskip("transformers", reason="needs the extra [hf]: transformers is not installed")
    torch = pytest.importorskip("torch")
    family, task, settings = CASES[case]
    config = getattr(transformers, f"{family}Config")(**settings)
    with torch.device("meta"):
        theirs = {n: p.numel() for n, p in getattr(transformers, f"{family}For{task}")(config).named_parameters()}
    shape = shape_from_config(json.loads(config.to_json_string()))
    ours = list(with_gate_and_up_together(parameter_shapes(shape)))
    assert Counter(size for _, size in ours) == Counter(theirs.values())
    named = 0
    for ending, name in OURS.items():
        found = [
            size for their_name, size in theirs.items() if their_name.endswith("." + ending) or their_name == ending
        ]
        if found:
            assert [size for our_name, size in ours if our_name == name or our_name.endswith("." + name)] == found
            named += 1
    assert named >= 3
    assert block_shapes(shape, shape.layers - 1)


@pytest.mark.parametrize(
    ("config", "change", "message"),
    [
        (QWEN3_30B_A3B, {"decoder_sparse_step": 2}, "decoder_sparse_step = 2 is not supported"),
        (QWEN3_30B_A3B, {"mlp_only_layers": [3]}, r"mlp_only_layers = \[3\] is not supported"),
        (QWEN3_30B_A3B, {"num_experts_per_tok": 129}, "active 129 experts of 128"),
        (DEEPSEEK_V3, {"moe_layer_freq": 2}, "moe_layer_freq = 2 is not supported"),
        (DEEPSEEK_V3, {"kv_lora_rank": None}, "'kv_lora_rank' is missing"),
        (DEEPSEEK_V3, {"attention_bias": True}, "attention_bias = True is not supported"),
        (GPT_OSS_20B, {"layer_types": ["full_attention", "sliding_attention"] * 12}, "in some layers only"),
        (BERT_BASE, {"position_embedding_type": "relative_key"}, "position_embedding_type = 'relative_key'"),
        (BERT_BASE, {"is_decoder": True}, "is_decoder = True is not supported"),
        (VIT_L_16, {"qkv_bias": False}, "qkv_bias = False is not supported"),
        (VIT_L_16, {"image_size": [224, 448]}, r"image_size = \[224, 448\] is not supported"),
    ],
)
def test_what_a_shape_has_no_switch_for_is_refused_by_key_and_place(config, change, message):
    with pytest.raises(ThriftyError, match=message) as refusal:
        shape_from_config(config | change, "here/config.json")
    assert refusal.value.where.startswith("here/config.json")


def test_a_folder_is_as_good_as_the_file_in_it(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(BERT_BASE))
    assert read_shape(tmp_path) == read_shape(tmp_path / "config.json")
    assert read_shape(tmp_path).source == str(tmp_path / "config.json")
    with pytest.raises(ThriftyError, match="no such file"):
        read_shape(tmp_path / "other.json")
