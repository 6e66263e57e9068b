"""The learning rate over a run, as a share of its peak."""

from __future__ import annotations

import math

from thrifty.spec.schedule import Schedule


def rate_share(schedule: Schedule, step: float, total_steps: float) -> float:
    """Share of the peak rate that optimizer step `step`, counted from 0, of `total_steps` has.

    Warm-up: (step + 1) / warmup_steps, so that the first step already moves. Then, with t in [0, 1] the share of the
    remaining steps that is done and r = final_ratio:

        cosine        r + (1 - r) (1 + cos(pi t)) / 2                     Loshchilov & Hutter 2017, arXiv:1608.03983
        linear        1 - (1 - r) t                                      Devlin et al. 2019, arXiv:1810.04805 (r = 0)
        wsd           1, then linearly to r over the last decay_fraction of all steps  Hu et al. 2024, arXiv:2404.06395
        inverse_sqrt  sqrt(w / (step + 1)), w = max(1, warmup_steps)      Vaswani et al. 2017, arXiv:1706.03762
        constant      1

    Args:
        step: need not be whole: where the batch grows, steps of the first batch are counted.
    """
    warmup = schedule.warmup_steps
    if step < warmup:
        return min(1.0, (step + 1) / warmup)
    if schedule.name == "constant":
        return 1.0
    if schedule.name == "inverse_sqrt":
        return math.sqrt(max(1, warmup) / (step + 1))
    floor = schedule.final_ratio
    if schedule.name == "wsd":
        decay_steps = max(1, round(schedule.decay_fraction * total_steps))
        done = min(1.0, max(0.0, (step + 1 - (total_steps - decay_steps)) / decay_steps))
        return 1 - (1 - floor) * done
    done = min(1.0, (step - warmup) / max(1, total_steps - warmup))
    if schedule.name == "linear":
        return 1 - (1 - floor) * done
    return floor + (1 - floor) * (1 + math.cos(math.pi * done)) / 2
