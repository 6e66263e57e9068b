"""Which codec each unit of the gradients should take on a link, so that the target is reached soonest; or none.

Bits go where they save most error: reverse water-filling on the units' variances (Cover and Thomas, "Elements of
Information Theory", section 10.3.3), with the few formats that there are in place of a continuous rate. On the lower
convex hull of each unit's choices, one unit after the other takes the next step, the steepest first: Shoham and Gersho,
"Efficient bit allocation for an arbitrary set of quantizers", IEEE Trans. ASSP-36 (1988).

    error         e = sum n_i v_i nmse_i / sum n_i v_i
    step seconds  max(compute, bytes / link) + values through codecs / their speed
    time          (1 + STEPS_PER_ERROR e) step seconds, in units of the steps that an exact exchange needs
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

# How many more steps an error of the gradient's whole energy would cost, with error feedback. Two bits, which lose a
# fifth of the energy, took 1.03, 1.09 and 1.17 times the steps of fp32, four bits none: benchmarks/time_to_target.py,
# 2026-11-25, a model of a million parameters. It does not hold for what leaves values out: the largest 1/32 of every
# step, which lose about as much, did not come near the target. So these are no candidates.
STEPS_PER_ERROR = 0.45
LEAST_GAIN = 0.02  # ASSUMED: predictions are no better than that, so that a smaller gain is none
# Of one core, for what goes with a unit whatever its size; between two processes of a machine, 2026-11-25.
UNIT_SECONDS = 3e-3
HOPS = 2  # each value is encoded and decoded on its way to the sum, and the sum on its way back


@dataclass(frozen=True)
class Candidate:
    """A codec as far as its price goes.

    Args:
        codec: its text, as in `spec.codec`.
        bits: a value on the wire.
        nmse: squared error as a share of the energy.
        gvalues_per_s: encoded and decoded, by the device that does it.
    """

    codec: str
    bits: float
    nmse: float
    gvalues_per_s: float


@dataclass(frozen=True)
class Unit:
    """A tensor, or several that take the same codec: how many values, and their measured mean square."""

    name: str
    values: int
    variance: float


@dataclass(frozen=True)
class Decision:
    """The codec of every unit, and what comes of it beside 16-bit values.

    Args:
        codecs: by unit.
        sent_bytes: by a rank in a step.
        step_seconds: with these codecs.
        plain_seconds: with the baseline.
        steps: multiple of the steps that an exact exchange needs.
        gain: share of the time to the target that is saved.
    """

    codecs: dict[str, str]
    sent_bytes: float
    step_seconds: float
    plain_seconds: float
    steps: float
    gain: float


# Bits and errors: the largest of three steps of a training run (benchmarks/results/rate_distortion.json, 2026-11-25).
# Speeds: one core of a shared AMD EPYC (benchmarks/results/codec_speed.json, 2026-11-25).
BASELINE = Candidate("bf16", 16.0, 2.7e-6, 0.86)
CANDIDATES = (
    BASELINE,
    Candidate("int8", 8.06, 8.6e-5, 0.81),
    Candidate("int4", 4.25, 1.5e-2, 0.94),
    Candidate("int4 + zstd", 3.62, 1.5e-2, 0.41),
    Candidate("uniform(0.5) + zstd", 2.89, 1.9e-2, 0.19),
    Candidate("means2", 2.13, 0.20, 0.59),
)


def known(codec: str | None) -> Candidate | None:
    """The candidate of that text."""
    return next((one for one in CANDIDATES if one.codec == codec), None)


def coding_seconds(codec: str, values: int) -> float:
    """Seconds of one core to encode and decode so many values on both hops; of a codec that was not timed, as long as
    the slowest one takes."""
    found = known(codec)
    speed = found.gvalues_per_s if found else min(one.gvalues_per_s for one in CANDIDATES)
    return HOPS * values / (speed * 1e9)


def steps_factor(codec: str | None) -> float:
    """Multiple of the steps that an exact exchange needs; 1 where the codec's error is not known."""
    found = known(codec)
    return 1 + STEPS_PER_ERROR * found.nmse if found else 1.0


@dataclass(frozen=True)
class _Link:
    compute_seconds: float
    seconds_per_byte: float
    wire: float  # bytes that a rank sends for each byte of a payload
    energy: float


Choice = tuple[Candidate, ...]  # of every unit
Point = tuple[float, float, Candidate]  # seconds, share of the energy that is lost, and what does that


def choose(
    units: Sequence[Unit],
    *,
    link_bytes_per_s: float,
    compute_seconds: float,
    ranks: int = 2,
    candidates: Sequence[Candidate] = CANDIDATES,
    baseline: Candidate = BASELINE,
) -> Decision | None:
    """The codecs that reach the target soonest by an all-to-all and an all-gather, or None where 16 bits are as good.

    Args:
        units: of the gradient, with variances measured lately.
        link_bytes_per_s: of one rank, one way.
        compute_seconds: of a step, which the exchange overlaps with; codecs take the device's own time.
        ranks: that take part.
        candidates: to choose from; speeds are of the device at hand.
        baseline: what every rank would send otherwise.
    """
    energy = sum(unit.values * unit.variance for unit in units)
    if ranks < 2 or not units or energy <= 0:
        return None
    link = _Link(compute_seconds, 1 / link_bytes_per_s, 2 * (ranks - 1) / ranks, energy)
    plain = tuple(baseline for _ in units)
    best = min(_proposed(units, [*candidates, baseline], link), key=lambda choice: seconds(units, choice, link))
    best = _polished(units, best, [*candidates, baseline], link)
    gain = 1 - seconds(units, best, link) / seconds(units, plain, link)
    if gain < LEAST_GAIN:
        return None
    error, sent, coded = _totals(units, best, link)
    return Decision(
        {unit.name: taken.codec for unit, taken in zip(units, best, strict=True)},
        sent,
        step_seconds(compute_seconds, sent / link_bytes_per_s, coded),
        step_seconds(compute_seconds, *_link_and_codec(units, plain, link)),
        1 + STEPS_PER_ERROR * error,
        gain,
    )


