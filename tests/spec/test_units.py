"""Quantities with units: every documented form is read, a wrong unit is named, what is shown can be read back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thrifty.spec import units

READ = [
    ("80GiB", "bytes", 80 * 2**30),
    ("80GB", "bytes", 80e9),
    ("80 GB", "bytes", 80e9),
    ("512 MiB", "bytes", 512 * 2**20),
    ("4096", "bytes", 4096),
    ("1.5TiB", "bytes", 1.5 * 2**40),
    ("400Gbit/s", "bytes_per_second", 50e9),
    ("400Gbps", "bytes_per_second", 50e9),
    ("3.35TB/s", "bytes_per_second", 3.35e12),
    ("30min", "seconds", 1800),
    ("2h", "seconds", 7200),
    ("1.5 days", "seconds", 129600),
    ("1week", "seconds", 604800),
    ("25us", "seconds", 25e-6),
    ("25µs", "seconds", 25e-6),
    ("2.5usd", "usd", 2.5),
    ("$2.5", "usd", 2.5),
    ("$1,000", "usd", 1000),
    ("50 cents", "usd", 0.5),
    ("2.5usd/h", "usd_per_hour", 2.5),
    ("$2.5/h", "usd_per_hour", 2.5),
    ("2.5", "usd_per_hour", 2.5),
    ("160B tokens", "tokens", 160e9),
    ("160B", "tokens", 160e9),
    ("15.6T tokens", "tokens", 15.6e12),
    ("300k tok", "tokens", 300e3),
    ("1_000_000", "tokens", 1e6),
    ("1 token", "tokens", 1),
    ("989TFLOP/s", "flops_per_second", 989e12),
    ("989 TFLOPS", "flops_per_second", 989e12),
    ("2.25 PFLOP/s", "flops_per_second", 2.25e15),
    ("700W", "watts", 700),
    ("1.2kW", "watts", 1200),
    ("56g/kWh", "grams_per_kwh", 56),
    ("0.4 kg/kWh", "grams_per_kwh", 400),
    ("10%", "ratio", 0.1),
    ("3e-4", "ratio", 3e-4),
    (".5", "ratio", 0.5),
    ("-1", "ratio", -1),
    ("2k", "count", 2000),
    (3e-4, "ratio", 3e-4),
    (12, "count", 12),
]


@pytest.mark.parametrize(("text", "kind", "value"), READ)
def test_a_documented_form_is_read(text, kind, value):
    assert units.parse(text, kind) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize(
    ("text", "kind", "told"),
    [
        ("80GiB", "seconds", "measures bytes, not seconds"),
        ("5min", "bytes", "measures seconds"),
        ("700W", "usd_per_hour", "measures watts"),
        ("160B tokens", "watts", "measures tokens"),
        ("2.5usd/h", "usd", "measures usd per hour"),
        ("80GiBB", "bytes", "unknown unit 'GiBB'"),
        ("80gib", "bytes", "'GiB'"),
        ("400Gbits", "bytes_per_second", "'Gbit/s'"),
        ("5 minuets", "seconds", "'minutes'"),
        ("lots", "bytes", "'lots'"),
        ("", "tokens", "160B tokens"),
        ("1.2.3", "ratio", "unknown unit"),
        (True, "count", "True"),
        (float("inf"), "ratio", "finite"),
        (float("nan"), "ratio", "finite"),
        ("1e999", "ratio", "finite"),
        ("nan", "ratio", "'nan'"),
    ],
)
def test_a_wrong_quantity_is_refused_with_an_example(text, kind, told):
    with pytest.raises(ValueError, match=r"wants|unknown unit|measures") as caught:
        units.parse(text, kind)
    assert told in str(caught.value)


@given(st.sampled_from(sorted(units.KINDS)), st.floats(allow_nan=False, allow_infinity=False))
def test_a_number_in_its_base_unit_is_read_exactly(kind, value):
    assert units.parse(f"{value!r} {units.base_unit(kind)}", kind) == value
    assert units.parse(value, kind) == value


@given(st.data(), st.floats(min_value=1e-3, max_value=1e6))
def test_every_spelling_scales_by_its_factor(data, number):
    kind = data.draw(st.sampled_from(sorted(units.KINDS)))
    unit, factor = data.draw(st.sampled_from(sorted(units.KINDS[kind][1].items())))
    space = data.draw(st.sampled_from([" ", "  "]))
    assert units.parse(f"{number!r}{space}{unit}", kind) == pytest.approx(number * factor, rel=1e-9)


@given(
    st.sampled_from(["bytes", "bytes_per_second", "seconds", "usd", "usd_per_hour", "tokens", "flops_per_second"]),
    st.floats(min_value=1.0, max_value=1e15),
)
def test_what_is_shown_reads_back_to_about_the_same(kind, value):
    shown = units.show(value, units.base_unit(kind))
    assert units.parse(shown, kind) == pytest.approx(value, rel=0.006)


@pytest.mark.parametrize(
    ("value", "unit", "shown"),
    [
        (80 * 2**30, "byte", "80 GiB"),
        (3600, "s", "60 min"),
        (86400 * 3, "s", "3 days"),
        (0.0, "usd", "$0.00"),
        (1234567, "usd", "$1,234,567"),
        (0.0123, "usd", "$0.012"),
        (2.5, "usd/h", "$2.50/h"),
        (3.6e9, "J", "1 MWh"),
        (1.5e6, "g", "1.5 t"),
        (160e9, "token", "160B"),
        (999.7e3, "token", "1,000k"),
        (989e12, "FLOP/s", "989 TFLOP/s"),
        (700, "W", "700 W"),
        (369.5, "g/kWh", "370 g/kWh"),
    ],
)
def test_figures_are_shown_for_people(value, unit, shown):
    assert units.show(value, unit) == shown
