"""CONTRIBUTING.md draws the map that the code is tested against."""

from __future__ import annotations

import re
from pathlib import Path

from test_rooms import LEAVES, MAY_IMPORT

PAGE = Path(__file__).parents[1] / "CONTRIBUTING.md"


def test_the_map_of_the_rooms_is_the_tested_one():
    rows = re.findall(r"^\| (`.*`) \| .* \| (.*) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    drawn = {room: places for rooms, places in rows for room in re.findall(r"`(\w+)`", rooms)}
    assert set(drawn) == set(MAY_IMPORT)
    for room, places in drawn.items():
        if room in LEAVES:
            continue
        allowed = set(MAY_IMPORT) - {room} if places == "everything" else set(places.split(", ")) - {"-"}
        assert allowed == MAY_IMPORT[room], room