def step_seconds(compute_seconds: float, link_seconds: float, codec_seconds: float) -> float:
    """Seconds of a step: the link runs beside the compute, codecs do not."""
    return max(compute_seconds, link_seconds) + codec_seconds


def seconds(units: Sequence[Unit], choice: Choice, link: _Link) -> float:
    """Time to the target, in seconds a step of an exact exchange."""
    error, _, _ = _totals(units, choice, link)
    return (1 + STEPS_PER_ERROR * error) * step_seconds(link.compute_seconds, *_link_and_codec(units, choice, link))


def said(decision: Decision | None) -> str:
    """The decision in a line or two."""
    if decision is None:
        return "compression off: 16-bit values reach the target as soon"
    units: dict[str, list[str]] = {}
    for unit, codec in decision.codecs.items():
        units.setdefault(codec, []).append(unit)
    shares = ", ".join(
        f"{codec} on {names[0] if len(names) == 1 else f'{len(names)} units'}" for codec, names in units.items()
    )
    return (
        f"compression on: {shares}\n"
        f"{decision.sent_bytes / 1e6:.3g} MB a step; a step takes {decision.step_seconds:.3g} s, not "
        f"{decision.plain_seconds:.3g} s; {100 * (decision.steps - 1):.1f}% more steps; "
        f"{100 * decision.gain:.0f}% less time to the target"
    )


def _totals(units: Sequence[Unit], choice: Choice, link: _Link) -> tuple[float, float, float]:
    """Share of the energy that is lost, bytes that a rank sends, and seconds of codecs."""
    pairs = list(zip(units, choice, strict=True))
    error = sum(unit.values * unit.variance * taken.nmse for unit, taken in pairs) / link.energy
    sent = link.wire * sum(unit.values * taken.bits / 8 for unit, taken in pairs)
    return error, sent, HOPS * sum(unit.values / (taken.gvalues_per_s * 1e9) for unit, taken in pairs)


def _link_and_codec(units: Sequence[Unit], choice: Choice, link: _Link) -> tuple[float, float]:
    _, sent, coded = _totals(units, choice, link)
    return sent * link.seconds_per_byte, coded


def _proposed(units: Sequence[Unit], candidates: Sequence[Candidate], link: _Link) -> Iterator[Choice]:
    """One candidate for all, and the allocations along the hull, from the fastest to the most exact.

    Time is the larger of two sums, with and without the link's seconds; a sweep that counts only a part of these finds
    allocations where both are equal.
    """
    yield from (tuple(one for _ in units) for one in candidates)
    for part in (1.0, 0.75, 0.5, 0.25, 0.0):
        hulls = [_hull(unit, candidates, link, part) for unit in units]
        taken = [hull[0] for hull in hulls]
        yield tuple(candidate for _, _, candidate in taken)
        steps = [
            ((after[0] - before[0]) / (before[1] - after[1]), place, after)
            for place, hull in enumerate(hulls)
            for before, after in pairwise(hull)
        ]
        for _, place, after in sorted(steps, key=lambda step: step[0]):
            taken[place] = after
            yield tuple(candidate for _, _, candidate in taken)


def _hull(unit: Unit, candidates: Sequence[Candidate], link: _Link, part: float) -> list[Point]:
    """Seconds, error and candidate of a unit's choices on the lower convex hull, the fastest first."""
    points = sorted(
        (
            (
                unit.values
                * (part * link.wire * link.seconds_per_byte * one.bits / 8 + HOPS / (one.gvalues_per_s * 1e9)),
                unit.values * unit.variance * one.nmse / link.energy,
                one,
            )
            for one in candidates
        ),
        key=lambda point: point[:2],
    )
    hull: list[Point] = []
    for point in points:
        if hull and point[1] >= hull[-1][1]:
            continue  # slower, and no better
        while len(hull) > 1 and _above(hull[-2], hull[-1], point):
            hull.pop()
        if hull and point[0] <= hull[-1][0]:
            hull.pop()
        hull.append(point)
    return hull


def _above(before: Point, middle: Point, after: Point) -> bool:
    """Whether `middle` lies on or above the line between the others."""
    return (middle[1] - before[1]) * (after[0] - before[0]) >= (after[1] - before[1]) * (middle[0] - before[0])


def _polished(units: Sequence[Unit], choice: Choice, candidates: Sequence[Candidate], link: _Link) -> Choice:
    """The choice after every change of one unit that still helps, in the units' order, until none does."""
    best = seconds(units, choice, link)
    improved = True
    while improved:
        improved = False
        for place in range(len(units)):
            for one in candidates:
                tried = (*choice[:place], one, *choice[place + 1 :])
                found = seconds(units, tried, link)
                if found < best * (1 - 1e-12):
                    choice, best, improved = tried, found, True
    return choice
