"""Run folders of runs that never ran."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from synthetic_runs import write_run


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """`make_run(name, ...) -> path`: `synthetic_runs.write_run` into this test's own folder."""
    return partial(write_run, tmp_path)
