"""The Bill: what a run costs. One type with two makers, `cost.predict` and the trainer's meter."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from thrifty.spec.figure import Figure, Noun

# What a step's wall time and a device's memory are divided into; both makers fill every name.
TIME_PARTS = ("startup", "compute", "communication", "optimizer", "data", "evaluation", "checkpoint", "other")
STEP_PARTS = ("compute", "communication", "optimizer", "data")  # of every step
MEMORY_TERMS = ("parameters", "gradients", "optimizer", "activations", "logits", "communication", "runtime")


class Bill(Noun):
    """What a run costs, predicted or measured.

    Attributes:
        seconds: wall time of the run, start-up to last checkpoint, over all resumes.
        step_seconds: one optimizer step (median of the measured ones), without evaluation and checkpoints.
        seconds_by_part: `TIME_PARTS` to seconds; they add up to `seconds`. Communication is the exposed part only.
        model_flops: 6 x matrix parameters + attention, per token, times tokens: what the model needs (MFU counts it).
        hardware_flops: what was executed, recomputation included.
        mfu: model FLOPs over the peak of the devices in the compute dtype during the steps.
        memory: `MEMORY_TERMS` to bytes on the fullest rank.
        peak_memory: allocated on the fullest rank, with what the process holds beside; not the sum of `memory` where
            terms peak at different times.
        reserved_memory: the same as the allocator reserves it, which is what the device must have.
        link_bytes: bytes sent by one rank over the run, by link (`intra_node`, `inter_node`, `inter_island`).
        energy: joules with PUE and hosts; the source names the method.
        loss: final validation loss in nats per token; none where nothing predicts it.
    """

    maker: Literal["predicted", "measured"]
    seconds: Figure
    step_seconds: Figure
    seconds_by_part: dict[str, Figure]
    steps: Figure
    tokens: Figure
    tokens_per_second: Figure
    model_flops: Figure
    hardware_flops: Figure
    mfu: Figure
    memory: dict[str, Figure]
    peak_memory: Figure
    reserved_memory: Figure | None = None
    link_bytes: dict[str, Figure]
    energy: Figure
    usd: Figure
    co2: Figure
    loss: Figure | None = None

    def terms(self) -> Iterator[tuple[str, Figure]]:
        """Every figure with a dotted name, in reading order: `seconds`, `seconds_by_part.compute`, ..."""
        for name in type(self).model_fields:
            field = getattr(self, name)
            if isinstance(field, Figure):
                yield name, field
            elif isinstance(field, dict):
                yield from ((f"{name}.{key}", figure) for key, figure in field.items())
