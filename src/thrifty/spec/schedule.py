"""What changes over a run: the learning rate, the batch, and the measurement that a batch may follow."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from thrifty.spec.figure import Count, Noun, PositiveCount, Ratio, Tokens


class Schedule(Noun):
    """The learning rate over steps: linear warm-up, then a shape (`laws.schedule` has the formulas).

    `cosine` and `linear` fall from lr to lr x final_ratio; `wsd` (warmup-stable-decay, Hu et al. 2024,
    arXiv:2404.06395) holds lr and falls linearly over the last `decay_fraction` of the steps; `inverse_sqrt` falls with
    the root of the steps (Vaswani et al. 2017, arXiv:1706.03762); `constant` holds lr.
    """

    name: Literal["cosine", "wsd", "linear", "inverse_sqrt", "constant"] = "cosine"
    warmup_steps: Annotated[Count, Field(ge=0)] = 100
    final_ratio: Annotated[Ratio, Field(ge=0, le=1)] = 0.1
    decay_fraction: Annotated[Ratio, Field(gt=0, le=1)] = 0.2


class Ramp(Noun):
    """A batch that grows during a run, by accumulation: from `batch.sequences`, which `optimizer.lr` is for.

    A run with a ramp ends by tokens, `job.steps` standing for as many steps of `batch.sequences`, and the schedule goes
    by tokens too: `warmup_steps` are steps of `batch.sequences`.

    Attributes:
        name: `linear` grows evenly from `from_tokens` to `to_tokens`. `seesaw` (Meterez et al. 2025, arXiv:2510.14717):
            where the schedule would multiply the rate by a < 1, the batch grows by 1/a and the rate falls by sqrt(a).
            `noise_scale` doubles the batch once `share` of the measured noise scale is surely as large.
        most_sequences: where growth ends.
        share: of the noise scale that the batch may be (`noise_scale`); at 0.2 tokens go up by 20% (`laws.ramp`).
        follows: how the rate follows the batch: with its root (Adam and its kin), linearly (SGD), or not at all; by
            the optimizer when left out.
    """

    name: Literal["linear", "seesaw", "noise_scale"]
    most_sequences: PositiveCount
    from_tokens: Annotated[Tokens, Field(ge=0)] = 0
    to_tokens: Annotated[Tokens, Field(gt=0)] | None = None
    share: Annotated[Ratio, Field(gt=0)] = 0.2
    follows: Literal["sqrt", "linear", "none"] | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.name == "linear" and (self.to_tokens is None or self.to_tokens <= self.from_tokens):
            raise ValueError(f"a linear ramp ends later than it begins: set to_tokens above {self.from_tokens}")
        return self
