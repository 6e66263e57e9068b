"""Illegal recipes are refused with the key at fault and a way out, in the words of `spec.legal`."""

from typing import get_args

import pytest

from thrifty.spec import legal
from thrifty.spec.errors import ThriftyError
from thrifty.spec.job import Experts, Job, LatentAttention, ModelShape
from thrifty.spec.recipe import Batch, Layout, Recipe
from thrifty.spec.software import RUNS


def job(**changes):
    shape = {"layers": 8, "hidden": 64, "heads": 8, "kv_heads": 4, "ffn": 192, "vocab_size": 512} | changes
    return Job(model=ModelShape(**shape), steps=1, sequence_length=64)


def recipe(layout=None, sequences=32, micro=1, **rest):
    batch = Batch(sequences=sequences, micro_sequences=micro)
    return Recipe(**{"software": "megatron", "layout": Layout(**(layout or {})), "batch": batch} | rest)


GROWING = {"sequences": 32, "micro_sequences": 1, "ramp": {"name": "seesaw", "most_sequences": 64}}
ZERO_BUBBLE = {"pipeline": 2, "schedule": "zero_bubble"}
EXPERTS = Experts(count=8, active=2, ffn=32)


@pytest.mark.parametrize(
    ("wanted", "how", "key", "what"),
    [
        (job(), recipe({"tensor": 3}), "layout.tensor", "does not divide heads 8"),
        (job(heads=8, kv_heads=8, head_dim=8, ffn=100), recipe({"tensor": 8}), "layout.tensor", "ffn 100"),
        (job(), recipe({"context": 3}), "layout.context", "does not divide sequence_length 64"),
        (job(), recipe({"expert": 2, "shard": 4}), "layout.expert", "no experts to split"),
        (job(experts=EXPERTS), recipe({"expert": 3, "shard": 4}), "layout.expert", "experts.count 8"),
        (job(experts=EXPERTS), recipe({"expert": 8, "shard": 4}), "layout.expert", "4 data and context ranks"),
        (job(), recipe({"pipeline": 16}), "layout.pipeline", "exceeds layers 8"),
        (job(), recipe({"pipeline": 2, "schedule": "interleaved"}), "layout.interleave", "two chunks"),
        (job(), recipe({"pipeline": 2, "interleave": 2}), "layout.schedule", "not 1f1b"),
        (job(), recipe({"pipeline": 2, "schedule": "zbv"}), "layout.interleave", "holds two chunks"),
        (
            job(),
            recipe({"pipeline": 4, "schedule": "interleaved", "interleave": 2}, sequences=6),
            "layout.schedule",
            "multiples of the 4",
        ),
        (
            job(),
            recipe({"pipeline": 2, "shard": 2}, software="deepspeed"),
            "layout.zero",
            "DeepSpeed does not combine pipelines with ZeRO-3",
        ),
        (
            job(kv_heads=2),
            recipe({"tensor": 4, "zero": 3}, software="thrifty"),
            "layout.tensor",
            "the trainer splits key/value heads: tensor 4 does not divide 2",
        ),
        (
            job(),
            recipe({"tensor": 2, "tensor_overlap": True, "zero": 3}, software="thrifty"),
            "layout.tensor_overlap",
            "the trainer runs tensor_overlap False",
        ),
        (job(), recipe({"context": 64}, software="thrifty"), "layout.context", "context 64 x 2 chunks a rank does not"),
        (
            job(sliding_window=32),
            recipe({"context": 2}, software="thrifty"),
            "layout.context",
            "no sequences of 64 tokens with a sliding window of 32",
        ),
        (job(), recipe({"zero": 1, "shard": 2}, software="thrifty"), "layout.zero", "the trainer runs zero 3"),
        (job(), recipe({"shard": 2}), "layout.zero", "Megatron-LM runs zero 0 or 1, not 3"),
        (job(), recipe({"shard": 2, "zero": 1}, software="torchtitan"), "layout.zero", "torchtitan runs zero 3"),
        (job(), recipe({"pipeline": 2, "schedule": "gpipe"}), "layout.schedule", "runs schedule 1f1b or interleaved"),
        (job(), recipe({"tensor": 2}, software="deepspeed"), "layout.tensor", "DeepSpeed runs tensor 1"),
        (job(), recipe({"pipeline": 2}, software="accelerate"), "layout.pipeline", "Accelerate runs pipeline 1"),
        (job(), recipe({"context": 2}, software="nanotron"), "layout.context", "nanotron runs context 1"),
        (
            job(),
            recipe({"island": 2, "shard": 2, "zero": 1}, software="deepspeed"),
            "layout.island",
            "DeepSpeed runs island 1, not 2",
        ),
        (
            job(),
            recipe({"tensor": 2, "tensor_overlap": True}, software="torchtitan"),
            "compile",
            "in compiled blocks only",
        ),
        (job(), recipe({"tensor": 2, "tensor_overlap": True}, software="nanotron"), "tensor_overlap", "not True"),
        (job(), recipe(compile=True), "compile", "Megatron-LM runs compile False"),
        (job(), recipe(optimizer={"state_bits": 4}), "state_bits", "32 or 16 or 8, not 4"),
        (job(), recipe(optimizer={"name": "muon"}), "optimizer.name", "runs optimizer adamw, not muon"),
        (
            job(),
            recipe({"shard": 2}, optimizer={"name": "adafactor"}, software="thrifty"),
            "optimizer.name",
            "one rank",
        ),
        (job(), recipe(batch=GROWING), "batch.ramp", "one batch for the whole run"),
        (job(), recipe(optimizer={"stable": True}), "optimizer.stable", "not True"),
        (
            job(),
            recipe(exchange={"codec": "int8"}, software="accelerate"),
            "exchange.codec",
            "runs exchange.codec none",
        ),
        (job(), recipe(exchange={"local_steps": 8}), "exchange.local_steps", "local_steps 1, not 8"),
        (job(), recipe(precision="fp8", software="thrifty"), "precision", "the trainer runs precision fp32 or bf16"),
        (
            job(),
            recipe({"pipeline": 4}, sequences=2, software="thrifty"),
            "layout.schedule",
            "each of the 4 stages, not 2",
        ),
        (job(), recipe(ZERO_BUBBLE, sequences=5, software="thrifty"), "layout.schedule", "multiples of the 2 stages"),
        (job(), recipe(ZERO_BUBBLE, compile=True, software="thrifty"), "recipe.compile", "backward pass in two"),
        (job(), recipe(ZERO_BUBBLE, recompute="full", software="thrifty"), "recipe.recompute", "backward pass in two"),
        (job(), recipe({"schedule": "gpipe"}, software="thrifty"), "layout.schedule", "there is none"),
        (job(experts=EXPERTS), recipe(software="thrifty"), "job.model", "dense decoders, not experts"),
        (job(kind="encoder"), recipe(software="thrifty"), "job.model", "not kind encoder"),
    ],
)
def test_a_recipe_that_cannot_run_is_refused(wanted, how, key, what):
    with pytest.raises(ThriftyError, match=what) as caught:
        legal.require(wanted, how)
    assert key in caught.value.where
    assert caught.value.hint


