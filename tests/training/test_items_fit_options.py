"""What an architecture says of options and cached items is heard before anything is loaded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_arch import FAKE, FakeOptions, config_for, write_workplace

from musubi_core.config import LatentShape
from musubi_core.errors import BadFileError, ConfigError
from musubi_core.training.run import train


def never_loaded(request: Any) -> Any:
    raise AssertionError("the network was loaded")


SPEC = replace(FAKE, load=never_loaded)


def test_an_item_that_lacks_what_the_options_need_is_named_with_the_remedy(tmp_path: Path):
    def unfit(shapes: Any, options: FakeOptions) -> str:
        return "has no wings, which --guidance_scale 3 needs." if options.guidance_scale == 3 else ""

    place = write_workplace(tmp_path)
    spec = replace(SPEC, unfit=unfit)
    with pytest.raises(AssertionError, match="the network was loaded"):
        train(config_for(place), spec=spec)
    with pytest.raises(BadFileError) as caught:
        train(replace(config_for(place), arch_options=FakeOptions(guidance_scale=3.0)), spec=spec)
    words = str(caught.value)
    assert words.startswith(str(tmp_path / "cache" / "item0"))
    assert words.endswith("has no wings, which --guidance_scale 3 needs. Run musubi cache-latents again.")


def test_items_are_judged_by_the_shapes_of_their_own_tensors(tmp_path: Path):
    seen: list[dict[str, tuple[int, ...]]] = []

    def unfit(shapes: Any, options: FakeOptions) -> str:
        seen.append(dict(shapes))
        return "is too wide." if shapes["latents"][-1] == 6 else ""

    with pytest.raises(BadFileError, match=r"item0[56]_.* is too wide"):
        train(config_for(write_workplace(tmp_path)), spec=replace(SPEC, unfit=unfit))
    assert {"latents": (4, 1, 4, 6), "llm": (6,)} in seen


def test_what_the_model_file_tells_is_settled_before_items_are_judged(tmp_path: Path):
    place = write_workplace(tmp_path)

    def settle(dit: Path, options: FakeOptions) -> FakeOptions:
        assert dit == place["dit"]
        return replace(options, guidance_scale=5.0)

    def unfit(shapes: Any, options: FakeOptions) -> str:
        return f"does not fit {options.guidance_scale:g}."

    with pytest.raises(BadFileError, match="does not fit 5"):
        train(config_for(place), spec=replace(SPEC, settle=settle, unfit=unfit))


def test_a_model_file_that_contradicts_the_options_ends_the_run(tmp_path: Path):
    def settle(dit: Path, options: FakeOptions) -> FakeOptions:
        raise ConfigError(f"{dit} is of another task.")

    with pytest.raises(ConfigError, match="of another task"):
        train(config_for(write_workplace(tmp_path)), spec=replace(SPEC, settle=settle))


def test_caches_are_expected_in_the_geometry_that_the_options_mean(tmp_path: Path):
    other = LatentShape(
        architecture="other", short="other", channels=4, spatial=16, temporal=4, pixel_step=32, fps=24.0
    )
    spec = replace(SPEC, latent_for=lambda options: other)
    with pytest.raises(ConfigError, match=r"has no other caches.*another architecture \(ending in fake\)"):
        train(config_for(write_workplace(tmp_path)), spec=spec)
