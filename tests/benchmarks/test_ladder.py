"""The table of a ladder, and its job files: each differs from the one before."""

from __future__ import annotations

from itertools import pairwise

from ladder import JOBS, table
from thrifty.spec.load import read_layers


def test_ratios_are_paired_within_a_seed():
    rows = [("base", 1, 10.0, 2.0), ("fast", 1, 5.0, 1.9), ("base", 2, 20.0, 2.2), ("fast", 2, 4.0, 2.3),
            ("base", 3, 30.0, 2.1), ("fast", 3, 3.0, 2.0)]  # fmt: skip
    names = ("job", "seed", "seconds", "loss")
    runs = [dict(zip(names, row, strict=True)) | {"steps": 5, "tokens": 1e3} for row in rows]
    told = table(runs)
    assert "target 2.1000" in told
    assert "| fast | 2.0000 (1.9000 to 2.3000) | yes | 5 | 1k | 4.0 | 0.200 (0.100 to 0.500) |" in told


def test_each_row_lies_over_the_one_before():
    files = [read_layers(path).tree for path in JOBS]
    assert len(files) > 3
    for lower, upper in pairwise(files):
        changed = {key for key in upper["recipe"] if upper["recipe"][key] != lower["recipe"].get(key)}
        model = upper["job"]["model"] != lower["job"]["model"]
        assert changed or model
