"""network_args, optimizer_args, lr_scheduler_args: key=value, read as literals and never evaluated."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from musubi_core.config import ConfigError, parse_key_values


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("4", 4),
        ("0.01", 0.01),
        ("(0.9,0.95)", (0.9, 0.95)),
        ("0.9,0.95", (0.9, 0.95)),
        ("True", True),
        ("true", True),
        ("None", None),
        ("none", None),
        ("'quoted'", "quoted"),
        ("fast", "fast"),
        ("", ""),
        (r"[r'.*single_blocks\.\d{2}\.linear.*']", [r".*single_blocks\.\d{2}\.linear.*"]),
        ("日本語", "日本語"),
    ],
)
def test_values_are_python_literals_or_text(text: str, value: object):
    assert parse_key_values([f"key={text}"], where="--network_args") == {"key": value}


def test_only_the_first_equals_sign_separates():
    assert parse_key_values(["include_patterns=['a=b']"], where="t") == {"include_patterns": ["a=b"]}


@pytest.mark.parametrize("item", ["verbose", "=3", "a b=3", ""])
def test_an_item_that_is_no_key_and_value_is_named(item: str):
    with pytest.raises(ConfigError, match=r"--optimizer_args: .* is not of the form key=value"):
        parse_key_values([item], where="--optimizer_args")


def test_a_key_given_twice_is_an_error():
    with pytest.raises(ConfigError, match="rank is given twice"):
        parse_key_values(["rank=1", "rank=2"], where="t")


def test_code_stays_text():
    code = "__import__('os').getcwd()"
    assert parse_key_values([f"key={code}"], where="t") == {"key": code}


@given(st.text())
def test_any_text_is_read_or_refused_with_our_error(text: str):
    key, sign, _ = text.partition("=")
    readable = bool(sign) and key.strip().isidentifier() and key.strip() != "other"
    try:
        parse_key_values([text, f"other={text}"], where="t")
    except ConfigError:
        assert not readable
    else:
        assert readable
