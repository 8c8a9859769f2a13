from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chainctl.spec.duration import (
    DURATION,
    SPAN,
    parse_duration,
    parse_span,
    render_duration,
)


@pytest.mark.parametrize(
    ("word", "seconds"),
    [("250ms", 0.25), ("90s", 90), ("10m", 600), ("6h", 21_600), ("30d", 2_592_000), ("0s", 0)],
)
def test_units(word: str, seconds: float) -> None:
    assert parse_duration(word) == seconds
    assert render_duration(seconds) == word


@pytest.mark.parametrize("word", ["", "10", "10 m", "m", "1.5h", "-1s", "1h30m", "1000000s", "1S"])
def test_what_is_no_time(word: str) -> None:
    assert not re.fullmatch(DURATION, word)
    with pytest.raises(ValueError, match="unit"):
        parse_duration(word)


def test_spans() -> None:
    assert parse_span("6h-24h") == (21_600, 86_400)
    assert parse_span("12h") == (43_200, 43_200)
    assert re.fullmatch(SPAN, "6h-24h")
    with pytest.raises(ValueError, match="write `6h-1d`"):
        parse_span("1d-6h")


@given(st.integers(0, 999_999), st.sampled_from(["ms", "s", "m", "h", "d"]))
def test_what_is_rendered_is_read_again(number: int, unit: str) -> None:
    seconds = parse_duration(f"{number}{unit}")
    assert parse_duration(render_duration(seconds)) == seconds
