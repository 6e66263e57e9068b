"""Reasons to stop early: a signal, the budget, the deadline, the target loss."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

from thrifty.spec.units import show


class Limits:
    """Decides at each step boundary whether this rank wants to stop; the loop stops all ranks when any does.

    Args:
        budget_usd: stop before the run, resumes included, has cost more.
        deadline_seconds: stop before this run, from its start, has lasted longer.
    """

    def __init__(self, budget_usd: float | None = None, deadline_seconds: float | None = None) -> None:
        self.budget_usd, self.deadline_seconds = budget_usd, deadline_seconds
        self.signal_name: str | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Limits:
        """From here on SIGTERM and SIGINT stop at the next step boundary instead of at once."""
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal_name is not None and number == signal.SIGINT:
            raise KeyboardInterrupt  # the second Ctrl-C does not wait
        self.signal_name = signal.Signals(number).name

    def reason(self, *, usd: float, usd_per_second: float, seconds: float, ahead_seconds: float) -> str | None:
        """Why to stop now, or None.

        Args:
            usd: spent so far, resumes included.
            seconds: since this run began.
            ahead_seconds: what one more step and the final checkpoint will take.
        """
        if self.signal_name is not None:
            return self.signal_name
        if self.budget_usd is not None and usd + ahead_seconds * usd_per_second > self.budget_usd:
            return f"budget of {show(self.budget_usd, 'usd')}"
        if self.deadline_seconds is not None and seconds + ahead_seconds > self.deadline_seconds:
            return f"deadline of {show(self.deadline_seconds, 's')}"
        return None
