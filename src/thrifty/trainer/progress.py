"""The progress line: rank 0 only; one line that is redrawn on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any, TextIO

from thrifty.spec.units import show


class Progress:
    """Prints where a run stands, with ETA and money."""

    def __init__(
        self, total_steps: int, memory_capacity: float, predicted_usd: float, *, stream: TextIO | None = None
    ) -> None:
        self._total, self._capacity, self._usd = total_steps, memory_capacity, predicted_usd
        self._stream = stream or sys.stderr
        self._tty = self._stream.isatty()
        self._last = 0.0
        self._interval = 0.2 if self._tty else 10.0

    def show(self, row: dict[str, Any], eta_seconds: float) -> None:
        """Prints a training row when it is time to; always the first and the last step."""
        now = time.monotonic()
        if now - self._last < self._interval and row["step"] < self._total:
            return
        self._last = now
        self._write(self.line(row, eta_seconds))

    def line(self, row: dict[str, Any], eta_seconds: float) -> str:
        """`step 120/1200 10% loss 3.214 41k tok/s mfu 38% mem 1.2/24GiB $0.02/$0.19 eta 3m`"""
        gib = 2.0**30
        return (
            f"step {row['step']}/{self._total} {row['step'] / self._total:.0%} loss {row['loss']:.3f} "
            f"{show(row['tokens_per_second'], 'token')} tok/s mfu {row['mfu']:.0%} "
            f"mem {row['memory_bytes'] / gib:.1f}/{self._capacity / gib:.0f}GiB "
            f"{show(row['usd'], 'usd')}/{show(max(self._usd, row['usd']), 'usd')} eta {show(eta_seconds, 's')}"
        )

    def note(self, text: str) -> None:
        """A line of its own, kept on the screen."""
        self._stream.write(("\r\033[K" if self._tty else "") + text + "\n")
        self._stream.flush()

    def _write(self, line: str) -> None:
        self._stream.write(f"\r\033[K{line}" if self._tty else line + "\n")
        self._stream.flush()

    def close(self) -> None:
        """Leaves the last line standing."""
        if self._tty and self._last:
            self._stream.write("\n")
            self._stream.flush()
