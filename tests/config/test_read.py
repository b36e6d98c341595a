"""TOML and JSON files, as people really write them."""

from __future__ import annotations

from pathlib import Path

import pytest

from musubi_core.config import ConfigError, read_config, read_json, read_toml


def test_windows_paths_quotes_and_other_alphabets_survive(tmp_path: Path):
    file = tmp_path / "設定 file.toml"
    file.write_text(
        'folder = \'D:\\sets\\my cats\'\nname = "O\'Neil \\"x\\""\ntitle = "猫と犬"\n', encoding="utf-8"
    )
    assert read_toml(file) == {"folder": "D:\\sets\\my cats", "name": 'O\'Neil "x"', "title": "猫と犬"}


def test_a_byte_order_mark_of_a_windows_editor_is_no_error(tmp_path: Path):
    file = tmp_path / "a.toml"
    file.write_bytes(b"\xef\xbb\xbfseed = 1\r\n")
    assert read_toml(file) == {"seed": 1}


def test_a_windows_path_in_double_quotes_gets_its_remedy(tmp_path: Path):
    file = tmp_path / "a.toml"
    file.write_text('folder = "C:\\sets\\unknown"\n', encoding="utf-8")
    with pytest.raises(ConfigError, match=r"not valid TOML.*single quotes: 'C:\\sets\\cats'"):
        read_toml(file)


def test_a_missing_file_and_one_in_another_encoding_are_named(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"nowhere\.toml does not exist"):
        read_toml(tmp_path / "nowhere.toml")
    (tmp_path / "sjis.toml").write_bytes('title = "猫"'.encode("shift_jis"))
    with pytest.raises(ConfigError, match=r"sjis\.toml is not UTF-8 text"):
        read_toml(tmp_path / "sjis.toml")


def test_a_folder_instead_of_a_file_is_our_error(tmp_path: Path):
    with pytest.raises(ConfigError, match="cannot be read"):
        read_toml(tmp_path)


def test_broken_json_names_line_and_column(tmp_path: Path):
    file = tmp_path / "a.json"
    file.write_text('{"a": 1,\n "b": }', encoding="utf-8")
    with pytest.raises(ConfigError, match=r"a\.json is not valid JSON.*line 2 column 7"):
        read_json(file)


def test_a_config_is_one_table_in_a_toml_or_json_file(tmp_path: Path):
    (tmp_path / "list.json").write_text("[1]", encoding="utf-8")
    with pytest.raises(ConfigError, match="holds a list; expected a table"):
        read_config(tmp_path / "list.json")
    (tmp_path / "a.yaml").write_text("a: 1", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"ending in \.toml or \.json"):
        read_config(tmp_path / "a.yaml")
    (tmp_path / "upper.JSON").write_text('{"a": 1}', encoding="utf-8")
    assert read_config(tmp_path / "upper.JSON") == {"a": 1}
