"""The rows of the benchmark of optimizers, on a model of one layer that is narrow."""

from __future__ import annotations

import sys
import time

import pytest
import torch

import optimizer_speed


def few():
    params = [torch.nn.Parameter(torch.randn(64, 128)), torch.nn.Parameter(torch.randn(64))]
    for p in params:
        p.grad = torch.randn_like(p)
    return params


def test_rows_say_what_a_state_takes_and_how_long_beside_the_base():
    params = few()
    arms = {name: (make, params) for name, make in optimizer_speed.MATRICES.items()}
    arms |= {name: (make, optimizer_speed.narrowed(params)) for name, make in optimizer_speed.NARROW.items()}
    slow = {"AdamW8bit": 1}
    rows = optimizer_speed.measure(arms, optimizer_speed.FUSED, 3, slow, time.perf_counter)
    assert rows[optimizer_speed.FUSED]["ratio"] == 1.0
    assert rows["AdamW8bit"]["repeats"] == 1
    assert rows["AdamW4bit"]["repeats"] == 3
    # The 64 values that are small keep 8 bytes each, and each tensor 4 bytes of a step count.
    known = {"AdamW": 8, "AdamW, 16-bit moments": 4, "AdamW8bit": 2 + 4 / 256, "AdamW4bit": 1 + 4 / 64}
    for name, each in known.items():
        held = (64 * 128 * each + 64 * 8 + 8) / (64 * 129)
        assert rows[name]["state_bytes_per_parameter"] == pytest.approx(held, abs=1e-4)


def test_what_cannot_be_imported_is_told(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    monkeypatch.setitem(sys.modules, "torchao.optim", None)
    assert optimizer_speed.peers() == {}
    told = capsys.readouterr().err
    assert "NOT MEASURED: bitsandbytes" in told
    assert "NOT MEASURED: torchao" in told
