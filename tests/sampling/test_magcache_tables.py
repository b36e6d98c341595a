"""Ratios that are shipped, read, chosen and written."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from musubi_core.errors import ConfigError
from musubi_core.sampling.magcache_config import SkipRule
from musubi_core.sampling.magcache_tables import (
    FORMAT,
    RatioTable,
    read_tables,
    shipped_tables,
    table_for,
    tables_text,
)

ENTRY: dict[str, Any] = {"architecture": "a", "variant": "b", "steps": 3, "ratios": {"cond": [1.0, 1.1, 0.9]}}
TABLE = RatioTable(
    architecture="a",
    variant="b",
    ratios={"cond": (1.0, 1.1, 0.9), "uncond": (1.0, 1.2, 0.8)},
    experts=("low",),
    recommended=SkipRule(threshold=0.1, k=2, retention=0.3),
    source="measured",
    details={"latent": [16, 1, 2]},
)


def written(path: Path, *entries: Any, **changes: Any) -> Path:
    path.write_text(json.dumps({"format": FORMAT, "tables": list(entries), **changes}), encoding="utf-8")
    return path


def test_shipped_ratios_are_one_per_step_and_begin_with_one():
    for table in shipped_tables():
        for branch, ratios in table.ratios.items():
            assert ratios[0] == 1.0, (table.name, branch)
            assert len(ratios) == table.steps
            assert all(0.2 < ratio < 3.0 for ratio in ratios)
        assert table.source


def test_shipped_ratios_are_part_of_the_package():
    assert files("musubi_core.sampling").joinpath("magcache_ratios.json").is_file()


def test_reading_them_needs_no_torch():
    code = (
        "import sys; from musubi_core.sampling.magcache_tables import shipped_tables; shipped_tables(); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_tables_survive_a_file(tmp_path: Path):
    path = tmp_path / "ratios.json"
    path.write_text(tables_text([TABLE]), encoding="utf-8")
    assert read_tables(path) == (TABLE,)


def test_a_branch_without_ratios_takes_those_of_the_prompt():
    alone = RatioTable(architecture="a", variant="b", ratios={"cond": (1.0, 0.9)})
    assert alone.of("uncond") == (1.0, 0.9)
    assert TABLE.of("uncond") == (1.0, 1.2, 0.8)


@pytest.mark.parametrize(("steps", "taken"), [(4, 10), (14, 10), (15, 20), (16, 20), (99, 20)])
def test_the_table_of_the_nearest_number_of_steps_is_taken(steps: int, taken: int):
    tables = [RatioTable(architecture="a", variant="b", ratios={"cond": (1.0,) * n}) for n in (10, 20)]
    found = table_for(tables, "a", "b", steps)
    assert found is not None and found.steps == taken


def test_another_models_table_is_never_taken():
    assert table_for([TABLE], "a", "other", 3) is None
    assert table_for([TABLE], "other", "b", 3) is None


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (7, "table 1 is 7; expected architecture, variant, steps and ratios"),
        ({**ENTRY, "ratios": {"uncond": [1.0]}}, "must hold a list named 'cond'"),
        ({**ENTRY, "ratios": [1.0, 1.1, 0.9]}, "must hold a list named 'cond'"),
        ({**ENTRY, "ratios": {"cond": [1.0, "x", 0.9]}}, "not a list of numbers"),
        ({**ENTRY, "ratios": {"cond": [1.0, True, 0.9]}}, "not a list of numbers"),
        ({**ENTRY, "steps": 4}, "has 3 ratios for 4 steps"),
        ({**ENTRY, "ratios": {"cond": [1.0, -0.1, 0.9]}}, "ratio 2 is -0.1; expected a positive number"),
        ({**ENTRY, "variant": None}, '"variant" is None; expected a text'),
        ({**ENTRY, "recommended": {"threshold": 1}}, "expected k, retention, threshold"),
        ({**ENTRY, "recommended": {"threshold": "x", "k": 1, "retention": 0}}, "expected k, retention, thr"),
        ({**ENTRY, "experts": 3}, '"experts" is 3; expected a list of texts'),
        ({**ENTRY, "details": 3}, '"details" is 3; expected a table'),
    ],
)
def test_a_broken_table_is_refused_by_name(tmp_path: Path, entry: Any, message: str):
    with pytest.raises(ConfigError, match=re.escape(message)) as refused:
        read_tables(written(tmp_path / "ratios.json", entry))
    assert "ratios.json" in str(refused.value)


def test_other_files_are_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="is no file of magnitude ratios"):
        read_tables(written(tmp_path / "other.json", ENTRY, format="else"))
    with pytest.raises(ConfigError, match="holds no tables"):
        read_tables(written(tmp_path / "empty.json"))
    with pytest.raises(ConfigError, match="does not exist"):
        read_tables(tmp_path / "missing.json")
