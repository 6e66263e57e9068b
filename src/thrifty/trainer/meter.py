"""The meter: what a run really takes, by part, added up over resumes; makes the measured Bill."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from thrifty.cost.flops import forward_flops_per_token, hardware_flops_per_token, model_flops_per_token
from thrifty.parallel.count import TrafficCounter
from thrifty.spec.bill import STEP_PARTS, TIME_PARTS, Bill
from thrifty.spec.figure import Figure, measured
from thrifty.spec.plan import Plan
from thrifty.trainer.energy import EnergyMeter
from thrifty.trainer.spent import Spent, idle, usd_per_second
from thrifty.trainer.world import World

_JOULES_PER_KWH = 3.6e6


class Meter:
    """Adds up seconds, energy, money and bytes of one rank, on top of what earlier runs of the same job took."""

    def __init__(
        self,
        plan: Plan,
        world: World,
        began: float,
        traffic: TrafficCounter,
        base: dict[str, Any] | None,
        before: Spent | None,
    ) -> None:
        """Starts the meter.

        Args:
            began: when this run was started, seconds since the epoch; what passed since then counts as start-up.
            base: `ledger()` of the checkpoint that is resumed from; None for a new run.
            before: what earlier attempts have spent (rank 0 knows). Work after their last checkpoint is lost, but it
                was paid for: its time counts as `other`.
        """
        self.plan, self.world, self.traffic = plan, world, traffic
        self._began = began
        self._base = base or {"parts": {}, "link_bytes": {}}
        self._before = (before or Spent()).at_least(self._base)
        self._startup = idle(plan.cluster, time.time() - began)
        self._parts: Counter[str] = Counter({"startup": self._startup.seconds})
        self._lapped: Counter[str] = Counter(self._parts)
        gpu = world.device.index if world.device.type == "cuda" else None
        self._energy = EnergyMeter(
            plan.cluster, devices=plan.cluster.devices_per_rank(world.size), local_ranks=world.local_size, gpu_index=gpu
        )
        self._joules = 0.0  # of all ranks, since this run began
        self._peak_flops = self._find_peak()

    def _find_peak(self) -> float:
        """Peak FLOP/s of the devices that the layout uses, in the compute dtype. Never another chip's."""
        chip, ranks = self.plan.cluster.accelerator, self.world.size
        peak = chip.peak_flops.get(self.plan.recipe.precision)
        return peak.value * ranks * self.plan.cluster.devices_per_rank(ranks) if peak else float("nan")

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Books the time of a block on a part; time blocked in collectives is booked on `communication`."""
        blocked, begin = self.traffic.blocked_seconds, time.perf_counter()
        try:
            yield
        finally:
            waited = self.traffic.blocked_seconds - blocked
            self._parts[name] += time.perf_counter() - begin - waited
            self._parts["communication"] += waited

    def lap(self) -> dict[str, float]:
        """Seconds of each part of a step since the last call."""
        found = {name: self._parts[name] - self._lapped[name] for name in STEP_PARTS}
        self._lapped = Counter(self._parts)
        return found

    def seconds_now(self) -> float:
        """Wall time of this run alone."""
        return time.time() - self._began

    def spent(self) -> Spent:
        """Wall time, $ and joules so far, over all attempts.

        joules = (devices of all ranks + host_watts x devices x seconds) x PUE, with devices at idle in start-up.
        """
        cluster, seconds = self.plan.cluster, self.seconds_now()
        stepping = cluster.host_watts.value * cluster.devices * (seconds - self._startup.seconds) + self._joules
        joules = self._startup.energy_joules + stepping * cluster.pue.value
        return self._before.plus(Spent(seconds, usd_per_second(cluster) * seconds, joules))

    def joules_of_rank(self) -> float:
        """This rank's device energy since the run began; the loop sums it over ranks and hands it to `set_joules`."""
        return self._energy.read().joules

    def set_joules(self, joules: float) -> None:
        self._joules = joules

    def mfu(self, tokens_per_second: float) -> float:
        """Model FLOPs per second over the peak of the devices in use."""
        return (
            tokens_per_second
            * model_flops_per_token(self.plan.job.model, self.plan.job.sequence_length)
            / self._peak_flops
        )

    def ledger(self) -> dict[str, Any]:
        """What a checkpoint carries on, so that a resumed run adds to it."""
        return {
            **self.spent()._asdict(),
            "parts": self._all_parts(),
            "link_bytes": dict(Counter(self._base["link_bytes"]) + self.traffic.link_bytes),
        }

    def _all_parts(self) -> dict[str, float]:
        parts = Counter(self._base["parts"]) + self._parts
        parts["other"] += self._before.seconds - float(self._base.get("seconds", 0.0))
        return dict(parts)

    def bill(
        self,
        *,
        steps: int,
        tokens: int,
        step_seconds: list[float],
        evaluated_tokens: float,
        memory: dict[str, float],
        peak_bytes: float,
        reserved_bytes: float,
        loss: float | None,
        tokens_in_loss: int,
    ) -> Bill:
        """The measured Bill.

        Args:
            step_seconds: of every step that counted, over all resumes.
            evaluated_tokens: tokens of all validation passes, for the hardware FLOPs.
            memory: bytes by term on the fullest rank.
            tokens_in_loss: target tokens of the last validation pass.
        """
        plan, cluster, job = self.plan, self.plan.cluster, self.plan.job
        (seconds, usd, energy), median = self.spent(), statistics.median(step_seconds) if step_seconds else 0.0
        parts = {name: self._all_parts().get(name, 0.0) for name in TIME_PARTS}
        parts["other"] += seconds - sum(parts.values())
        rate = tokens / steps / median if median else 0.0
        per_token = model_flops_per_token(job.model, job.sequence_length)
        executed = hardware_flops_per_token(job.model, job.sequence_length, plan.recipe.recompute) * tokens
        executed += forward_flops_per_token(job.model, job.sequence_length) * evaluated_tokens
        reading = self._energy.read()
        energy_kind: Any = reading.provenance
        how = f"{reading.method}, plus hosts {cluster.host_watts} a device, x PUE {cluster.pue.value:g}"
        clock, counted = "wall clock", "counted"
        on_cpu = self.world.device.type == "cpu"
        peak_kind = "measured" if cluster.accelerator.kind == "cpu" else "catalogued"
        return Bill(
            maker="measured",
            seconds=measured(seconds, "s", "wall clock, start-up to bill, over all resumes"),
            step_seconds=measured(median, "s", "median over steps"),
            seconds_by_part={name: measured(value, "s", clock) for name, value in parts.items()},
            steps=measured(steps, "1", counted),
            tokens=measured(tokens, "token", counted),
            tokens_per_second=measured(rate, "token/s", "tokens of a step over its median time"),
            model_flops=measured(per_token * tokens, "FLOP", "formula x counted tokens"),
            hardware_flops=measured(
                executed, "FLOP", "formula x counted tokens, recomputation and evaluation included"
            ),
            mfu=measured(self.mfu(rate), "1", f"against the {peak_kind} {plan.recipe.precision} peak"),
            memory={name: measured(value, "byte", "fullest rank") for name, value in memory.items()},
            peak_memory=measured(
                peak_bytes,
                "byte",
                "peak resident set" if on_cpu else "CUDA allocator, allocated, and context",
            ),
            reserved_memory=measured(
                reserved_bytes, "byte", "peak resident set" if on_cpu else "CUDA allocator, reserved, and context"
            ),
            link_bytes={
                link: measured(self.ledger()["link_bytes"].get(link, 0.0), "byte", "counted payloads x ring algorithm")
                for link in plan.predicted.link_bytes
            },
            energy=Figure(value=energy, unit="J", provenance=energy_kind, source=how),
            usd=measured(usd, "usd", f"wall clock x {cluster.devices} x {cluster.price} ({cluster.price.provenance})"),
            co2=Figure(
                value=energy / _JOULES_PER_KWH * cluster.grid.value,
                unit="g",
                provenance=energy_kind,
                source=f"energy x {cluster.grid}",
            ),
            loss=None if loss is None else measured(loss, "nat/token", f"validation, {tokens_in_loss} tokens"),
        )
