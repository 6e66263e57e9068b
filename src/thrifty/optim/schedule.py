"""The learning rate at a step: linear warm-up, then cosine, warmup-stable-decay, or constant. No torch."""

from __future__ import annotations

import math

from thrifty.spec.recipe import Schedule


def learning_rate(schedule: Schedule, peak: float, step: int, total_steps: int) -> float:
    """Learning rate of optimizer step `step`, counted from 0, of `total_steps`.

    Warm-up: peak x (step + 1) / warmup_steps, so that the first step already moves. Then, with t in [0, 1] the share
    of the remaining steps that is done and r = final_ratio:

        cosine    peak x (r + (1 - r) (1 + cos(pi t)) / 2)              Loshchilov & Hutter 2017, arXiv:1608.03983
        wsd       peak, then linearly to peak x r over the last decay_fraction of all steps       arXiv:2404.06395
        constant  peak
    """
    if step < schedule.warmup_steps:
        return peak * (step + 1) / schedule.warmup_steps
    if schedule.name == "constant":
        return peak
    floor = schedule.final_ratio
    if schedule.name == "wsd":
        decay_steps = max(1, round(schedule.decay_fraction * total_steps))
        done = min(1.0, max(0.0, (step + 1 - (total_steps - decay_steps)) / decay_steps))
        return peak * (1 - (1 - floor) * done)
    done = min(1.0, (step - schedule.warmup_steps) / max(1, total_steps - schedule.warmup_steps))
    return peak * (floor + (1 - floor) * (1 + math.cos(math.pi * done)) / 2)
