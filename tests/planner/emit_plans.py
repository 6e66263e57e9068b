"""Plans that the tests of `planner/emit` share: each axis, precision and kind of model that a target may meet."""

from __future__ import annotations

from functools import cache
from typing import Any

from thrifty.catalog import lookup
from thrifty.cost.predict import predict
from thrifty.spec import Cluster, Job, ModelShape, Recipe
from thrifty.spec.bill import Bill
from thrifty.spec.job import Experts, LatentAttention
from thrifty.spec.load import build
from thrifty.spec.plan import Plan, fingerprint
from thrifty.spec.recipe import Batch, Exchange, Layout

BF16 = {"exchange": Exchange(dtype="bf16")}
QWEN_MOE = ModelShape(
    name="qwen3-moe", layers=48, hidden=2048, heads=32, kv_heads=4, head_dim=128, ffn=6144, vocab_size=151936,
    max_positions=40960, norm_eps=1e-6, rope_theta=1e6, qk_norm=True, experts=Experts(count=128, active=8, ffn=768),
)  # fmt: skip
DEEPSEEK = ModelShape(
    name="deepseek-v2-lite", layers=27, hidden=2048, heads=16, head_dim=192, ffn=10944, vocab_size=102400,
    max_positions=4096, norm_eps=1e-6, experts=Experts(count=64, active=6, ffn=1408, shared=2, dense_layers=1),
    latent=LatentAttention(kv_rank=512, nope_dim=128, rope_dim=64, value_dim=128),
)  # fmt: skip


@cache
def bill() -> Bill:
    """Any bill: what it says goes into comments and the time limit only."""
    job = Job(model=model("gpt2-124m"), sequence_length=1024, steps=1000)
    return predict(job, cluster("h100"), Recipe(batch=Batch(sequences=8, micro_sequences=8)))


def model(name: str) -> ModelShape:
    return build(ModelShape, lookup.model(name), "")


def cluster(on: str) -> Cluster:
    """A cluster of the catalog; `local` is two cores, `prototype` a node of eight of a chip that nobody knows."""
    if on not in ("local", "prototype"):
        return build(Cluster, lookup.cluster(on), "")
    name, kind, per_node = ("core", "cpu", 2) if on == "local" else ("X1", "gpu", 8)
    chip = cluster("h100").accelerator.model_copy(update={"name": name, "kind": kind})
    return cluster("h100").model_copy(update={"name": on, "accelerator": chip, "per_node": per_node})


def plan(
    shape: ModelShape | str, on: str, *, layout: dict[str, Any], micro: int = 1, accumulation: int = 1,
    sequence: int = 4096, job: dict[str, Any] | None = None, **recipe: Any,
) -> Plan:  # fmt: skip
    """A plan with any recipe, whether or not this version would search it."""
    shape = model(shape) if isinstance(shape, str) else shape
    axes = Layout(**layout)
    sequences = micro * accumulation * axes.data_ranks
    wanted = {"name": "A run", "model": shape, "sequence_length": sequence, "steps": 1000} | (job or {})
    machine = cluster(on)
    made, asked = Recipe(layout=axes, batch=Batch(sequences=sequences, micro_sequences=micro), **recipe), Job(**wanted)
    return Plan(job=asked, cluster=machine, recipe=made, predicted=bill(), hash=fingerprint(asked, machine, made))


def changed(one: Plan, **recipe: Any) -> Plan:
    """The plan with other keys of the recipe; `layout` may be partial."""
    layout = one.recipe.layout.model_dump() | recipe.pop("layout", {})
    made = Recipe(**(one.recipe.model_dump() | {"layout": layout} | recipe))
    return Plan(**(dict(one) | {"recipe": made, "hash": fingerprint(one.job, one.cluster, made)}))


MEGATRON, TITAN = {"software": "megatron"}, {"software": "torchtitan"}


@cache
def plans() -> dict[str, Plan]:
    return {
        "8b fsdp": plan("llama-3-8b", "64xh100", layout={"shard": 64}, micro=2, accumulation=2, sequence=8192),
        "8b keeping": plan("llama-3-8b", "16xh100", layout={"shard": 16, "reshard_after_forward": False}, **BF16),
        "70b tp8 pp4": plan(
            "llama-3-70b", "64xh100", micro=1, accumulation=16, sequence=8192, recompute="full", **MEGATRON,
            layout={"shard": 2, "pipeline": 4, "tensor": 8, "zero": 1},
        ),
        "70b interleaved": plan(
            "llama-3-70b", "64xh100", micro=1, accumulation=8, recompute="selective", **TITAN,
            layout={"shard": 2, "pipeline": 4, "tensor": 8, "schedule": "interleaved", "interleave": 2},
        ),
        "moe ep8": plan(QWEN_MOE, "16xh100", layout={"shard": 16, "expert": 8}, accumulation=2, **TITAN),
        "latent moe": plan(DEEPSEEK, "16xh100", layout={"shard": 16, "expert": 8, "zero": 1}, **MEGATRON),
        "latent moe fsdp": plan(DEEPSEEK, "16xh100", layout={"shard": 16, "expert": 8}, **TITAN),
        "fp8 rows": plan("llama-3-8b", "8xh100", layout={"shard": 8}, precision="fp8", scaling="row", **TITAN),
        "fp8 tensor": plan("llama-3-8b", "8xh100", layout={"shard": 8}, precision="fp8", software="accelerate", **BF16),
        "fp8 blocks": plan(
            "llama-3-8b", "8xb200", layout={"shard": 8, "zero": 1}, precision="fp8", scaling="block", **MEGATRON,
        ),
        "nvfp4": plan(
            "llama-3-8b", "8xb200", layout={"shard": 8}, precision="nvfp4", scaling="block", compile=True, **TITAN,
        ),
        "long context": plan(
            "llama-3.1-8b", "32xh100", layout={"shard": 4, "context": 8}, sequence=131072, recompute="full", **TITAN,
        ),
        "two islands": plan("llama-3-8b", "2x8xh100", layout={"island": 2, "shard": 8}, micro=2, accumulation=4),
        "islands bf16": plan(
            "llama-3-8b", "2x8xh100", layout={"island": 2, "shard": 8}, micro=2, recompute="full",
            software="accelerate", **BF16,
        ),
        "sequence shards": plan(
            "llama-3.1-8b", "16xh100", layout={"shard": 4, "context": 4}, sequence=32768, software="accelerate", **BF16,
        ),
        "replicas": plan("qwen2-0.5b", "8xa100", layout={"island": 8}, micro=4, software="deepspeed", compile=True),
        "one gpu": plan("gpt2-124m", "h100", layout={}, micro=8, accumulation=4, sequence=1024),
        "cpu": plan("tiny-1m", "local", layout={"shard": 2}, micro=4, sequence=512, precision="fp32"),
        "zero 2": plan(
            "qwen2-7b", "8xa100", layout={"shard": 8, "zero": 2}, accumulation=2, software="deepspeed", **BF16,
        ),
        "wsd": plan(
            "llama-3.1-8b", "8xa100", layout={"shard": 8}, software="accelerate", **BF16,
            schedule={"name": "wsd", "decay_fraction": 0.25}, optimizer={"state_bits": 8, "lr": 3e-4},
        ),
        "uneven stages": plan(
            "llama-2-7b", "8xa100", layout={"pipeline": 3, "tensor": 2, "zero": 1}, accumulation=6, **MEGATRON,
        ),
    }  # fmt: skip
