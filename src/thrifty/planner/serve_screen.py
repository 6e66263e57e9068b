"""One screen on what serving a model costs, as plain data and as text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from thrifty.cost.params import total_parameters
from thrifty.cost.serving import Served, Speculation, Traffic
from thrifty.cost.serving_fit import INTERVALS
from thrifty.cost.serving_quote import quote
from thrifty.cost.serving_shape import STORED_BITS, rate_name
from thrifty.cost.serving_step import Deployment
from thrifty.planner.deploy import Formats, deploy
from thrifty.planner.lifetime import USUAL_MFU, Life, cheapest_life, life
from thrifty.spec import units
from thrifty.spec.cluster import Cluster
from thrifty.spec.errors import ThriftyError
from thrifty.spec.figure import Figure
from thrifty.spec.job import ModelShape

TOKENS_PER_PARAMETER = 20  # Hoffmann et al. 2022 (arXiv:2203.15556)
_LEAST_SHARE = 0.03  # of a step, to be named among what limits


@dataclass(frozen=True)
class ServeTold:
    """All that the screen shows.

    Attributes:
        limits: what a step spends its time on, as shares of the sum, largest first.
        notes: what the reader should know of these figures.
        own: the model's own life; none where nobody asked.
        best: sizes of the same proportions and loss, cheapest first.
    """

    shape: ModelShape
    cluster: Cluster
    traffic: Traffic
    formats: Formats
    deployment: Deployment
    served: Served
    figures: dict[str, Figure]
    limits: dict[str, float]
    notes: tuple[str, ...]
    served_tokens: float | None
    own: Life | None
    best: tuple[Life, ...]

    def as_json(self) -> dict[str, Any]:
        """Everything, in types that JSON has."""
        layout = {name: getattr(self.deployment, name) for name in ("tensor", "data", "replicas", "weights", "kv")}
        found = {
            "model": self.shape.name,
            "cluster": self.cluster.name,
            "engine": self.formats.engine,
            "input_tokens": self.traffic.input_tokens,
            "output_tokens": self.traffic.output_tokens,
            "deployment": layout,
            "figures": {name: figure.model_dump(mode="json") for name, figure in self.figures.items()},
            "limits": self.limits,
            "notes": list(self.notes),
        }
        if self.own is None:
            return found
        spans = self.dollar_factors
        lives = {"own": self.own, "cheapest": self.best[0]} if self.best else {"own": self.own}
        return found | {
            "lifetime": {
                "served_tokens": self.served_tokens,
                **{name: _life_json(one, spans) for name, one in lives.items()},
            }
        }

    @property
    def dollar_factors(self) -> tuple[float, float]:
        """Lower and upper end of a dollar figure over the figure: it is inverse to tokens/s."""
        below, above = INTERVALS[self.formats.engine]["tokens_per_second"]
        return 1 / above, 1 / below


def _life_json(one: Life, spans: tuple[float, float]) -> dict[str, Any]:
    dollars = {name: figure.model_dump(mode="json") for name, figure in one.figures(spans).items()}
    return {"model": one.shape.name, "parameters": one.parameters, "tokens": one.tokens, "loss": one.loss, **dollars}


def told(
    shape: ModelShape,
    cluster: Cluster,
    traffic: Traffic,
    formats: Formats,
    *,
    tensor: int | None = None,
    speculation: Speculation | None = None,
    served_tokens: float | None = None,
    trained_on: float | None = None,
    mfu: float = USUAL_MFU,
) -> ServeTold:
    """Prices a model's serving, and with `served_tokens` its life.

    Raises:
        ThriftyError: as `deploy` and `cheapest_life`.
    """
    deployment, served = deploy(shape, cluster, traffic, formats, tensor=tensor, speculation=speculation)
    parts = served.step.parts()
    total = sum(parts.values())
    shares = {name: seconds / total for name, seconds in parts.items() if seconds > 0}
    own, best = None, []
    if served_tokens is not None:
        if shape.experts is not None:
            raise ThriftyError("the loss law is for dense models, not for mixtures of experts", where="--lifetime")
        tokens = TOKENS_PER_PARAMETER * total_parameters(shape) if trained_on is None else trained_on
        own = life(shape, tokens, served_tokens, cluster, traffic, formats, mfu)
        best = cheapest_life(shape, own.loss, served_tokens, cluster, traffic, formats, mfu)
    return ServeTold(
        shape=shape,
        cluster=cluster,
        traffic=traffic,
        formats=formats,
        deployment=deployment,
        served=served,
        figures=quote(served, formats.engine),
        limits=dict(sorted(shares.items(), key=lambda item: -item[1])),
        notes=tuple(_notes(cluster, formats, speculation)),
        served_tokens=served_tokens,
        own=own,
        best=tuple(best),
    )


def _notes(cluster: Cluster, formats: Formats, speculation: Speculation | None) -> Iterator[str]:
    rates = dict.fromkeys(cluster.accelerator.peak_flops, 0.0)
    rate = rate_name(formats.weights, rates)
    if STORED_BITS[formats.weights] < 16 and rate in ("bf16", "fp16"):
        yield f"{formats.weights} is how weights are stored; products run in {rate} on {cluster.accelerator.name}"
    if speculation is not None:
        yield f"a draft of {speculation.length} at rate {speculation.acceptance:g}: assumed by you, not measured"


def render(one: ServeTold, width: int) -> RenderableType:
    """The whole screen."""
    return Group(*_sections(one, width))


def _sections(one: ServeTold, width: int) -> Iterator[RenderableType]:
    figures, served, layout = one.figures, one.served, one.deployment
    yield Text(
        f"{one.shape.name} on {one.cluster.name}: {figures['tokens_per_second']}, "
        f"{figures['usd_per_million']} a million output tokens",
        style="bold",
    )
    data = f" x data {layout.data}" if layout.data > 1 else ""
    yield Text(
        f"{one.formats.engine}; tensor {layout.tensor}{data} x replicas {layout.replicas}; weights {layout.weights}, "
        f"cache {layout.kv}; {one.traffic.input_tokens:,.0f} tokens in, {one.traffic.output_tokens:,.0f} out; "
        f"{served.batch:,.0f} sequences at a time, {served.limit} allows {served.most:,.0f}",
        style="dim",
    )
    yield Text()
    yield _table(one)
    yield Text()
    named = ", ".join(f"{name} {share:.0%}" for name, share in one.limits.items() if share >= _LEAST_SHARE)
    yield Text(f"a step spends its time on: {named}")
    yield from (Text(f"note: {note}") for note in one.notes)
    if one.own is not None and one.served_tokens is not None:
        yield Text()
        yield from _lives(one, one.own, one.served_tokens)
    yield Text()
    price, grid, pue = one.cluster.price, one.cluster.grid, one.cluster.pue
    yield Text(f"assumed: {price} a device ({price.date or 'given'}), {grid}, PUE {pue}", style="dim")


_LINES = (
    ("first token of a prompt alone", "first_token", ""),
    ("between tokens, no prompt beside", "token_gap", ""),
    ("between tokens, mean", "token_gap_mean", ""),
    ("output tokens/s", "tokens_per_second", ""),
    ("requests/s", "requests_per_second", ""),
    ("watts of a device", "device_watts", ""),
    ("energy of a token, devices alone", "device_energy", ""),
    ("energy of a token, with hosts and PUE", "energy", ""),
    ("dollars a million output tokens", "usd_per_million", ""),
    ("CO2 a million output tokens", "co2_per_million", ""),
    ("weights on a device", "weight_bytes", ""),
    ("cache on a device", "kv_bytes", "of {free_bytes} free"),
)  # fmt: skip


def _table(one: ServeTold) -> Table:
    table = Table(box=None, pad_edge=False, show_header=True, header_style="bold")
    table.add_column("")
    table.add_column("predicted", justify="right")
    table.add_column("four in five within")
    for label, name, more in _LINES:
        figure = one.figures[name]
        span = f"{_shown(figure, figure.low)} to {_shown(figure, figure.high)}" if figure.low is not None else ""
        table.add_row(label, str(figure), span or more.format(**one.figures))
    return table


def _shown(figure: Figure, value: float | None) -> str:
    return "" if value is None else units.show(value, figure.unit)


def _lives(one: ServeTold, own: Life, served_tokens: float) -> Iterator[RenderableType]:
    spans = one.dollar_factors
    served = units.show(served_tokens, "token")
    yield Text(f"life: trained to loss {own.loss:.3f}, then {served} tokens served", style="bold")
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    for column in ("parameters", "trained on", "training", "serving", "together"):
        table.add_column(column, justify="right")
    lives = {"this model": own} | ({"cheapest size for that loss": one.best[0]} if one.best else {})
    for label, each in lives.items():
        dollars = each.figures(spans)
        table.add_row(
            label, units.show(each.parameters, "token"), units.show(each.tokens, "token"), str(dollars["training_usd"]),
            str(dollars["serving_usd"]), str(dollars["usd"]),
        )  # fmt: skip
    yield table
    if one.best and one.best[0].usd < own.usd:
        less = 1 - one.best[0].usd / own.usd
        yield Text(f"{less:.0%} less, by the loss law: training is paid once, serving with every token")
