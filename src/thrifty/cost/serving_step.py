"""One step of a serving engine: some sequences each gain a token while parts of new prompts are read.

products       weight bytes / (bandwidth x share) + 2 x elements x tokens / (best product x share), one after another
experts        the same of the routed ones, over the distinct ones touched, each time with a factor
cache          sequences x context x bytes / (bandwidth x share)
prompts        causal attention of the new tokens / (best 16-bit product x share)
elementwise    tokens x layers x 2 bytes x (passes x hidden + passes x inner width / ranks) / bandwidth
sampling       sequences x vocabulary x bytes / bandwidth
latency        layers x fixed seconds, and two all-reduces each
communication  ring all-reduces of the tokens' vectors; with data parallel experts, dispatch and combine
host           fixed + seconds a sequence; joined as sqrt(device^2 + host^2), since they overlap in part
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from thrifty.cost.constants import ACHIEVABLE_SHARE
from thrifty.cost.serving_engines import Engine, Power
from thrifty.cost.serving_shape import (
    KV_BITS,
    STORED_BITS,
    cached_tokens,
    check_format,
    experts_touched,
    kv_bytes_per_token,
    kv_copies,
    matrices,
    rate_name,
    score_flops_per_key,
)
from thrifty.spec.cluster import Accelerator, Cluster
from thrifty.spec.errors import ThriftyError
from thrifty.spec.job import ModelShape


@dataclass(frozen=True, slots=True)
class Deployment:
    """How a model is laid out and stored to be served.

    Attributes:
        tensor: devices that share every layer of one copy; routed experts are shared out among them.
        data: groups of `tensor` devices that hold the attention each and share the routed experts (attention data
            parallel, as for DeepSeek-V3); 1 for a dense model.
        replicas: whole copies, each with its own sequences.
        weights: storage format of all matrices but the head (`serving_shape.STORED_BITS`).
        attention_weights: of the attention's projections where they are kept wider; empty = as `weights`.
        kv: storage format of the cache.
        cache_by_sequence: devices of a group that are more than there are key/value heads hold the cache of different
            sequences instead of copies (Pope et al. 2022, arXiv:2211.05102, section 3.3).
    """

    tensor: int = 1
    data: int = 1
    replicas: int = 1
    weights: str = "bf16"
    attention_weights: str = ""
    kv: str = "bf16"
    cache_by_sequence: bool = False

    @property
    def group(self) -> int:
        """Devices of one replica."""
        return self.tensor * self.data

    @property
    def devices(self) -> int:
        """All devices."""
        return self.group * self.replicas


@dataclass(frozen=True, slots=True)
class Step:
    """Seconds of one step by part, and what one device does in it.

    Attributes:
        device: seconds that a device takes, without the host.
        busy: of these, seconds in kernels that fill it.
        total: with the host.
        bytes: read and written by one device.
        flops: of one device, by rate.
    """

    products: float
    experts: float
    cache: float
    prompts: float
    elementwise: float
    sampling: float
    latency: float
    communication: float
    host: float
    device: float
    busy: float
    total: float
    bytes: float
    flops: dict[str, float]

    def parts(self) -> dict[str, float]:
        """Seconds by part; with the overlap of device and host they exceed `total`."""
        names = ("products", "experts", "cache", "prompts", "elementwise", "sampling", "latency", "communication")
        return {**{name: getattr(self, name) for name in names}, "host": self.host}


def check(shape: ModelShape, cluster: Cluster, deployment: Deployment) -> None:
    """Refuses a deployment that cannot be.

    Raises:
        ThriftyError: no decoder, unknown format, a CPU, more devices than there are, or a split that does not fit.
    """
    check_format(deployment.weights, "--weights", STORED_BITS)
    check_format(deployment.attention_weights or deployment.weights, "attention_weights", STORED_BITS)
    check_format(deployment.kv, "--kv", KV_BITS)
    if shape.kind != "decoder":
        raise ThriftyError(f"{shape.name} is no decoder: it makes no tokens one after another", where="model")
    if cluster.accelerator.kind == "cpu":
        hint = "name a GPU or TPU, for example  --on 4xh100"
        raise ThriftyError("serving is priced for accelerators, not for CPUs", where="--on", hint=hint)
    if deployment.devices > cluster.devices:
        have = f"{cluster.devices} device{'s' if cluster.devices > 1 else ''}"
        what = f"tensor {deployment.tensor} x data {deployment.data} x replicas {deployment.replicas} on {have}"
        raise ThriftyError(what, where="--tensor", hint=f"their product may be at most {cluster.devices}")
    if shape.heads % deployment.tensor:
        divisors = ", ".join(str(n) for n in range(1, shape.heads + 1) if shape.heads % n == 0)
        what = f"tensor {deployment.tensor} does not divide {shape.heads} heads"
        raise ThriftyError(what, where="--tensor", hint=f"choose one of {divisors}")
    if deployment.data > 1 and shape.experts is None:
        what = "data groups share routed experts, and this model has none"
        raise ThriftyError(what, where="data", hint="use replicas for whole copies")


def cache_bytes_per_token(shape: ModelShape, deployment: Deployment) -> float:
    """Bytes that one cached token takes on all devices of its replica, copies included."""
    copies = 1.0 if deployment.cache_by_sequence else kv_copies(shape, deployment.tensor)
    return kv_bytes_per_token(shape, deployment.kv) * copies


def weight_bytes(shape: ModelShape, deployment: Deployment) -> float:
    """Bytes of all weights of one replica; the attention, dense parts and head once for each data group."""
    held, wide = matrices(shape), STORED_BITS[deployment.weights] / 8
    own = _attention_bytes(shape, deployment) + held.dense * wide + 2.0 * (held.head + held.lookup)
    return own * deployment.data + held.routed_layers * held.count * held.expert * wide


def _attention_bytes(shape: ModelShape, deployment: Deployment) -> float:
    return matrices(shape).attention * STORED_BITS[deployment.attention_weights or deployment.weights] / 8


def step(
    shape: ModelShape,
    cluster: Cluster,
    deployment: Deployment,
    engine: Engine,
    *,
    sequences: float,
    context: float,
    prompt_tokens: float,
    prompt: float,
    tokens_each: float = 1.0,
    made_each: float = 1.0,
) -> Step:
    """Prices one step of one replica.

    Args:
        sequences: that gain a token, over the replica's data groups.
        context: tokens that they have cached on average.
        prompt_tokens: read of new prompts in this step, together.
        prompt: length of a whole prompt, for its attention.
        tokens_each: of a sequence that go through the model in this step: more than 1 to check a draft.
        made_each: of these, tokens that leave the engine; 0 for the steps of a draft, which the host does not see.
    """
    chip, held, group = cluster.accelerator, matrices(shape), deployment.group
    peaks = {name: figure.value for name, figure in chip.peak_flops.items()}
    rate, wide_rate = rate_name(deployment.weights, peaks), rate_name("bf16", peaks)
    attention_rate = rate_name(deployment.attention_weights or deployment.weights, peaks)
    rates = {rate, wide_rate, attention_rate}
    reach = {name: _best_flops(chip, name) * engine.matmul[_constant(name)] for name in rates}
    bandwidth = chip.memory_bandwidth.value
    tokens = sequences * tokens_each + prompt_tokens
    sampled = sequences * tokens_each

    wide = STORED_BITS[deployment.weights] / 8
    own_bytes = (_attention_bytes(shape, deployment) + held.dense * wide + 2.0 * held.head) / deployment.tensor
    own_flops = dict.fromkeys(reach, 0.0)
    own_flops[attention_rate] += 2 * tokens * held.attention / group
    own_flops[rate] += 2 * tokens * held.dense / group
    own_flops[wide_rate] += 2 * sampled * held.head / group
    products = own_bytes / (bandwidth * engine.weight_read) + sum(own_flops[n] / reach[n] for n in reach)

    touched = experts_touched(held.count, held.active, max(1.0, tokens * engine.expert_variety))
    expert_bytes = held.routed_layers * held.expert * touched * wide / group
    expert_flops = 2 * tokens * held.routed_layers * held.active * held.expert / group
    experts = engine.expert_read * expert_bytes / (bandwidth * engine.weight_read)
    experts += engine.expert_math * expert_flops / reach[rate]

    cache_bytes = sequences * cached_tokens(shape, context) * cache_bytes_per_token(shape, deployment) / group
    cache = cache_bytes / (bandwidth * engine.kv_read)
    score_flops = prompt_tokens * score_flops_per_key(shape) * cached_tokens(shape, prompt / 2) / group
    prompts = score_flops / (_best_flops(chip, wide_rate) * engine.prefill_attention)

    inner = shape.ffn if shape.experts is None else shape.experts.ffn * (shape.experts.active + shape.experts.shared)
    streamed = engine.stream_passes * shape.hidden / deployment.data + engine.inner_passes * inner / group
    stream_bytes = 2 * tokens * shape.layers * streamed
    logit_bytes = engine.sampling_bytes * sampled * shape.vocab_size / deployment.data
    elementwise, sampling = stream_bytes / bandwidth, logit_bytes / bandwidth

    latency, communication = _joining(shape, cluster, deployment, engine, tokens)
    busy = products + experts + cache + prompts + elementwise + sampling
    device = busy + latency + communication
    host = engine.host_step_seconds + engine.host_sequence_seconds * sequences * made_each if made_each else 0.0
    flops = dict(own_flops)
    flops[rate] += expert_flops
    flops[wide_rate] += score_flops
    moved = own_bytes + expert_bytes + cache_bytes + stream_bytes + logit_bytes
    total = (device * device + host * host) ** 0.5
    return Step(
        products, experts, cache, prompts, elementwise, sampling, latency, communication, host, device, busy, total,
        moved, flops,
    )  # fmt: skip


def _constant(rate: str) -> str:
    return "bf16" if rate == "fp16" else rate


def _best_flops(chip: Accelerator, rate: str) -> float:
    """The best that any product was measured to reach; where nobody measured, the usual share of peak.

    A rate that nobody measured is taken to fall as short of its peak as the 16-bit one does.
    """
    peak = chip.peak_flops[rate].value
    for name in (rate, "bf16"):
        if name in chip.achievable_flops and name in chip.peak_flops:
            return peak * chip.achievable_flops[name].value / chip.peak_flops[name].value
    return peak * ACHIEVABLE_SHARE


def _joining(
    shape: ModelShape, cluster: Cluster, deployment: Deployment, engine: Engine, tokens: float
) -> tuple[float, float]:
    """Fixed seconds of all layers, and seconds of what the devices of a replica send one another."""
    link = cluster.intra_node if deployment.group <= cluster.per_node else cluster.inter_node
    fixed = engine.layer_seconds
    if rate_name(deployment.weights, dict.fromkeys(cluster.accelerator.peak_flops, 0.0)) in ("fp8", "fp4"):
        fixed += engine.quantised_layer_seconds
    latency = shape.layers * fixed
    routed_layers = matrices(shape).routed_layers
    latency += routed_layers * engine.routed_layer_seconds
    vector = 2.0 * shape.hidden * tokens / deployment.data  # bytes, in 16 bits, of one data group
    sent = 0.0
    if deployment.tensor > 1:
        latency += 2 * shape.layers * engine.all_reduce_seconds
        sent += shape.layers * 2 * 2 * (deployment.tensor - 1) / deployment.tensor * vector
    if deployment.data > 1 and shape.experts is not None:
        latency += 2 * routed_layers * engine.all_reduce_seconds
        # Each token goes to the devices of its experts and comes back; no more of them than there are.
        places = min(shape.experts.active, deployment.group) * (deployment.group - 1) / deployment.group
        sent += routed_layers * 2 * places * vector / deployment.tensor
    return latency, sent / link.bandwidth.value


def watts(cluster: Cluster, power: Power, one: Step) -> float:
    """Mean draw of one device over a step, its host not counted."""
    chip = cluster.accelerator
    idle, span = chip.idle_watts.value, chip.tdp_watts.value - chip.idle_watts.value
    share = {"fp8": 0.5, "fp4": 0.25}
    joules = power.joules_per_byte * one.bytes
    joules += power.joules_per_flop * sum(share.get(name, 1.0) * flops for name, flops in one.flops.items())
    load = power.awake + power.busy * one.busy / one.total + joules / one.total / span
    return idle + span * (1 - math.exp(-load))
