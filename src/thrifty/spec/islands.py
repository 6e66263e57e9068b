"""Islands: workers of unequal speed behind unequal links, and how they are to train one model together."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from thrifty.spec.codec import stages_of
from thrifty.spec.errors import ThriftyError
from thrifty.spec.figure import (
    BytesPerSecondFigure,
    Count,
    Figure,
    FlopsFigure,
    Noun,
    PositiveCount,
    Ratio,
    SecondsFigure,
    Tokens,
    UsdPerHourFigure,
)


def _nothing(unit: str) -> Figure:
    return Figure(value=0.0, unit=unit, provenance="assumed", source="not given")


class IslandGroup(Noun):
    """Islands that are alike: each a machine, a rack or a site that counts as one worker.

    Attributes:
        compute: of one inner step on one island. Either this or `flops`.
        flops: that one island reaches in training, all its devices together; a step is 6 x parameters x tokens.
        up: rate at which an island sends; `down` at which it receives.
        latency: one-way delay that its link adds: half of a ping to somebody without any.
        jitter: standard deviation of a step's seconds over their mean.
        coding: seconds of encoding and decoding in an exchange of the whole model.
        price: of one island.
    """

    name: str
    count: PositiveCount = 1
    compute: SecondsFigure | None = None
    flops: FlopsFigure | None = None
    up: BytesPerSecondFigure
    down: BytesPerSecondFigure
    latency: SecondsFigure = _nothing("s")
    jitter: Annotated[Ratio, Field(ge=0, le=2)] = 0.0
    coding: SecondsFigure = _nothing("s")
    price: UsdPerHourFigure = _nothing("usd/h")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.compute is None) == (self.flops is None):
            raise ValueError("say how fast it is, once: compute (seconds of a step) or flops (FLOP/s in training)")
        for name in ("compute", "flops", "up", "down"):
            figure = getattr(self, name)
            if figure is not None and figure.value <= 0:
                raise ValueError(f"{name} must be above zero, got {figure.value:g}")
        for name in ("latency", "coding", "price"):
            if getattr(self, name).value < 0:
                raise ValueError(f"{name} must not be negative")
        return self


class Islands(Noun):
    """All islands, the model that they train, and the means to compare.

    Attributes:
        model: a model of the catalog. Either this or `parameters`.
        parameters: of the model, all of them trained and met by every token.
        step_tokens: that one island trains on in one inner step.
        tokens: that the run is to see on all islands; none = only rates are told.
        codec: of what crosses, as text: `thrifty.spec.codec`.
        route: of what crosses (`thrifty.cost.islands.Scheme`).
        gather: `ring`, as gloo gathers, or `direct`, each to all others at once; a quorum is always direct.
        local_steps: between two exchanges, where they are not after every step.
        fragments: of the model, for exchanges in the background.
        delay: steps until the result of such an exchange is needed.
        quorum: share of islands that an exchange waits for; 1 = all.
    """

    name: str = "islands"
    model: str | None = None
    parameters: PositiveCount | None = None
    step_tokens: Annotated[Tokens, Field(gt=0)]
    tokens: Annotated[Tokens, Field(gt=0)] | None = None
    codec: str = "topk(1/64) + means2"
    route: Literal["auto", "all_to_all", "all_gather"] = "auto"
    gather: Literal["ring", "direct"] = "ring"
    local_steps: PositiveCount = 30
    fragments: PositiveCount = 1
    delay: Annotated[Count, Field(ge=0)] = 0
    quorum: Annotated[Ratio, Field(gt=0, le=1)] = 1.0
    islands: tuple[IslandGroup, ...]

    @field_validator("codec")
    @classmethod
    def _known_codec(cls, text: str) -> str:
        try:
            stages_of(text)
        except ThriftyError as error:
            raise ValueError(f"{error.what}; {error.hint}") from None
        return text

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.model is None) == (self.parameters is None):
            raise ValueError("say what is trained, once: model (a name of the catalog) or parameters")
        if not self.islands:
            raise ValueError("no islands: at least one group, with its compute and its link")
        names = [group.name for group in self.islands]
        if len(set(names)) < len(names):
            raise ValueError("two groups of islands have the same name")
        return self
