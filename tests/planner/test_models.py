"""Shapes from a Hugging Face config.json: as JOB, as `job.model`, and as the base of a changed shape."""

import json
import re

import pytest
from test_request import JOB, ask, no_local, refusal

from thrifty.planner.models import config_file
from thrifty.spec.load import to_yaml

LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 160,
    "max_position_embeddings": 4096,
    "num_attention_heads": 4,
    "num_hidden_layers": 8,
    "num_key_value_heads": 2,
    "rope_theta": 500000.0,
    "vocab_size": 1000,
}
EXPERTS = LLAMA | {"model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2}
BERT = {
    "model_type": "roberta",
    "hidden_size": 64,
    "intermediate_size": 160,
    "max_position_embeddings": 514,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "type_vocab_size": 1,
    "vocab_size": 1000,
}
VIT = {
    "model_type": "vit",
    "hidden_size": 64,
    "image_size": 224,
    "intermediate_size": 160,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_labels": 10,
    "patch_size": 16,
}


@pytest.fixture
def write(tmp_path):
    def put(config, name="my-llama/config.json"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(config if isinstance(config, str) else json.dumps(config))
        return path

    return put


@pytest.mark.parametrize("by_folder", [False, True])
def test_a_config_is_a_job_of_its_own(write, by_folder):
    path = write(LLAMA)
    asked = ask(path.parent if by_folder else path, "64xh100", local=no_local)
    model = asked.job.model
    assert (model.layers, model.hidden, model.kv_heads, model.rope_theta) == (8, 64, 2, 500000.0)
    assert asked.job.name == model.name == "my-llama"
    assert asked.job.sequence_length == 4096
    assert asked.job.tokens is not None
    assert asked.settings.where("job.model.layers") == str(path)
    assert model.source == str(path)


def test_a_config_of_another_name_gives_its_own():
    assert config_file("llama-3-8b") is None
    assert str(config_file("somewhere/tall.json")) == "somewhere/tall.json"


def test_the_model_of_a_job_file_may_be_a_config(write):
    path = write(LLAMA)
    plain = ask(write(JOB.replace("tiny-1m", str(path)), "job.yaml"))
    assert plain.job.model.layers == 8
    assert plain.job.name == "job"
    changed = ask(write(JOB.replace("tiny-1m", f"{{base: {path.parent}, layers: 16}}"), "job.yaml")).job.model
    assert (changed.layers, changed.hidden, changed.name) == (16, 64, "my-llama-custom")
    assert changed.source == f"{path}, but for layers"
    assert ask(path, sets=["job.model.layers=3"]).job.model.layers == 3
    assert ask("tiny-1m", sets=[f"job.model={path}"]).job.model.hidden == 64


def test_active_parameters_say_how_long_a_mixture_trains(write):
    dense, mixture = ask(write(LLAMA)), ask(write(EXPERTS))
    assert mixture.job.model.experts.count == 8
    router, second = 8 * 64, 3 * 64 * 160
    assert mixture.job.tokens == dense.job.tokens + 20 * 8 * (router + second)
    assert "idle experts" in mixture.settings.where("job.tokens")
    changed = ask(write(EXPERTS), sets=["job.model.experts.imbalance=1.5"]).job.model.experts
    assert (changed.count, changed.imbalance) == (8, 1.5)


def test_lengths_that_a_model_alone_is_priced_with(write):
    assert ask(write(BERT)).job.sequence_length == 512, "two rows of positions are an offset"
    assert ask(write(VIT)).job.sequence_length == 14 * 14 + 1
    assert "no such rule is known" in ask(write(VIT)).settings.where("job.tokens")


def test_a_job_may_be_json_too(write):
    asked = ask(write({"job": {"model": "tiny-1m", "steps": 3, "sequence_length": 64}}, "some.json"))
    assert (asked.job.name, asked.job.steps) == ("some", 3)


def test_a_catalog_name_is_no_folder(write, monkeypatch):
    path = write(LLAMA, "gpt2/config.json")
    monkeypatch.chdir(path.parent.parent)
    assert ask("gpt2").job.model.name == "gpt2-124m"
    assert ask("./gpt2").job.model.layers == 8


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (LLAMA | {"hidden_act": "relu"}, "config.json: hidden_act = 'relu' is not supported"),
        (LLAMA | {"model_type": "mamba"}, "unknown architecture 'mamba'"),
        ({"job_type": 1}, r"\(no model_type\)"),
        ("{,}", "not valid JSON"),
        ("[]", "must be a JSON object"),
    ],
)
def test_a_config_that_cannot_be_read_is_refused_with_its_place(write, content, message):
    path = write(content)
    said = refusal(path)
    assert str(path) in said
    assert re.search(message, said)
    assert re.search(message, refusal("tiny-1m", sets=[f"job.model={path}"]))


def test_a_file_or_folder_that_is_not_there(write, tmp_path):
    assert "no such file" in refusal(tmp_path / "config.json")
    assert "holds no config.json" in refusal(tmp_path)
    assert "neither a job file nor a model" in refusal(tmp_path / "nowhere")
    assert "holds no config.json" in refusal(write(JOB.replace("tiny-1m", str(tmp_path)), "job.yaml"))


def test_the_shape_in_the_job_needs_the_config_no_more(write):
    path = write(EXPERTS)
    job = ask(path).job
    path.unlink()
    again = write("job:\n" + "".join(f"  {line}\n" for line in to_yaml(job).splitlines()), "again.yaml")
    assert ask(again).job == job
