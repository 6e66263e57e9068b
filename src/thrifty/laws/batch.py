"""Batch size and learning rate from the compute of a run: the fits of DeepSeek LLM 2024 (arXiv:2401.02954, section 3).

    B = 0.2920 C^0.3271 tokens,   lr = 0.3118 C^-0.1250

for AdamW, C being the FLOPs of the blocks over the whole run, fitted on 1e17 to 2e19 FLOPs and tried by its authors
at 7B and 67B. Below that range the law asks for large batches and few steps; `LEAST_STEPS` holds against it.
"""

from __future__ import annotations

BATCH_FACTOR, BATCH_EXPONENT = 0.2920, 0.3271
LR_FACTOR, LR_EXPONENT = 0.3118, -0.1250
SOURCE = "DeepSeek, arXiv:2401.02954"
LEAST_STEPS = 1000
# Adam's learning rate goes with the root of the batch up to about the critical batch (Malladi et al. 2022,
# arXiv:2205.10287); beyond the optimum the gain is smaller, so the step up is bounded.
MOST_LR_SCALE = 1.5


def optimal_batch_tokens(flops: float) -> float:
    """Tokens in one optimizer step that reach the lowest loss.

    Args:
        flops: of the whole run, without embeddings and head.
    """
    return float(BATCH_FACTOR * flops**BATCH_EXPONENT)


def optimal_batch_for_steps(flops_per_token: float, steps: int) -> float:
    """The same where steps are given: B = a (F S B)^b solved for B, the run having S x B tokens."""
    without = BATCH_FACTOR * (flops_per_token * steps) ** BATCH_EXPONENT
    return float(without ** (1 / (1 - BATCH_EXPONENT)))


def learning_rate(flops: float, batch_tokens: float) -> float:
    """Peak learning rate for a batch that may differ from the optimal one.

    Args:
        flops: of the whole run, without embeddings and head.
        batch_tokens: in one optimizer step.
    """
    scale = min(MOST_LR_SCALE, (batch_tokens / optimal_batch_tokens(flops)) ** 0.5)
    return float(LR_FACTOR * flops**LR_EXPONENT * scale)
