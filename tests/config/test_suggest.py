"""Near misses: the error for an unknown name says what was probably meant."""

from __future__ import annotations

from musubi_core.config import nearest, unknown_key


def test_the_nearest_name_comes_first():
    assert nearest("learning_rat", ["learning_rate", "lr_scheduler", "seed"])[0] == "learning_rate"


def test_a_near_miss_is_offered():
    error = unknown_key("caption_extention", ["caption_extension", "batch_size"], where="set.toml")
    assert str(error) == "set.toml: unknown option 'caption_extention'. Did you mean caption_extension?"


def test_a_name_like_no_other_gets_the_list_when_the_list_is_short():
    error = unknown_key("zzz", ["b", "a"], where="set.toml", kind="key")
    assert str(error) == "set.toml: unknown key 'zzz'. Known: a, b."


def test_a_long_list_is_not_poured_over_the_user():
    error = unknown_key("zzz", [f"option_{number}" for number in range(100)], where="set.toml")
    assert str(error) == "set.toml: unknown option 'zzz'. None of the 100 known ones looks like it."
