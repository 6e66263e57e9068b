"""Hugging Face folders in and out: the same logits as `transformers`, and clear refusals."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from thrifty.model.hub import load_pretrained, load_weights, save_pretrained
from thrifty.model.transformer import Transformer
from thrifty.spec.errors import ThriftyError
from thrifty.spec.job import ModelShape

SMALL = {"layers": 3, "hidden": 32, "heads": 4, "ffn": 40, "vocab_size": 61, "max_positions": 64}
GPT2 = {"norm": "layernorm", "mlp": "gelu", "positions": "learned", "tied_embeddings": True}
SCALING = {"factor": 8, "low_freq_factor": 1, "high_freq_factor": 4, "original_max_positions": 16}
SHAPES = {
    "gpt2": GPT2 | {"bias": "all"},
    "gpt2 untied": GPT2 | {"bias": "all", "tied_embeddings": False},
    "nanogpt": GPT2,
    "llama2": {},
    "llama3.1": {"kv_heads": 2, "rope_theta": 500.0, "rope_scaling": SCALING, "tied_embeddings": True},
    "llama biased": {"kv_heads": 2, "bias": "all"},
    "llama wide heads": {"kv_heads": 2, "head_dim": 12},
    "qwen2": {"kv_heads": 2, "bias": "qkv", "norm_eps": 1e-6},
    "qwen2 windowed": {"kv_heads": 2, "bias": "qkv", "sliding_window": 7},
    "qwen3": {"kv_heads": 2, "head_dim": 12, "qk_norm": True, "tied_embeddings": True},
    "mistral": {"kv_heads": 2, "sliding_window": 7},
}
TOKENS = torch.randint(61, (2, 24), generator=torch.Generator().manual_seed(0))


def random_model(name: str, dtype=torch.float64) -> Transformer:
    model = Transformer(ModelShape(**{**SMALL, **SHAPES[name]})).to(dtype)
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=random).to(dtype) * 0.2)
    return model


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers", reason="needs the extra [hf]: transformers is not installed")


def bound_of(shape: ModelShape) -> float:
    """Relative difference of logits in fp64. transformers takes rotary angles in fp32: at position p a turn is off by
    up to p x 2^-24, its sine and cosine by 2^-24 more, and each layer turns queries and keys."""
    if shape.positions == "learned":
        return 1e-13
    return 2 * shape.layers * (TOKENS.shape[1] + 1) * 2.0**-24


def assert_same_logits(model: Transformer, theirs) -> None:
    with torch.no_grad():
        want = theirs.double().eval()(TOKENS).logits
        got = model.double()(TOKENS)
    assert ((got - want).norm() / want.norm()).item() < bound_of(model.shape)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("max_file_bytes", [5_000_000_000, 20_000], ids=["one file", "sharded"])
def test_transformers_reads_what_we_write(transformers, tmp_path, name, max_file_bytes):
    model = random_model(name)
    save_pretrained(model, tmp_path / "out", max_file_bytes=max_file_bytes)
    assert (tmp_path / "out" / "model.safetensors.index.json").exists() == (max_file_bytes == 20_000)
    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert theirs.dtype == torch.float64
    assert_same_logits(model, theirs)


def hf_configs(transformers):
    t = transformers
    common = {
        "vocab_size": 61,
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 40,
        "max_position_embeddings": 64,
    }
    llama3 = {"rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0}
    llama3 |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 16}
    return {
        "gpt2": t.GPT2Config(vocab_size=61, n_embd=32, n_layer=3, n_head=4, n_positions=64),
        "llama2": t.LlamaConfig(**common | {"num_key_value_heads": 4}),
        "llama3.1": t.LlamaConfig(**common, rope_parameters=llama3, tie_word_embeddings=True),
        "llama biased": t.LlamaConfig(**common, attention_bias=True, mlp_bias=True),
        "qwen2": t.Qwen2Config(**common),
        "qwen2 windowed": t.Qwen2Config(**common, use_sliding_window=True, sliding_window=7, max_window_layers=0),
        "qwen3": t.Qwen3Config(**common, head_dim=12),
        "mistral": t.MistralConfig(**common, sliding_window=7),
    }


@pytest.mark.parametrize(
    "name", ["gpt2", "llama2", "llama3.1", "llama biased", "qwen2", "qwen2 windowed", "qwen3", "mistral"]
)
@pytest.mark.parametrize("max_shard_size", ["5GB", "20KB"], ids=["one file", "sharded"])
def test_we_read_what_transformers_writes(transformers, tmp_path, name, max_shard_size):
    theirs = transformers.AutoModelForCausalLM.from_config(hf_configs(transformers)[name])
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=random) * 0.2)
    theirs.save_pretrained(tmp_path, max_shard_size=max_shard_size)
    assert (tmp_path / "model.safetensors.index.json").exists() == (max_shard_size == "20KB")
    assert_same_logits(load_pretrained(tmp_path, dtype=torch.float64), theirs)


@pytest.mark.parametrize("name", SHAPES)
def test_a_round_trip_keeps_every_bit(tmp_path, name):
    model = random_model(name, torch.float32)
    save_pretrained(model, tmp_path / "out", max_file_bytes=20_000)
    back = load_pretrained(tmp_path / "out")
    same = model.shape.model_copy(update={"name": back.shape.name, "source": back.shape.source})
    if name == "nanogpt":  # goes into GPT-2, with biases of zero
        same = same.model_copy(update={"bias": "all"})
        assert not any(p.any() for n, p in back.named_parameters() if n.endswith("bias"))
        load_weights(model, tmp_path / "out")
    assert back.shape == same
    for key, parameter in model.named_parameters():
        assert torch.equal(parameter, dict(back.named_parameters())[key]), key
    assert torch.allclose(model(TOKENS), back(TOKENS))


def test_a_written_dtype_can_be_chosen(tmp_path):
    model = random_model("llama2", torch.float32)
    save_pretrained(model, tmp_path / "out", dtype=torch.bfloat16)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    back = load_pretrained(tmp_path / "out", precision="bf16", dtype=torch.bfloat16)
    assert torch.equal(back.embed.weight, model.embed.weight.bfloat16())


def test_old_checkpoints_without_prefix_and_with_buffers_are_read(tmp_path):
    model = random_model("gpt2", torch.float32)
    save_pretrained(model, tmp_path / "out")
    path = tmp_path / "out" / "model.safetensors"
    content = {name.removeprefix("transformer."): value for name, value in load_file(path).items()}
    content["h.0.attn.bias"] = torch.ones(1, 1, 64, 64)
    save_file(content, path)
    assert torch.equal(load_pretrained(tmp_path / "out")(TOKENS), model(TOKENS))


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    save_pretrained(random_model("llama2", torch.float32), tmp_path / "out")
    return tmp_path / "out"


def edit(folder, change):
    content = load_file(folder / "model.safetensors")
    change(content)
    save_file(content, folder / "model.safetensors")


def test_missing_tensors_are_named(folder):
    edit(folder, lambda content: content.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(ThriftyError, match=r"1 tensors are missing: layers\.1\.mlp\.up_proj\.weight"):
        load_pretrained(folder)


def test_tensors_left_over_are_named(folder):
    edit(folder, lambda content: content.update({"model.layers.0.mlp.router.weight": torch.ones(2)}))
    with pytest.raises(ThriftyError, match=r"not in the model of config.json: layers\.0\.mlp\.router\.weight"):
        load_pretrained(folder)


def test_mis_shaped_tensors_are_named(folder):
    edit(folder, lambda content: content.update({"model.layers.0.mlp.up_proj.weight": torch.ones(41, 32)}))
    with pytest.raises(ThriftyError, match=r"layers\.0\.mlp\.up_proj\.weight has shape \[41, 32\].*\[40, 32\]"):
        load_pretrained(folder)


def test_pickled_weights_are_refused_with_the_way_out(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ThriftyError, match=r"pytorch_model\.bin") as refusal:
        load_pretrained(folder)
    assert "save_pretrained" in refusal.value.hint


def test_a_missing_shard_is_named(tmp_path):
    save_pretrained(random_model("llama2"), tmp_path / "out", max_file_bytes=20_000)
    (missing,) = (tmp_path / "out").glob("model-00002-*")
    missing.unlink()
    with pytest.raises(ThriftyError, match="no model-00002-of-"):
        load_pretrained(tmp_path / "out")


def test_truncated_files_are_refused(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ThriftyError, match="not a readable safetensors file"):
        load_pretrained(folder)


@pytest.mark.parametrize(("content", "message"), [("{", "not valid JSON"), ("[]", "must be a JSON object")])
def test_a_bad_config_is_refused(folder, content, message):
    (folder / "config.json").write_text(content)
    with pytest.raises(ThriftyError, match=message):
        load_pretrained(folder)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(ThriftyError, match="no such file"):
        load_pretrained(tmp_path / "nowhere")


def test_nothing_is_overwritten(folder):
    with pytest.raises(ThriftyError, match="not empty"):
        save_pretrained(random_model("llama2"), folder)
    assert not folder.with_name("out.partial").exists()


def test_a_shape_that_no_family_holds_is_refused(tmp_path):
    model = Transformer(ModelShape(**{**SMALL, "norm": "layernorm"}))
    with pytest.raises(ThriftyError, match="no Hugging Face architecture here holds this shape: norm layernorm"):
        save_pretrained(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()
