"""Which tensors go to which optimizer, and which decay: derived from names and shapes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

INSIDE = "blocks."  # of names of what lies between embedding and head


@dataclass(frozen=True)
class ParamGroup:
    """Tensors that one optimizer treats alike.

    Attributes:
        optimizer: `muon`, or the name that was asked for.
    """

    optimizer: str
    decays: bool
    names: tuple[str, ...]
    params: tuple[Tensor, ...]

    def __str__(self) -> str:
        values = sum(p.numel() for p in self.params)
        return f"{self.optimizer}, {'decay' if self.decays else 'no decay'}: {_said(self.names)}, {values:,} values"


def param_groups(
    named: Iterable[tuple[str, Tensor]], optimizer: str, *, inside: str | Sequence[str] = INSIDE, rest: str = "adamw"
) -> list[ParamGroup]:
    """Groups of a model's parameters.

    Matrices decay; norms and biases, which have one dimension, do not. Where the optimizer is `muon`, it takes the
    matrices inside the model: an embedding's rows are not mixed by it, and a head's gradient is dominated by few tokens
    (Jordan et al. 2024), so both go to `rest`, like all that is no matrix.

    Args:
        named: of `model.named_parameters()`.
        inside: how names of tensors inside the model begin.
    """
    found: dict[tuple[str, bool], list[tuple[str, Tensor]]] = {}
    begins = (inside,) if isinstance(inside, str) else tuple(inside)
    for name, p in named:
        taken = optimizer != "muon" or (p.ndim == 2 and name.startswith(begins))
        found.setdefault((optimizer if taken else rest, p.ndim >= 2), []).append((name, p))
    return [
        ParamGroup(who, decays, tuple(name for name, _ in some), tuple(p for _, p in some))
        for (who, decays), some in sorted(found.items(), key=lambda one: (one[0][0] != "muon", not one[0][1]))
    ]


def _said(names: Sequence[str]) -> str:
    """Names with layers left out, each kind once: `4 x blocks.*.mlp.up.weight`."""
    counts: dict[str, int] = {}
    for name in names:
        kind = ".".join("*" if part.isdigit() else part for part in name.split("."))
        counts[kind] = counts.get(kind, 0) + 1
    return ", ".join(kind if count == 1 and "*" not in kind else f"{count} x {kind}" for kind, count in counts.items())
