"""The nouns: frozen, strict, with their derived values, and a plan that knows when it was changed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from thrifty.spec.bill import MEMORY_TERMS, TIME_PARTS, Bill
from thrifty.spec.cluster import Accelerator, Cluster
from thrifty.spec.errors import ThriftyError, did_you_mean
from thrifty.spec.figure import Figure, modelled
from thrifty.spec.job import Job, ModelShape, RopeScaling, Tokenizer
from thrifty.spec.load import build, read_yaml, to_yaml
from thrifty.spec.plan import Plan, fingerprint, tokens_per_step, total_steps
from thrifty.spec.recipe import Recipe

SHAPE = {"layers": 2, "hidden": 8, "heads": 2, "ffn": 16, "vocab_size": 11, "max_positions": 32}
LINK = {"bandwidth": "1GB/s", "latency": "10us"}
CLUSTER = {
    "name": "desk",
    "accelerator": {
        "name": "card",
        "kind": "gpu",
        "peak_flops": {"bf16": "10TFLOP/s"},
        "memory": "8GiB",
        "memory_bandwidth": "100GB/s",
        "idle_watts": "10W",
        "tdp_watts": "100W",
        "op_overhead": "5us",
        "runtime_memory": "1GiB",
    },
    "per_node": 2,
    "intra_node": LINK,
    "inter_node": LINK,
    "inter_island": LINK,
    "price": "1usd/h",
    "grid": "100g/kWh",
    "pue": 1.1,
    "goodput": 0.9,
    "utilisation": 0.7,
    "host_watts": "50W",
}


def job(**changes) -> Job:
    return Job.model_validate({"model": SHAPE, "steps": 5, "sequence_length": 16} | changes)


def cluster(**changes) -> Cluster:
    return Cluster.model_validate(CLUSTER | changes)


def recipe(sequences=8, micro=2, **changes) -> Recipe:
    return Recipe.model_validate({"batch": {"sequences": sequences, "micro_sequences": micro}} | changes)


def bill() -> Bill:
    one = modelled(1.0, "s", "a test")
    parts, memory = dict.fromkeys(TIME_PARTS, one), dict.fromkeys(MEMORY_TERMS, one)
    figures = {name: one for name, field in Bill.model_fields.items() if field.annotation is Figure}
    links = {"intra_node": one}
    return Bill(maker="predicted", seconds_by_part=parts, memory=memory, link_bytes=links, **figures)


def plan() -> Plan:
    made = job(), cluster(), recipe()
    return Plan(job=made[0], cluster=made[1], recipe=made[2], predicted=bill(), hash=fingerprint(*made))


# ---- frozen and strict


@pytest.mark.parametrize("noun", [job(), cluster(), recipe(), bill(), plan(), job().model, cluster().price])
def test_a_noun_cannot_be_changed(noun):
    field = next(iter(type(noun).model_fields))
    with pytest.raises(ValidationError, match="frozen"):
        setattr(noun, field, getattr(noun, field))


def test_an_unknown_key_is_refused():
    with pytest.raises(ValidationError, match="extra_forbidden"):
        job(colour="red")


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: job(tokens=10), "tokens or steps, not both"),
        (lambda: job(steps=None), "say how long to train"),
        (lambda: job(sequence_length=64), "max_positions 32"),
        (lambda: job(seed=-1), "greater than or equal to 0"),
        (lambda: job(target_loss=0), "greater than 0"),
        (lambda: job(model=SHAPE | {"hidden": 9}), "not a multiple of heads"),
        (lambda: job(model=SHAPE | {"kv_heads": 3}), "multiple of kv_heads"),
        (lambda: job(model=SHAPE | {"head_dim": 3}), "even head_dim"),
        (
            lambda: job(
                model=SHAPE
                | {
                    "positions": "learned",
                    "rope_scaling": {
                        "factor": 8,
                        "low_freq_factor": 1,
                        "high_freq_factor": 4,
                        "original_max_positions": 8,
                    },
                }
            ),
            "needs positions: rope",
        ),
        (lambda: Tokenizer(kind="hf"), "needs path"),
        (lambda: cluster(nodes=3, islands=2), "must divide"),
        (lambda: cluster(goodput=0), "goodput"),
        (lambda: cluster(goodput=1.2), "goodput"),
        (lambda: cluster(pue=0.9), "at least 1"),
        (lambda: cluster(price="-1usd/h"), "must not be negative"),
        (lambda: cluster(per_node=0), "greater than 0"),
        (lambda: recipe(sequences=7, micro=2), "use 6 or 8"),
        (lambda: recipe(sequences=8, micro=4, layout={"shard": 4}), "= 16; use 16"),
        (lambda: recipe(optimizer={"lr": 0}), "greater than 0"),
        (lambda: recipe(optimizer={"beta2": 1}), "less than 1"),
        (lambda: recipe(schedule={"decay_fraction": 0}), "greater than 0"),
        (lambda: recipe(checkpoint={"keep": 0}), "greater than 0"),
        (lambda: recipe(precision="fp7"), "'fp32', 'bf16'"),
    ],
)
def test_an_illegal_combination_is_refused(make, told):
    with pytest.raises(ValidationError) as caught:
        make()
    assert told in str(caught.value)


# ---- what follows from other values


def test_a_shape_fills_in_what_follows():
    shape = ModelShape.model_validate(SHAPE)
    assert (shape.kv_heads, shape.head_dim) == (2, 4)
    wide = ModelShape.model_validate(SHAPE | {"head_dim": 16, "kv_heads": 1})
    assert (wide.kv_heads, wide.head_dim) == (1, 16)


@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 6), st.integers(1, 6))
def test_accumulation_is_what_makes_the_batch(accumulation, micro, island, shard):
    made = recipe(accumulation * micro * island * shard, micro, layout={"island": island, "shard": shard})
    assert made.accumulation == accumulation
    assert made.layout.ranks == made.layout.data_ranks == island * shard


@given(st.integers(1, 10**9), st.integers(1, 64))
def test_steps_cover_the_tokens_and_no_step_more(tokens, sequences):
    asked, made = job(steps=None, tokens=tokens), recipe(sequences, 1)
    steps, each = total_steps(asked, made), tokens_per_step(asked, made)
    assert each == sequences * 16
    assert (steps - 1) * each < tokens <= steps * each


def test_steps_as_given_and_steps_not_known():
    assert total_steps(job(), recipe()) == 5
    with pytest.raises(ValueError, match="neither"):
        total_steps(job(steps=None, target_loss=2.0), recipe())


def test_devices():
    eight = cluster(nodes=4)
    assert eight.devices == 8
    assert eight.devices_per_rank(2) == 1, "a GPU rank is one GPU"
    cores = cluster(accelerator=CLUSTER["accelerator"] | {"kind": "cpu"}, per_node=8)
    assert [cores.devices_per_rank(ranks) for ranks in (1, 2, 3, 16)] == [8, 4, 2, 1]


# ---- figures


def test_a_figure_from_a_user_says_so():
    price = cluster().price
    assert (price.value, price.unit, price.provenance, price.source) == (1.0, "usd/h", "assumed", "given by the user")
    assert str(price) == "$1.00/h"


def test_a_figure_may_carry_its_source():
    given_ = {"value": "90W", "provenance": "measured", "source": "wall meter", "date": "2026-01-02"}
    host = cluster(host_watts=given_).host_watts
    assert (host.value, host.provenance, host.source, host.date) == (90.0, "measured", "wall meter", "2026-01-02")
    with pytest.raises(ValidationError, match="needs the key 'value'"):
        cluster(host_watts={"source": "?"})
    with pytest.raises(ValidationError, match="unit must be 'W'"):
        cluster(host_watts={"value": 1, "unit": "kW"})
    with pytest.raises(ValidationError, match="provenance"):
        cluster(host_watts={"value": 1, "provenance": "guessed"})


def test_peaks_by_dtype_have_units():
    assert isinstance(cluster().accelerator, Accelerator)
    assert cluster().accelerator.peak_flops["bf16"].value == 10e12


def test_a_bill_names_its_terms():
    names = [name for name, _ in bill().terms()]
    assert names[:3] == ["seconds", "step_seconds", "seconds_by_part.startup"]
    assert {"memory.activations", "link_bytes.intra_node", "co2"} <= set(names)
    assert "loss" not in names, "nothing predicted it"


# ---- the plan


def test_a_plan_survives_being_written_and_read(tmp_path):
    path = tmp_path / "plan.yaml"
    path.write_text(to_yaml(plan()))
    assert build(Plan, read_yaml(path), "") == plan()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("seed: 1337", "seed: 1338"),
        ("lr: 0.001", "lr: 0.002"),
        ("per_node: 2", "per_node: 4"),
        ("layers: 2", "layers: 3"),
    ],
)
def test_a_plan_that_was_changed_by_hand_is_refused(tmp_path, old, new):
    text = to_yaml(plan())
    assert text.count(old) == 1
    path = tmp_path / "plan.yaml"
    path.write_text(text.replace(old, new))
    with pytest.raises(ThriftyError, match="hash no longer matches"):
        build(Plan, read_yaml(path), "")


def test_the_hash_is_of_what_is_executed():
    assert fingerprint(job(), cluster(), recipe()) == fingerprint(job(), cluster(), recipe())
    assert fingerprint(job(seed=1), cluster(), recipe()) != fingerprint(job(), cluster(), recipe())
    again = plan().model_copy(update={"reasons": ("another word",)})
    assert Plan.model_validate(again.model_dump()).hash == plan().hash, "words about a plan do not change it"


def test_rope_scaling_is_read():
    scaling = {"factor": 8, "low_freq_factor": 1, "high_freq_factor": "4", "original_max_positions": "8k"}
    assert ModelShape.model_validate(SHAPE | {"rope_scaling": scaling}).rope_scaling == RopeScaling(
        factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_positions=8000
    )


# ---- words


def test_an_error_says_what_where_and_a_way_out():
    error = ThriftyError("no such thing", where="job.yaml:3", hint="make one")
    assert str(error) == "job.yaml:3: no such thing\n  make one"
    assert str(ThriftyError("plain")) == "plain"
    assert error.exit_code == 2


@pytest.mark.parametrize(
    ("word", "choices", "told"),
    [
        ("laers", ["layers", "heads"], "did you mean 'layers'?"),
        ("LAYERS", ["layers", "heads"], "did you mean 'layers'?"),
        ("xyz", ["layers", "heads"], "valid choices: heads, layers"),
        ("path", ["data.path", "seed"], "did you mean 'data.path'?"),
        ("zzz", [f"key{i}" for i in range(50)], "50 valid choices"),
    ],
)
def test_did_you_mean(word, choices, told):
    assert told in did_you_mean(word, choices)


@pytest.mark.parametrize(
    ("exchange", "told"),
    [
        ({"codec": "int5"}, "int8"),
        ({"codec": "topk"}, "topk takes"),
        ({"feedback": "ef21", "decay": 0.9}, "runs with 1 and fp32"),
        ({"local_steps": 4, "fragments": 5}, "leave no time"),
        ({"local_steps": 4, "delay_steps": 4}, "leave no time"),
        ({"adaptive": True}, "set codec"),
        ({"delay_steps": 1}, "goes with local_steps above 1"),
    ],
)
def test_an_exchange_that_makes_no_sense_is_refused(exchange: dict[str, object], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        Recipe.model_validate({"batch": {"sequences": 2, "micro_sequences": 1}, "exchange": exchange})


def test_a_codec_is_kept_in_its_usual_spelling_and_none_is_none() -> None:
    def codec(text: str) -> str | None:
        batch = {"sequences": 2, "micro_sequences": 1}
        return Recipe.model_validate({"batch": batch, "exchange": {"codec": text}}).exchange.codec

    assert codec("TopK(1/64)+Means2") == "topk(1/64) + means2"
    assert codec("none") is None
