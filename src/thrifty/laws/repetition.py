"""What data seen more than once is worth: Muennighoff et al. 2023 (arXiv:2305.16264).

    D' = U + U R* (1 - exp(-R / R*)),   R = D / U - 1 repetitions of U unique tokens,   R* = 15.39

The first few repetitions count almost as new tokens; past some sixteen they count as nothing. Parameters beyond those
that the unique tokens can fill decay alike, with R* = 5.31. Both were fitted on C4 with models of up to 9B parameters.
"""

from __future__ import annotations

import math

REPEATED_TOKENS = 15.39
EXCESS_PARAMETERS = 5.31
SOURCE = "repeated data by Muennighoff et al. 2023 (arXiv:2305.16264)"


def decayed(unique: float, used: float, halting: float) -> float:
    """What `used` is worth where only `unique` of it is new; `halting` is R*."""
    repeated = max(0.0, used / unique - 1)
    return min(used, unique) + unique * halting * -math.expm1(-repeated / halting)


def effective_tokens(unique: float, seen: float) -> float:
    """Unique tokens that would teach as much as `seen` tokens of `unique` ones."""
    return decayed(unique, seen, REPEATED_TOKENS)


def effective_parameters(parameters: float, enough: float) -> float:
    """Parameters that count, where `enough` is the compute-optimal size for the unique tokens."""
    return decayed(enough, parameters, EXCESS_PARAMETERS)


def seen_for(unique: float, worth: float) -> float | None:
    """Tokens to see for what `worth` new ones would teach; None: endless repetition does not. Inverse of the above."""
    if worth <= unique:
        return worth
    spent = (worth / unique - 1) / REPEATED_TOKENS
    return None if spent >= 1 else unique * (1 - REPEATED_TOKENS * math.log1p(-spent))
