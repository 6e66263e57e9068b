"""The critical batch: how many tokens one optimizer step can use before more of them are wasted.

McCandlish et al. 2018 (arXiv:1812.06162): a loss is reached in S steps of D = S B tokens with

    (S / S_min - 1) (D / D_min - 1) = 1,   that is  D / D_min = 1 + B / B_noise,   S / S_min = 1 + B_noise / B.

Where B is B_noise, both tokens and steps are twice the least. Zhang et al. 2024 (arXiv:2410.21676) trained models of
85M to 1.2B parameters on C4 and call critical the batch that needs 20% more steps than perfect scaling would:
B* = 22.91 D^0.47 tokens, whatever the model's size; so B_noise = 5 B*. Kaplan et al. 2020 (arXiv:2001.08361) put
B_noise at 2e8 L^(-1/0.21) tokens.
"""

from __future__ import annotations

FACTOR, EXPONENT = 22.91, 0.47
EXCESS_AT_CRITICAL = 0.2
KAPLAN_FACTOR, KAPLAN_EXPONENT = 2e8, 1 / 0.21
SOURCE = "Zhang et al. 2024 (arXiv:2410.21676), C4"


def critical_batch_tokens(tokens: float) -> float:
    """Tokens in one step at which a run of `tokens` needs 20% more of them than with small steps."""
    return float(FACTOR * tokens**EXPONENT)


def noise_batch_tokens(loss: float) -> float:
    """B_noise by Kaplan's law of the loss reached, in nats a token: twice the tokens, twice the steps."""
    return float(KAPLAN_FACTOR * loss**-KAPLAN_EXPONENT)


def overhead(batch: float, critical: float) -> float:
    """Tokens needed over the fewest that small steps would need: 1.2 at the critical batch.

    Args:
        batch: tokens in one optimizer step.
        critical: of `critical_batch_tokens`; a fifth of a noise scale.
    """
    return 1 + EXCESS_AT_CRITICAL * batch / critical


def steps_over_least(batch: float, critical: float) -> float:
    """Steps needed over the fewest that huge batches would need: 6 at the critical batch."""
    return 1 + critical / (EXCESS_AT_CRITICAL * batch)


def tokens_and_steps(least_tokens: float, batch: float, critical: float) -> tuple[float, float]:
    """What a run that would take `least_tokens` in small steps takes in steps of `batch` tokens."""
    tokens = least_tokens * overhead(batch, critical)
    return tokens, tokens / batch
