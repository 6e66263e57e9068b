"""How many fewer tokens an optimizer needs, by the size of the model."""

from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thrifty.catalog.gains import fewer_tokens
from thrifty.spec.recipe import Optimizer

NAMES = get_args(Optimizer.model_fields["name"].annotation)


@pytest.mark.parametrize(
    ("parameters", "factor", "provenance"),
    [
        (1e7, 1.4, "assumed"),  # below the smallest that was compared: the same is taken
        (1e8, 1.4, "published"),
        (10**8.539590623, 1.25, "published"),  # half way in the logarithm
        (1.2e9, 1.1, "published"),
        (14.4e9, 1.025, "assumed"),  # twelve times larger once more: a quarter of the excess
    ],
)
def test_muon_gains_less_the_larger_the_model(parameters: float, factor: float, provenance: str) -> None:
    found = fewer_tokens("muon", parameters)
    assert found.value == pytest.approx(factor, rel=1e-6)
    assert found.provenance == provenance
    assert "2509.02046" in found.source
    assert ("extrapolated" in found.source) == (provenance == "assumed")


@pytest.mark.parametrize("name", [name for name in NAMES if name != "muon"])
def test_no_other_claims_a_gain(name: str) -> None:
    found = fewer_tokens(name, 1e9)
    assert found.value == 1
    assert found.source


@given(st.floats(1e6, 1e13), st.floats(1.01, 10))
def test_a_larger_model_never_gains_more(parameters: float, times: float) -> None:
    assert 1 < fewer_tokens("muon", parameters * times).value <= fewer_tokens("muon", parameters).value + 1e-12
