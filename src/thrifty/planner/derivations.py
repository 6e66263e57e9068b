"""How each term of a bill is made: a formula as text, and the numbers that stand in it.

The numbers are results of the cost functions, figures of the cluster and choices of the recipe; nothing is computed
here that those do not give. `planner.terms` evaluates the formula, and its tests hold it against the bill.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from thrifty.cost import constants, flops
from thrifty.cost.energy import JOULES_PER_KWH
from thrifty.cost.params import total_parameters
from thrifty.cost.predict import mean_sent_by_link, worth_tokens
from thrifty.cost.ramped import phases
from thrifty.cost.run import checkpoint_seconds, checkpoints, evaluation_batches, evaluation_seconds
from thrifty.cost.traffic import Collective, evaluation_by_link
from thrifty.laws import loss as loss_law
from thrifty.laws import repetition
from thrifty.laws.ramp import total_sequences
from thrifty.planner.numbers import Derivation, Made, Number, modelled
from thrifty.spec import units
from thrifty.spec.plan import Plan


def derive(plan: Plan, term: str) -> Derivation:
    """How a term of the bill is made.

    Raises:
        KeyError: the bill has no such term.
    """
    family, _, key = term.partition(".")
    made = Made(plan)
    return _FAMILIES[family](made, key) if key else _TERMS[term](made)


def _slug(name: str) -> str:
    return name.replace(" ", "_").replace("-", "_")


def _sum(names: Iterable[str]) -> str:
    return " + ".join(names)


# ---- time


def _seconds(made: Made) -> Derivation:
    parts = [made.term(f"seconds_by_part.{name}", name) for name in made.run.parts]
    return Derivation(_sum(made.run.parts), tuple(parts))


def _step_seconds(made: Made) -> Derivation:
    numbers = _limits(made, made.run.step.limits)
    return Derivation(_sum(one.name for one in numbers), numbers, _pace(made))


def _limits(made: Made, names: Iterable[str]) -> tuple[Number, ...]:
    """What a step waits for, but for what is nothing."""
    found = {name: made.run.step.limits[name] for name in names}
    kept = {name: seconds for name, seconds in found.items() if seconds} or found
    return tuple(modelled(_slug(name), seconds, "s", "cost.step, a step") for name, seconds in kept.items())


def _pace(made: Made) -> tuple[str, ...]:
    """How fast computing goes, against the peak."""
    peak, step = _peak(made), made.run.step
    work = flops.model_flops_per_token(made.job.model, made.job.sequence_length)
    tokens = made.recipe.batch.sequences * made.job.sequence_length
    rate = work * tokens / _devices_used(made).value / step.compute
    shown = units.show(rate, "FLOP/s")
    return (f"while it computes, a device makes {shown} of model FLOPs, {rate / peak.value:.1%} of its peak",)


def _steps(made: Made) -> Derivation:
    if made.recipe.batch.ramp is not None:
        found = phases(made.job, made.recipe)
        source = f"laws.ramp: {len(found)} batches, {found[0].sequences} to {found[-1].sequences} sequences"
        return Derivation("steps_of_phases", (modelled("steps_of_phases", made.run.steps, "1", source),))
    if made.job.steps is not None:
        return Derivation("job_steps", (made.given("job_steps", made.job.steps, "job.steps"),))
    wanted = made.given("job_tokens", made.job.tokens or 0, "job.tokens", "token")
    return Derivation("ceil(job_tokens / (sequences * sequence_length))", (wanted, *_batch(made)))


def _batch(made: Made) -> tuple[Number, Number]:
    sequences = made.given("sequences", made.recipe.batch.sequences, "recipe.batch.sequences")
    return sequences, made.given("sequence_length", made.job.sequence_length, "job.sequence_length", "token")


def _tokens(made: Made) -> Derivation:
    if made.recipe.batch.ramp is not None:
        sequences = modelled("all_sequences", total_sequences(made.job, made.recipe), "1", "laws.ramp: of all phases")
        return Derivation("all_sequences * sequence_length", (sequences, _batch(made)[1]))
    return Derivation("steps * sequences * sequence_length", (made.term("steps"), *_batch(made)))


def _tokens_per_second(made: Made) -> Derivation:
    numbers = (made.term("tokens"), made.term("steps"), made.term("step_seconds"))
    return Derivation("tokens / (steps * step_seconds)", numbers)


# Which part of the bill a limit of the step belongs to, where its name does not say; the rest is computing.
_WAITS = ("communication", "traffic", "bubble")
_OTHERS = {"optimizer": ("optimizer",), "data": ("host",)}


def _part(made: Made, key: str) -> Derivation:
    if key in _PARTS:
        return _PARTS[key](made)
    limits = made.run.step.limits
    waits = [name for name in limits if any(word in name for word in _WAITS)]
    elsewhere = {name for names in _OTHERS.values() for name in names}
    belongs = {"communication": waits, "compute": [n for n in limits if n not in waits and n not in elsewhere]}
    numbers = _limits(made, belongs.get(key) or _OTHERS[key])
    details = _collectives(made.sent) if key == "communication" else _pace(made) if key == "compute" else ()
    waited = _sum(one.name for one in numbers)
    a_step = f"({waited})" if len(numbers) > 1 else waited
    return Derivation(f"steps * {a_step}", (made.term("steps"), *numbers), details)


def _startup(made: Made) -> Derivation:
    kind = made.cluster.accelerator.kind
    start = _constant("start", constants.STARTUP_SECONDS[kind], "imports, process groups, first kernels")
    if not made.recipe.compile:
        return Derivation("start", (start,))
    return Derivation(
        "start + compile", (start, _constant("compile", constants.COMPILE_SECONDS[kind], "torch.compile"))
    )


def _constant(name: str, seconds: float, what: str) -> Number:
    return Number(name, seconds, "s", "assumed", f"{what} (cost/constants.py)")


def _evaluation(made: Made) -> Derivation:
    each = modelled("each", evaluation_seconds(made.recipe, made.run.step), "s", "cost.run: forward passes")
    batches = evaluation_batches(made.recipe)
    note = f"each: {made.recipe.evaluation.sequences:,} sequences in {batches:,} forward passes of a rank"
    return Derivation("evaluations * each", (made.evaluations, each), (note,))


def _checkpoint(made: Made) -> Derivation:
    recipe = made.recipe
    times = made.given(
        "checkpoints", checkpoints(recipe, made.run.steps), "recipe.checkpoint.every_steps, and one at the end"
    )
    waiting = checkpoint_seconds(made.job, made.cluster, recipe)
    how = "a copy, written aside" if recipe.checkpoint.asynchronous else "written while training waits"
    return Derivation("checkpoints * each", (times, modelled("each", waiting, "s", f"cost.run: {how}")))


def _other(made: Made) -> Derivation:
    rest = [name for name in made.run.parts if name != "other"]
    numbers = [made.term(f"seconds_by_part.{name}", name) for name in rest]
    return Derivation(f"({_sum(rest)}) * (1 / goodput - 1)", (*numbers, made.figure("goodput")))


# ---- FLOPs


def _model_flops(made: Made) -> Derivation:
    shape, length = made.job.model, made.job.sequence_length
    attention = 3 * shape.layers * flops.attention_forward_flops(shape, length)
    matrices = (flops.model_flops_per_token(shape, length) - attention) / 6
    return Derivation(
        "tokens * (6 * matrix_parameters + attention)",
        (
            made.term("tokens"),
            modelled("matrix_parameters", matrices, "1", "cost.flops: that a token meets in products, the head's too"),
            modelled("attention", attention, "FLOP", "cost.flops: 3 x forward scores and values of a token"),
        ),
    )


def _hardware_flops(made: Made) -> Derivation:
    shape, length, recipe = made.job.model, made.job.sequence_length, made.recipe
    executed = flops.hardware_flops_per_token(shape, length, recipe.recompute)
    return Derivation(
        "tokens * executed + evaluations * evaluated * forward",
        (
            made.term("tokens"),
            modelled("executed", executed, "FLOP", f"cost.flops: a token, recompute {recipe.recompute}"),
            made.evaluations,
            made.given("evaluated", recipe.evaluation.sequences * length, "recipe.evaluation.sequences", "token"),
            modelled(
                "forward", flops.forward_flops_per_token(shape, length), "FLOP", "cost.flops: a third of a token's"
            ),
        ),
    )


def _mfu(made: Made) -> Derivation:
    numbers = (
        made.term("model_flops"),
        made.term("steps"),
        made.term("step_seconds"),
        _devices_used(made),
        _peak(made),
    )
    return Derivation("model_flops / (steps * step_seconds * devices * peak)", numbers)


def _devices_used(made: Made) -> Number:
    ranks = made.recipe.layout.ranks
    used = min(made.cluster.devices, ranks * made.cluster.devices_per_rank(ranks))
    return made.given("devices", used, "recipe.layout, of the cluster's")


def _peak(made: Made) -> Number:
    return made.figure(f"accelerator.peak_flops.{made.recipe.precision}", "peak")


# ---- memory and traffic


def _memory(made: Made, key: str) -> Derivation:
    value = made.run.memory.terms()[key]
    if key == "runtime":
        process = made.figure("accelerator.runtime_memory")
        if value == process.value:
            return Derivation("runtime_memory", (process,))
        work = modelled("workspaces", value - process.value, "byte", "cost.memory: what libraries keep")
        return Derivation("runtime_memory + workspaces", (process, work))
    source = made.plan.predicted.memory[key].source
    if key in ("activations", "logits"):
        tokens = made.recipe.batch.micro_sequences * made.job.sequence_length / made.recipe.layout.context
        held = made.given("tokens", tokens, "recipe.batch.micro_sequences x job.sequence_length", "token")
        each = modelled("bytes_each", value / tokens, "byte", f"cost.memory: {source}, a token")
        layers = (
            f"over {made.job.model.layers} layers: {units.show(value / tokens / made.job.model.layers, 'byte')} each"
        )
        return Derivation("tokens * bytes_each", (held, each), (layers,) if key == "activations" else ())
    total, ways = total_parameters(made.job.model), _ways(made, key)
    return Derivation(
        "parameters * bytes_each / ways",
        (
            made.given("parameters", total, "job.model"),
            modelled("bytes_each", value * ways / total, "byte", f"cost.memory: {source}, over the fullest rank"),
            made.given("ways", ways, "recipe.layout: ranks that share it"),
        ),
    )


def _ways(made: Made, key: str) -> int:
    """Ranks that share the parameters, gradients or optimizer states of one copy; buffers are of whole units."""
    layout = made.recipe.layout
    shared_from = {"parameters": 3, "gradients": 2, "optimizer": 1}
    sharded = layout.shard if key in shared_from and layout.zero >= shared_from[key] else 1
    return layout.pipeline * layout.tensor * sharded


def _peak_memory(made: Made) -> Derivation:
    used = made.run.memory
    always = ("parameters", "optimizer", "runtime")
    rest = used.peak - sum(getattr(used, name) for name in always)
    moment = modelled(
        "fullest_moment", rest, "byte", "cost.memory: gradients, activations, logits and buffers alive together"
    )
    numbers = [made.term(f"memory.{name}", name) for name in always]
    return Derivation(f"{_sum(always)} + fullest_moment", (*numbers, moment))


def _reserved_memory(made: Made) -> Derivation:
    used = made.run.memory
    kept = modelled(
        "kept_by_allocator", used.reserved / used.peak, "1", "cost.memory_constants: reserved over allocated"
    )
    return Derivation("peak_memory * kept_by_allocator", (made.term("peak_memory"), kept))


def _link_bytes(made: Made, link: str) -> Derivation:
    a_step = mean_sent_by_link(made.job, made.plan.cluster, made.recipe)[link]
    batches = evaluation_batches(made.recipe)
    an_evaluation = evaluation_by_link(made.sent, made.recipe, batches)[link]
    return Derivation(
        "steps * a_step + evaluations * an_evaluation",
        (
            made.term("steps"),
            modelled("a_step", a_step, "byte", "cost.traffic: sent by one rank"),
            made.evaluations,
            modelled("an_evaluation", an_evaluation, "byte", "cost.traffic: sent by one rank"),
        ),
        _collectives([one for one in made.sent if one.link == link]),
    )


def _collectives(sent: Iterable[Collective]) -> tuple[str, ...]:
    """Each kind of collective of a step; the time in all is without what hides it."""
    return tuple(
        f"{one.count:,.3g} x {one.kind} of {one.unit} ({one.phase}) over {one.group} ranks on {one.link}: "
        f"{units.show(one.sent_bytes, 'byte')} and {units.show(one.seconds, 's')} each"
        for one in sent
    )


# ---- energy, money, loss


def _energy(made: Made) -> Derivation:
    watts = [made.figure(f"accelerator.{name}") for name in ("idle_watts", "tdp_watts")]
    rest = [made.figure(name) for name in ("utilisation", "host_watts", "pue")]
    return Derivation(
        "(idle_watts + (tdp_watts - idle_watts) * utilisation + host_watts) * devices * seconds * pue",
        (*watts, *rest, made.devices, made.term("seconds")),
    )


def _usd(made: Made) -> Derivation:
    return Derivation("devices * price * seconds / 3600", (made.devices, made.figure("price"), made.term("seconds")))


def _co2(made: Made) -> Derivation:
    return Derivation(f"energy / {JOULES_PER_KWH:.0f} * grid", (made.term("energy"), made.figure("grid")))


def _loss(made: Made) -> Derivation:
    """By the published law; what a law of one's own says is taken as it stands in the plan, with that law's source."""
    loss, law, job = made.plan.predicted.loss, loss_law.PUBLISHED, made.job
    if loss is not None and not loss.source.startswith(law.source):
        return Derivation("law", (Number("law", loss.value, "nat/token", loss.provenance, loss.source),))
    c, total, tokens = law.of(None), total_parameters(job.model), made.plan.predicted.tokens.value
    tokens = worth_tokens(job, made.plan.recipe, tokens)
    size, data = loss_law.worth(law, total, tokens, job.data.unique_tokens)
    constants = {"E": c.E, "A": c.A, "B": c.B, "alpha": law.alpha, "beta": law.beta}
    fitted = [Number(name, value, "1", "published", law.source) for name, value in constants.items()]
    repeated = "job.model" if data == tokens else repetition.SOURCE
    name = made.plan.recipe.optimizer.name
    repeated += f"; tokens of adamw that {name}'s are worth" if name != "adamw" else ""
    counts = (made.given("parameters", size, repeated), made.given("tokens", data, repeated))
    return Derivation("E + A / parameters ** alpha + B / tokens ** beta", (*fitted, *counts))


_PARTS: dict[str, Callable[[Made], Derivation]] = {
    "startup": _startup,
    "evaluation": _evaluation,
    "checkpoint": _checkpoint,
    "other": _other,
}
_FAMILIES: dict[str, Callable[[Made, str], Derivation]] = {
    "seconds_by_part": _part,
    "memory": _memory,
    "link_bytes": _link_bytes,
}
_TERMS: dict[str, Callable[[Made], Derivation]] = {
    "seconds": _seconds,
    "step_seconds": _step_seconds,
    "steps": _steps,
    "tokens": _tokens,
    "tokens_per_second": _tokens_per_second,
    "model_flops": _model_flops,
    "hardware_flops": _hardware_flops,
    "mfu": _mfu,
    "peak_memory": _peak_memory,
    "reserved_memory": _reserved_memory,
    "energy": _energy,
    "usd": _usd,
    "co2": _co2,
    "loss": _loss,
}
