"""config.json to ModelShape and back, and what is refused."""

import subprocess
import sys

import pytest

from thrifty.catalog.hf_config import config_from_shape, shape_from_config
from thrifty.catalog.lookup import model
from thrifty.spec.errors import ThriftyError
from thrifty.spec.job import ModelShape
from thrifty.spec.load import build

# As published on huggingface.co, keys that do not concern the shape left out.
GPT2 = {
    "activation_function": "gelu_new",
    "architectures": ["GPT2LMHeadModel"],
    "layer_norm_epsilon": 1e-05,
    "model_type": "gpt2",
    "n_ctx": 1024,
    "n_embd": 768,
    "n_head": 12,
    "n_layer": 12,
    "n_positions": 1024,
    "vocab_size": 50257,
}
LLAMA_31_8B = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "vocab_size": 128256,
}
MISTRAL_7B = {
    "architectures": ["MistralForCausalLM"],
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "model_type": "mistral",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "tie_word_embeddings": False,
    "vocab_size": 32000,
}
QWEN2_7B = MISTRAL_7B | {
    "architectures": ["Qwen2ForCausalLM"],
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "max_position_embeddings": 131072,
    "max_window_layers": 28,
    "model_type": "qwen2",
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 131072,
    "use_sliding_window": False,
    "vocab_size": 152064,
}
QWEN3_8B = QWEN2_7B | {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "head_dim": 128,
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "max_position_embeddings": 40960,
    "max_window_layers": 36,
    "model_type": "qwen3",
    "num_attention_heads": 32,
    "num_hidden_layers": 36,
    "num_key_value_heads": 8,
    "sliding_window": None,
    "vocab_size": 151936,
}


def same(a: ModelShape, b: ModelShape) -> bool:
    return a.model_copy(update={"name": b.name, "source": b.source}) == b


@pytest.mark.parametrize(
    ("config", "name"), [(GPT2, "gpt2-124m"), (LLAMA_31_8B, "llama-3.1-8b"), (QWEN3_8B, "qwen3-8b")]
)
def test_published_configs_give_the_shapes_of_the_catalog(config, name):
    assert same(shape_from_config(config), build(ModelShape, model(name), ""))


def test_switches_of_the_other_families():
    mistral, qwen2 = shape_from_config(MISTRAL_7B), shape_from_config(QWEN2_7B)
    assert (mistral.sliding_window, mistral.bias, mistral.head_dim) == (4096, "none", 128)
    assert (qwen2.sliding_window, qwen2.bias, qwen2.qk_norm) == (None, "qkv", False)


@pytest.mark.parametrize("config", [GPT2, LLAMA_31_8B, MISTRAL_7B, QWEN2_7B, QWEN3_8B])
def test_a_shape_survives_the_way_there_and_back(config):
    shape = shape_from_config(config)
    written = config_from_shape(shape)
    assert written["architectures"] == config["architectures"]
    assert same(shape_from_config(written), shape)


def test_both_spellings_of_rope_are_read():
    newer = {k: v for k, v in LLAMA_31_8B.items() if not k.startswith("rope")}
    newer["rope_parameters"] = LLAMA_31_8B["rope_scaling"] | {"rope_theta": 500000.0}
    assert same(shape_from_config(newer), shape_from_config(LLAMA_31_8B))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"model_type": "qwen2_moe"},
            r"unknown architecture 'qwen2_moe'(.|\n)*gpt2, llama, mistral, qwen2, qwen3, m",
        ),
        ({"model_type": None, "architectures": []}, r"\(no model_type\)"),
        ({"hidden_size": None}, "'hidden_size' is missing"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu' is not supported"),
        ({"attention_bias": True}, "attention_bias and mlp_bias differ"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4}}, "rope_type 'yarn' is not supported"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 4}}, "'low_freq_factor' is missing"),
        ({"rope_scaling": 4}, "must be a mapping"),
        ({"num_key_value_heads": 5}, "heads 32 must be a multiple of kv_heads 5"),
        ({"num_hidden_layers": "many"}, "layers: "),
    ],
)
def test_what_the_decoder_cannot_be_is_refused_by_name(change, message):
    with pytest.raises(ThriftyError, match=message) as refusal:
        shape_from_config(LLAMA_31_8B | change, "here/config.json")
    assert refusal.value.where.startswith("here/config.json")


def test_a_window_in_some_layers_only_is_refused():
    with pytest.raises(ThriftyError, match="some layers only"):
        shape_from_config(QWEN2_7B | {"use_sliding_window": True, "max_window_layers": 20})
    kinds = ["sliding_attention", "full_attention"] * 14
    half = shape_from_config(QWEN2_7B | {"use_sliding_window": True, "layer_types": kinds})
    assert (half.sliding_window, half.full_attention_every) == (131072, 2)
    all_layers = shape_from_config(QWEN2_7B | {"use_sliding_window": True, "max_window_layers": 0})
    assert all_layers.sliding_window == 131072
    assert shape_from_config(QWEN2_7B | {"use_sliding_window": True}).sliding_window is None


@pytest.mark.parametrize(
    "switches",
    [
        {"norm": "layernorm"},
        {"positions": "learned"},
        {"bias": "qkv", "qk_norm": True},
        {"bias": "all", "sliding_window": 8},
        {"norm": "layernorm", "mlp": "gelu", "positions": "learned", "kv_heads": 1},
        {"sliding_window": 8, "full_attention_every": 2},
        {"qk_norm": "width"},
        {"experts": {"count": 4, "active": 2, "ffn": 8}},
    ],
)
def test_a_shape_that_no_family_holds_is_refused(switches):
    shape = ModelShape(layers=1, hidden=8, heads=2, ffn=8, vocab_size=8, **switches)
    with pytest.raises(ThriftyError, match="no Hugging Face architecture here holds this shape"):
        config_from_shape(shape)


def test_reading_a_config_imports_no_torch():
    code = "import sys, thrifty.catalog.hf_config; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