@pytest.mark.parametrize(
    ("wanted", "how"),
    [
        (job(), recipe(software="thrifty")),
        (job(), recipe({"island": 2, "shard": 4, "reshard_after_forward": False}, software="thrifty")),
        (job(), recipe({"pipeline": 2, "shard": 2, "schedule": "zbv", "interleave": 2}, software="thrifty")),
        (job(), recipe({"tensor": 4, "pipeline": 2, "context": 2, "shard": 2, "zero": 1})),
        (job(sliding_window=64), recipe({"context": 32, "tensor": 1, "shard": 2}, software="thrifty")),
        (job(), recipe({"tensor": 2, "tensor_overlap": True, "shard": 2}, software="torchtitan", compile=True)),
        (job(), recipe({"shard": 4, "zero": 2}, software="deepspeed")),
        (job(), recipe({"island": 2, "shard": 2}, software="accelerate")),
        (job(), recipe({"pipeline": 2, "schedule": "gpipe", "tensor": 2}, software="nanotron")),
        (
            job(),
            recipe({"island": 2, "shard": 2}, software="torchtitan", exchange={"codec": "fp8_e4m3", "local_steps": 10}),
        ),
        (job(kind="encoder"), recipe({"tensor": 2})),
        (job(), recipe({"tensor": 8})),  # more ranks than key heads, which are then repeated
        (job(experts=EXPERTS), recipe({"expert": 8, "shard": 4, "context": 2, "zero": 1})),
        (job(), recipe({"pipeline": 4, "schedule": "interleaved", "interleave": 2}, sequences=8)),
        (job(latent=LatentAttention(kv_rank=16, nope_dim=8, rope_dim=4, value_dim=8)), recipe({"tensor": 8})),
    ],
)
def test_a_recipe_that_can_run_is_not(wanted, how):
    assert legal.illegal(wanted, how) is None


def test_reasons_of_one_kind_differ_in_numbers_only():
    kinds = {
        legal.by_layout(job(), Layout(tensor=tensor), "megatron").kind for tensor in (3, 5, 7)
    }  # fmt: skip
    assert kinds == {"tensor does not divide heads"}


def test_the_three_questions_together_are_the_whole_one():
    for layout in ({"tensor": 3}, {"tensor": 2}, {"pipeline": 2, "schedule": "interleaved", "interleave": 2}):
        for rest in ({}, {"precision": "fp8"}, {"compile": True}):
            for sequences in (3, 4):
                how = recipe(layout, sequences=sequences, **rest)
                apart = (
                    legal.by_layout(job(), how.layout, how.software)
                    or legal.by_levers(how)
                    or legal.by_batch(how.layout, how.accumulation, how.software)
                )
                assert legal.illegal(job(), how) == apart


def test_every_software_of_the_recipe_has_a_row():
    assert set(RUNS) == set(get_args(Recipe.model_fields["software"].annotation))


def test_the_trainer_refuses_what_it_would_not_do():
    batch = {"sequences": 8, "micro_sequences": 4, "ramp": {"name": "seesaw", "most_sequences": 64}}
    recipe = Recipe.model_validate({"batch": batch})
    shape = {"layers": 2, "hidden": 32, "heads": 2, "ffn": 64, "vocab_size": 257}
    job = Job.model_validate({"model": shape, "steps": 5, "sequence_length": 32})
    with pytest.raises(ThriftyError) as caught:
        legal.require_own(job, recipe)
    assert caught.value.where == "recipe.batch.ramp"
