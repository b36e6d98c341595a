"""Locale files and help pages belong to the nodes that are there."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from node_texts import PAGES, TABLES, english, locale_file, page, tables

AGAIN = "run: python tests/nodes/node_texts.py"
JAPANESE = re.compile(r"[\u3040-\u30ff\u4e00-\u9fff]")


def locale(language: str) -> dict[str, Any]:
    return json.loads(locale_file(language).read_text(encoding="utf-8"))


def leaves(tree: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Every text of a locale with its place."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, (*path, key))
        else:
            yield (*path, key), value


def test_the_english_locale_says_what_the_schemas_say(pack: dict[str, Any]):
    assert locale("en") == english(pack["found"]), AGAIN


def test_every_node_has_a_page_with_text_by_hand_and_tables_of_today(pack: dict[str, Any]):
    for name, node in pack["found"].items():
        text, _, _ = page(name).read_text(encoding="utf-8").partition(TABLES)
        assert text.startswith(f"# {node['display']}\n"), name
        assert len(text) > 200, f"{name}: a page says more than the description"
        assert page(name).read_text(encoding="utf-8") == text + tables(node), f"{name}: {AGAIN}"


def test_every_page_belongs_to_a_node(pack: dict[str, Any]):
    assert {each.name for each in PAGES.iterdir()} <= set(pack["found"])


def test_japanese_has_every_node_and_no_key_that_english_lacks():
    own, theirs = dict(leaves(locale("en"))), dict(leaves(locale("ja")))
    assert not set(theirs) - set(own)
    for name in locale("en"):
        for key in ("display_name", "description"):
            assert JAPANESE.search(theirs.get((name, key), "")), f"{name}: {key}"


def test_no_japanese_tooltip_is_left_in_english():
    for path, text in leaves(locale("ja")):
        assert path[-1] == "name" or JAPANESE.search(text), path


def test_no_text_holds_signs_that_the_front_end_would_replace():
    """Its translations read braces, @ and | as commands."""
    for language in ("en", "ja"):
        for path, text in leaves(locale(language)):
            assert not set(text) & set("{}@|"), (language, path)
