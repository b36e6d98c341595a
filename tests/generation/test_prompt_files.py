"""Prompt files: every flag and key of musubi-tuner, and everything that can be wrong with one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from musubi_core.config import ConfigError
from musubi_core.generation.prompt import Prompt
from musubi_core.generation.prompt_files import parse_line, read_prompts

LINE = (
    "A cat --w 832 --h 480 --f 81 --d 1234 --s 30 --g 6.5 --fs 7 --l 5 --lh 3.5 --ss unipc --n dark, wet "
    "--i a b.png --ei end.png --cn control.mp4 --ci one.png --ci two.png --of target_index=1,no_2x "
    "--mcrr 0.3 --mct 0.1 --mck 4"
)
TABLE = {
    "prompt": "A cat",
    "width": 832,
    "height": 480,
    "frame_count": 81,
    "seed": 1234,
    "sample_steps": 30,
    "guidance_scale": 6.5,
    "discrete_flow_shift": 7,
    "cfg_scale": 5,
    "cfg_scale_high": 3.5,
    "sample_solver": "unipc",
    "negative_prompt": "dark, wet",
    "image_path": "a b.png",
    "end_image_path": "end.png",
    "control_video_path": "control.mp4",
    "control_image_path": ["one.png", "two.png"],
    "one_frame": "target_index=1,no_2x",
    "magcache_retention_ratio": 0.3,
    "magcache_threshold": 0.1,
    "magcache_k": 4,
}
PROMPT = Prompt(
    text="A cat",
    width=832,
    height=480,
    frames=81,
    seed=1234,
    steps=30,
    guidance=6.5,
    flow_shift=7.0,
    cfg_scale=5.0,
    cfg_scale_high=3.5,
    sampler="unipc",
    negative_prompt="dark, wet",
    image=Path("a b.png"),
    end_image=Path("end.png"),
    control_video=Path("control.mp4"),
    control_images=(Path("one.png"), Path("two.png")),
    one_frame="target_index=1,no_2x",
    magcache_retention_ratio=0.3,
    magcache_threshold=0.1,
    magcache_k=4,
)


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_every_flag_of_a_line():
    assert parse_line(LINE, where="here") == PROMPT


def test_flags_are_read_in_any_case_and_quoted_paths_lose_their_quotes():
    prompt = parse_line('a cat --W 512 --D 7 --I "C:\\my pictures\\a.png"', where="here")
    assert (prompt.width, prompt.seed, prompt.image) == (512, 7, Path("C:\\my pictures\\a.png"))


def test_only_what_follows_two_dashes_is_a_flag():
    prompt = parse_line("I am D 12 of sci--fi, h 3 - w -- of 1990s", where="here")
    assert prompt == Prompt(text="I am D 12 of sci--fi, h 3 - w -- of 1990s")


def test_numbers_may_be_negative_and_a_negative_prompt_may_be_empty():
    prompt = parse_line("a cat --l -1.5 --n", where="here")
    assert (prompt.cfg_scale, prompt.negative_prompt) == (-1.5, "")


def test_a_line_may_consist_of_flags_alone():
    assert parse_line("--w 64", where="here") == Prompt(text="", width=64)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a cat --width 3", r"unknown flag '--width'.*--w"),
        ("a cat --ar 16:9", "unknown flag '--ar'"),
        ("a cat --w", "--w has no value; expected a whole number of pixels"),
        ("a cat --w big", "--w is big; expected a whole number of pixels"),
        ("a cat --s 1.5", "--s is 1.5; expected a whole number"),
        ("a cat --g nan", "--g is nan; expected a number"),
        ("a cat --mcrr 1.5", "--mcrr is 1.5; expected a number from 0 to 1"),
        ("a cat --mct -1", "--mct is -1; expected a number of at least 0"),
        ("a cat --mck -1", "--mck is -1; expected a whole number of at least 0"),
        ("a cat --mck 2.5", "--mck is 2.5; expected a whole number"),
        ("a cat --d 1e3", "--d is 1e3; expected a whole number"),
        ("a cat --w 64 --w 32", "--w is given twice"),
        ('a cat --i ""', "expected a path"),
    ],
)
def test_a_wrong_flag_is_named_with_its_place(tmp_path: Path, line: str, message: str):
    path = written(tmp_path, "prompts.txt", f"# comment\n\na dog --w 64\n{line}\n")
    with pytest.raises(ConfigError, match=message) as raised:
        read_prompts(path)
    assert "prompts.txt, line 4" in str(raised.value)


def test_lines_of_a_text_file(tmp_path: Path):
    path = tmp_path / "prompts.txt"
    path.write_bytes(("\ufeff" + LINE + "\r\n\r\n# not this\r\n  a dog\r\n").encode("utf-8"))
    assert read_prompts(path) == (PROMPT, Prompt(text="a dog"))


def test_every_key_of_json_and_texts_with_flags(tmp_path: Path):
    path = written(tmp_path, "prompts.json", json.dumps([TABLE, LINE, {**TABLE, "enum": 2}]))
    assert read_prompts(path) == (PROMPT, PROMPT, PROMPT)


def test_a_clip_to_begin_with_is_named_in_files(tmp_path: Path):
    path = written(tmp_path, "p.json", '[{"prompt": "a", "video_path": "a.mp4", "strength": 0.5}]')
    assert read_prompts(path) == (Prompt(text="a", video=Path("a.mp4"), strength=0.5),)


def test_a_subset_of_toml_wins_over_what_all_share(tmp_path: Path):
    text = """
        [prompt]
        width = 832
        seed = 1
        negative_prompt = "dark"
        [[prompt.subset]]
        prompt = "a cat"
        [[prompt.subset]]
        prompt = "a dog"
        seed = 2
        control_image_path = "one.png"
        no_resize_control = true
        """
    cat, dog = read_prompts(written(tmp_path, "prompts.toml", text))
    shared = {"width": 832, "negative_prompt": "dark"}
    assert cat == Prompt(text="a cat", seed=1, **shared)
    assert dog == Prompt(
        text="a dog", seed=2, control_images=(Path("one.png"),), resize_controls=False, **shared
    )


def test_toml_with_a_single_prompt_needs_no_subset(tmp_path: Path):
    path = written(tmp_path, "prompts.toml", '[prompt]\nprompt = "a cat"\nwidth = 64\n')
    assert read_prompts(path) == (Prompt(text="a cat", width=64),)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.csv", "a", r"\.txt, \.toml and \.json"),
        ("p.txt", "# only this\n\n", "holds no prompt"),
        ("p.json", "[]", "holds no prompt"),
        ("p.json", "{}", "holds no list"),
        ("p.json", "[1]", "prompt 1 is 1; expected a text"),
        ("p.json", '[{"prompt": "a", "widht": 3}]', "prompt 1: unknown key 'widht'.*width"),
        ("p.json", '[{"width": 3}]', "prompt 1 has no prompt"),
        ("p.json", '[{"prompt": "a", "width": true}]', "width is True; expected a whole number"),
        ("p.json", '[{"prompt": "a", "width": null}]', "width is None"),
        ("p.json", '[{"prompt": "a", "image_path": 3}]', "image_path is 3; expected a path"),
        ("p.json", '[{"prompt": "a", "no_resize_control": 1}]', "expected true or false"),
        ("p.json", "[", "not valid JSON"),
        ("p.toml", "a = 1", r"holds a; expected one table \[prompt\]"),
        ("p.toml", "[prompt]\nsubset = 3", "no list of tables"),
        ("p.toml", "[prompt", "not valid TOML"),
        ("p.toml", "[prompt]\nwidth = 3", "prompt 1 has no prompt"),
    ],
)
def test_a_bad_file_is_refused_with_the_place(tmp_path: Path, name: str, text: str, message: str):
    with pytest.raises(ConfigError, match=message) as raised:
        read_prompts(written(tmp_path, name, text))
    assert name in str(raised.value)


@pytest.mark.parametrize("name", ["none.txt", "none.toml", "none.json"])
def test_a_missing_file_is_named(tmp_path: Path, name: str):
    with pytest.raises(ConfigError, match=name):
        read_prompts(tmp_path / name)


def test_a_file_that_is_not_utf8_is_refused(tmp_path: Path):
    path = tmp_path / "prompts.txt"
    path.write_bytes("ein Käfer".encode("latin-1"))
    with pytest.raises(ConfigError, match="not UTF-8"):
        read_prompts(path)
