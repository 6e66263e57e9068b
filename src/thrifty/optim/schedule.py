"""The learning rate at a step, for any loop. No torch."""

from __future__ import annotations

from collections.abc import Callable

from thrifty.laws.schedule import rate_share
from thrifty.spec.schedule import Schedule


def learning_rate(schedule: Schedule, peak: float, step: float, total_steps: float) -> float:
    """Learning rate of optimizer step `step`, counted from 0, of `total_steps`: `laws.schedule.rate_share` x peak."""
    return peak * rate_share(schedule, step, total_steps)


def multiplier(name: str, total_steps: int, **settings: float) -> Callable[[int], float]:
    """The same as what `torch.optim.lr_scheduler.LambdaLR` wants: step to a factor of the optimizer's own rate.

    Args:
        name: cosine, wsd, linear, inverse_sqrt or constant.
        settings: warmup_steps, final_ratio, decay_fraction, as in `spec.schedule.Schedule`.

    Raises:
        pydantic.ValidationError: no such name or setting.
    """
    schedule = Schedule.model_validate({"name": name, **settings})
    return lambda step: rate_share(schedule, step, total_steps)
