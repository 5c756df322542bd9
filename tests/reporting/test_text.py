import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lpe_jax.reporting.text import (
    display_width,
    file_stem,
    format_interval,
    format_rate,
    pad,
    printable,
    shorten,
    spreadsheet_safe,
)


@pytest.mark.parametrize(
    "log10_rate, text",
    [
        (math.log10(3.1e-5), "3.1e-05"),
        (math.log10(9.96e-3), "1.0e-02"),
        (math.log10(9.94e-3), "9.9e-03"),
        (-0.0001, "1"),
        (0.0, "1"),
        (-400.5, "3.2e-401"),
        (-math.inf, "0"),
        (math.nan, "unknown"),
    ],
)
def test_rates(log10_rate, text):
    assert format_rate(log10_rate) == text


@given(st.floats(-300, -1e-3))
def test_rates_read_back(log10_rate):
    assert float(format_rate(log10_rate, digits=9)) == pytest.approx(10**log10_rate, rel=1e-8)


def test_intervals():
    assert format_interval(-5, -6, -4) == "1.0e-05 [1.0e-06, 1.0e-04]"
    assert format_interval(-6, -math.inf, math.log10(0.03)) == "1.0e-06 [0, 3.0e-02]"
    assert format_interval(-math.inf, -math.inf, math.log10(3e-5)) == "≤ 3.0e-05"


def test_text_of_others_is_made_harmless():
    assert printable("a\x1b[31m\n\u202eb") == "a\\x1b[31m\\n\\u202eb"
    assert [spreadsheet_safe(t) for t in ("=1+1", "+1", "-1", "@x", "\tx", "x=1", "")] == [
        "'=1+1", "'+1", "'-1", "'@x", "'\tx", "x=1", "",
    ]  # fmt: skip
    for wide in ("＝1+1", "＋1", "－1", "＠x", "﹦1", "﹢1", "﹣1", "﹫x"):
        assert spreadsheet_safe(wide) == f"'{wide}", "a spreadsheet of East Asia takes them for the narrow ones"


def test_widths():
    assert display_width("abc") == 3 and display_width("日本") == 4 and display_width("e\u0301") == 1
    assert pad("日本", 6) == "日本  "
    assert shorten("abcdef", 6) == "abcdef" and shorten("abcdefg", 6) == "abcde…"
    assert shorten("日本語日本語", 6) == "日本…"


def test_file_stems_are_safe_and_kept_apart():
    ids = ["../../etc/passwd", "A b", "a-b", "a/b", "日本", "", "x" * 500, "nul\x00", "\ud800"]
    stems = [file_stem(prompt_id) for prompt_id in ids]
    assert len(set(stems)) == len(ids)
    for stem in stems:
        assert stem and len(stem) < 60 and set(stem) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
        assert not stem.startswith("-")
    assert file_stem("a-b") == "a-b-d44362d6"
