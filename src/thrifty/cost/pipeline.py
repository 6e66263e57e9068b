"""How long a pipeline takes for its microbatches, and what of it is idle: the bubble.

With p stages, m microbatches, v chunks a stage, and forward, input-gradient and weight-gradient times F, B and W of
one microbatch on the slowest stage, a stage is busy for m (F + B + W) and waits for

    gpipe, 1f1b     (p - 1) (F + B + W)             Huang et al. 2018, arXiv:1811.06965; Narayanan et al. 2021
    interleaved     (p - 1) (F + B + W) / v         Narayanan et al. 2021, arXiv:2104.04473
    zero_bubble     (p - 1) (F + B - W)             ZB-H1, Qi et al. 2023, arXiv:2401.10241
    zbv             (p - 1) (F + B - 2 W) / 2       Qi et al. 2024, arXiv:2405.15362: none where F = B = W
"""

from __future__ import annotations


def bubble_seconds(stages: int, schedule: str, chunks: int, forward: float, by_input: float, by_weight: float) -> float:
    """Idle time of a stage in one optimizer step.

    Args:
        forward: of one microbatch on the slowest stage, with what is computed again; likewise the gradients of inputs
            and of weights.
    """
    if stages == 1:
        return 0.0
    full = forward + by_input + by_weight
    idle = {
        "gpipe": full,
        "1f1b": full,
        "interleaved": full / chunks,
        "zero_bubble": forward + by_input - by_weight,
        "zbv": (forward + by_input - 2 * by_weight) / 2,
    }[schedule]
    return (stages - 1) * max(0.0, idle)
