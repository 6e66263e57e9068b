"""What serving a model costs: batch that fits, prefill, latency of a token, tokens/s, watts, joules and dollars.

In the steady state each step of a replica holds B sequences. Each gains a token, and B x input / output tokens of new
prompts are read beside (continuous batching with chunked prefill, as vLLM and TensorRT-LLM do), so that

    output tokens/s = replicas x B x tokens gained / seconds of a step

and a sequence has input + output / 2 tokens cached on average. Without a batch, B is the most that memory holds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from thrifty.cost import energy
from thrifty.cost.serving_engines import Engine
from thrifty.cost.serving_fit import ENGINES, POWER
from thrifty.cost.serving_shape import cached_tokens
from thrifty.cost.serving_step import Deployment, Step, cache_bytes_per_token, check, step, watts, weight_bytes
from thrifty.spec.cluster import Cluster
from thrifty.spec.errors import ThriftyError, did_you_mean
from thrifty.spec.job import ModelShape


@dataclass(frozen=True, slots=True)
class Traffic:
    """What is asked of a deployment.

    Attributes:
        input_tokens: of a prompt, on average.
        output_tokens: made for it, on average.
        batch: sequences that run at a time over all replicas; none = as many as fit.
    """

    input_tokens: float
    output_tokens: float
    batch: float | None = None


@dataclass(frozen=True, slots=True)
class Speculation:
    """Speculative decoding (Leviathan et al. 2023, arXiv:2211.17192).

    Attributes:
        draft: the small model that proposes; it runs on the same devices, split in the same way, in 16 bits.
        length: tokens that it proposes before the large model checks them.
        acceptance: chance that a proposed token is kept, given that those before it were.
    """

    draft: ModelShape
    length: int
    acceptance: float


@dataclass(frozen=True, slots=True)
class Served:
    """Figures of a deployment under some traffic. Joules and watts are those of the accelerators alone.

    Attributes:
        batch: sequences over all replicas.
        most: the batch that memory and engine allow.
        limit: what sets `most`: `memory` or `engine`.
        token_seconds: between two tokens of a sequence, mean over all steps.
        quiet_token_seconds: in a step that reads no prompt.
        first_token_seconds: of a prompt alone on the device.
        step: a mean step of one replica.
        weight_bytes: on one device.
        kv_bytes: of the running sequences on one device.
        free_bytes: that one device has for the cache.
        device_watts: mean draw of one accelerator.
        joules_per_token: of the accelerators for one output token.
        facility_joules_per_token: with hosts and PUE.
        usd_per_million: output tokens.
    """

    batch: float
    most: float
    limit: str
    token_seconds: float
    quiet_token_seconds: float
    first_token_seconds: float
    tokens_per_second: float
    requests_per_second: float
    step: Step
    weight_bytes: float
    kv_bytes: float
    free_bytes: float
    device_watts: float
    joules_per_token: float
    facility_joules_per_token: float
    usd_per_million: float
    grams_per_million: float


def engine_of(name: str) -> Engine:
    """Constants of a serving software.

    Raises:
        ThriftyError: unknown name.
    """
    if name not in ENGINES:
        raise ThriftyError(f"unknown serving software {name!r}", where="--engine", hint=did_you_mean(name, ENGINES))
    return ENGINES[name]


def tokens_per_check(length: int, acceptance: float) -> float:
    """Expected tokens that one check of a draft yields: (1 - a^(k+1)) / (1 - a); at least 1, at most k + 1."""
    if acceptance >= 1:
        return float(length + 1)
    return float((1 - acceptance ** (length + 1)) / (1 - acceptance))


def usable_bytes(cluster: Cluster, engine: Engine) -> float:
    """Bytes of one device for weights and cache."""
    chip = cluster.accelerator
    return chip.memory.value * engine.memory_share - chip.runtime_memory.value


def most_sequences(
    shape: ModelShape,
    cluster: Cluster,
    deployment: Deployment,
    engine: Engine,
    traffic: Traffic,
    speculation: Speculation | None = None,
) -> tuple[float, str]:
    """Sequences that all replicas hold at a time, and what sets the number: `memory` or `engine`.

    Raises:
        ThriftyError: the weights, or one sequence, do not fit; says how many devices would do.
    """
    tokens = traffic.input_tokens + engine.reserved_output * traffic.output_tokens
    each = cache_bytes_per_token(shape, deployment) * cached_tokens(shape, tokens)
    held = weight_bytes(shape, deployment)
    if speculation is not None:
        draft = draft_deployment(deployment)
        each += cache_bytes_per_token(speculation.draft, draft) * cached_tokens(speculation.draft, tokens)
        held += weight_bytes(speculation.draft, draft) * deployment.data
    usable = usable_bytes(cluster, engine)
    free = usable * deployment.group - held
    if free < each:
        what = (
            f"{shape.name} in {deployment.weights} with one sequence of {tokens:,.0f} tokens takes "
            f"{(held + each) / 2**30:,.0f} GiB, and {deployment.group} x {cluster.accelerator.name} hold "
            f"{usable * deployment.group / 2**30:,.0f} GiB"
        )
        devices = math.ceil((held + each) / usable)
        hint = f"share it among {devices} devices or more, or store fewer bits: --weights, --kv"
        raise ThriftyError(what, where="--on", hint=hint)
    fits = free / each * deployment.replicas
    most = float(engine.most_sequences * deployment.replicas * deployment.data)
    return (fits, "memory") if fits < most else (most, "engine")


def draft_deployment(deployment: Deployment) -> Deployment:
    """Where a draft runs: beside the large model, split as its attention is, in 16 bits."""
    return Deployment(deployment.tensor, 1, deployment.data * deployment.replicas)


def prefill_seconds(
    shape: ModelShape, cluster: Cluster, deployment: Deployment, engine: Engine, prompt: float, prompts: float = 1
) -> float:
    """Seconds until prompts that start together have made their first token, with nothing else running."""
    read = {"prompt_tokens": prompt * prompts, "prompt": prompt}
    return step(shape, cluster, deployment, engine, sequences=0, context=0, **read).total


def serve(
    shape: ModelShape,
    cluster: Cluster,
    deployment: Deployment,
    engine: Engine,
    traffic: Traffic,
    speculation: Speculation | None = None,
) -> Served:
    """Prices a deployment under some traffic.

    Raises:
        ThriftyError: it cannot be laid out so, or does not fit, or the batch exceeds what fits.
    """
    check(shape, cluster, deployment)
    most, limit = most_sequences(shape, cluster, deployment, engine, traffic, speculation)
    batch = most if traffic.batch is None else traffic.batch
    if batch > most:
        what = f"{batch:,.0f} sequences at a time, where {limit} allows {most:,.0f}"
        raise ThriftyError(what, where="--batch", hint=f"ask for at most {most:,.0f}, or use more devices or --kv fp8")
    each = batch / deployment.replicas
    context = traffic.input_tokens + traffic.output_tokens / 2
    gained = 1.0 if speculation is None else tokens_per_check(speculation.length, speculation.acceptance)
    reading = each * gained * traffic.input_tokens / traffic.output_tokens
    one = _cycle(shape, cluster, deployment, engine, speculation, each, context, reading, traffic.input_tokens)
    quiet = _cycle(shape, cluster, deployment, engine, speculation, each, context, 0.0, traffic.input_tokens)
    rate = batch * gained / one.total
    draw = watts(cluster, POWER, one)
    seconds_per_token = deployment.devices / rate  # of devices
    host = cluster.host_watts.value
    facility = (draw + host) * cluster.pue.value * seconds_per_token
    kv_bytes = each * cached_tokens(shape, context) * cache_bytes_per_token(shape, deployment)
    return Served(
        batch=batch,
        most=most,
        limit=limit,
        token_seconds=one.total / gained,
        quiet_token_seconds=quiet.total / gained,
        first_token_seconds=prefill_seconds(shape, cluster, deployment, engine, traffic.input_tokens),
        tokens_per_second=rate,
        requests_per_second=rate / traffic.output_tokens,
        step=one,
        weight_bytes=weight_bytes(shape, deployment) / deployment.group,
        kv_bytes=kv_bytes / deployment.group,
        free_bytes=usable_bytes(cluster, engine) - weight_bytes(shape, deployment) / deployment.group,
        device_watts=draw,
        joules_per_token=draw * seconds_per_token,
        facility_joules_per_token=facility,
        usd_per_million=cluster.price.value / 3600 * seconds_per_token * 1e6,
        grams_per_million=energy.co2_grams(cluster, facility * 1e6),
    )


def _cycle(
    shape: ModelShape,
    cluster: Cluster,
    deployment: Deployment,
    engine: Engine,
    speculation: Speculation | None,
    sequences: float,
    context: float,
    prompt_tokens: float,
    prompt: float,
) -> Step:
    """A step; with a draft, the draft's steps and the check that follows them, as one."""
    load = {"sequences": sequences, "context": context, "prompt": prompt}
    if speculation is None:
        return step(shape, cluster, deployment, engine, prompt_tokens=prompt_tokens, **load)
    proposed = 1.0 + speculation.length
    made = tokens_per_check(speculation.length, speculation.acceptance)
    checked = step(
        shape, cluster, deployment, engine, prompt_tokens=prompt_tokens, tokens_each=proposed, made_each=made, **load
    )  # fmt: skip
    # Its replicas are the groups that share the large model's experts. It reads the prompts too, a share in each step.
    small = {**load, "sequences": sequences / deployment.data}
    reading = prompt_tokens / speculation.length / deployment.data
    drafted = step(
        speculation.draft, cluster, draft_deployment(deployment), engine, prompt_tokens=reading, made_each=0.0, **small
    )  # fmt: skip
    return _sum(checked, drafted, speculation.length)


def _sum(one: Step, other: Step, times: float) -> Step:
    """A step followed by `times` of another."""
    rates = {*one.flops, *other.flops}
    flops = {name: one.flops.get(name, 0.0) + times * other.flops.get(name, 0.0) for name in rates}
    names = [name for name in Step.__slots__ if name != "flops"]
    return Step(**{name: getattr(one, name) + times * getattr(other, name) for name in names}, flops=flops)
