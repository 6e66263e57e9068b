"""An exchange that, after a warm-up, takes for each unit the codec that reaches the target soonest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from thrifty.compress.codec import Identity
from thrifty.compress.exchange import Exchange
from thrifty.compress.fifo import Pending
from thrifty.compress.named import codec_of
from thrifty.cost.adaptive import BASELINE, Decision, Unit

Decide = Callable[[Sequence[Unit]], Decision | None]


class Adaptive:
    """Plain means for `warmup` steps, which are measured; then each unit's codec by `decide`, for good.

    Called like an `Exchange`; a step ends with `wait`. Means are the same bits on every rank of the group, so that all
    decide alike without asking each other. Where nothing pays, values go on in 16 bits.

    Args:
        exchange: whose group, feedback and thread are used. Its own codec and warm-up are not.
        decide: `cost.adaptive.choose`, given everything but the units.
        warmup: steps, at least one.

    Attributes:
        decision: what came of it; None before, and where compression is off.
        codecs: the text of each unit's codec, by its first tensor; empty before the decision.
    """

    def __init__(
        self, exchange: Exchange, decide: Decide, warmup: int, tell: Callable[[Decision | None], None] = lambda _: None
    ) -> None:
        self._base, self._decide, self._tell = exchange, decide, tell
        self._left = max(1, warmup)
        self._plain = exchange.sibling(Identity())
        self._by_codec: dict[str, Exchange] = {}
        self._seen: dict[str, Mapping[str, Tensor]] = {}
        self.decision: Decision | None = None
        self.codecs: dict[str, str] = {}

    def start(self, tensors: Mapping[str, Tensor]) -> Pending:
        """As `Exchange.start`."""
        unit = next(iter(tensors))
        if self._left:
            self._seen[unit] = tensors
            return self._plain.start(tensors)
        return self._of(self.codecs.get(unit, BASELINE.codec)).start(tensors)

    def wait(self) -> None:
        """As `Exchange.wait`; at the end of the warm-up it decides."""
        for one in (self._plain, *self._by_codec.values()):
            one.wait()
        if not self._left or not self._seen:
            return
        self._left -= 1
        if not self._left:
            self.decision = self._decide([_measured(name, tensors) for name, tensors in self._seen.items()])
            chosen = self.decision.codecs if self.decision is not None else {}
            self.codecs = {name: chosen.get(name, BASELINE.codec) for name in self._seen}
            self._tell(self.decision)
        self._seen = {}

    def mean(self, tensors: Mapping[str, Tensor]) -> None:
        """As `Exchange.mean`, of a step that has one unit."""
        self.start(tensors)
        self.wait()

    @property
    def kept_bytes(self) -> int:
        """Memory that error feedback takes on this rank."""
        return sum(one.kept_bytes for one in self._by_codec.values())

    def state_dict(self) -> dict[str, Tensor]:
        """As `Exchange.state_dict`; `settings` goes with it."""
        return {key: value for one in self._by_codec.values() for key, value in one.state_dict().items()}

    @property
    def settings(self) -> dict[str, Any]:
        """What is left of the warm-up, and the codecs."""
        return {"warmup": self._left, "codecs": self.codecs}

    def load(self, settings: Mapping[str, Any], state: Mapping[str, Tensor], units: Sequence[Sequence[str]]) -> None:
        """Goes on from `settings` and `state_dict`.

        Args:
            units: names of the tensors of each.
        """
        self._left, self.codecs = int(settings["warmup"]), dict(settings["codecs"])
        for codec in dict.fromkeys(self.codecs.values()):
            names = {name for unit in units if self.codecs.get(unit[0]) == codec for name in unit}
            mine = {key: value for key, value in state.items() if key.split("/", 1)[1].removesuffix("#scales") in names}
            self._of(codec).load_state_dict(mine)

    def reset(self) -> str:
        """Forgets errors, not the codecs; returns what to tell the user."""
        for one in self._by_codec.values():
            one.reset()
        return "error feedback starts from zero, and codecs are chosen anew"

    def close(self) -> None:
        """As `Exchange.close`."""
        self._base.close()

    def _of(self, codec: str) -> Exchange:
        if codec not in self._by_codec:
            self._by_codec[codec] = self._base.sibling(codec_of(codec))
        return self._by_codec[codec]


def _measured(name: str, tensors: Mapping[str, Tensor]) -> Unit:
    """A unit's values and mean square, of means that every rank has alike."""
    square, values = 0.0, 0
    for tensor in tensors.values():
        local = tensor.to_local() if hasattr(tensor, "to_local") else tensor
        square += float(local.double().square().sum())
        values += local.numel()
    return Unit(name, values, square / max(1, values))
