"""What `generate` writes: pictures, clips, latents; and what is left after a stop or a slip."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from generate_stage import call, config_of, drawn, stop_after, tiny, values, write_lora
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from musubi_core.errors import BadFileError, ConfigError, MusubiError
from musubi_core.events import Event, Note, Preview, Progress
from musubi_core.generation.job import generate
from musubi_core.generation.memory import enough_memory
from musubi_core.models.registry import SPECS
from musubi_core.models.wan.tiny import write_tiny_variant

every = pytest.mark.parametrize("name", SPECS)
CLIPS = [name for name in SPECS if name != "flux_kontext"]


def picture(path: Path) -> np.ndarray:
    with Image.open(path) as opened:
        return np.asarray(opened.convert("RGB"))


def clip_facts(path: Path) -> tuple[int, float, dict[str, Any]]:
    """Frames, frame rate, and what the clip says of itself."""
    with av.open(path) as container:
        stream = container.streams.video[0]
        count = sum(1 for _ in container.decode(video=0))
        return count, float(stream.average_rate), json.loads(container.metadata["comment"])


@every
def test_a_single_frame_is_a_picture_that_says_what_it_was_made_of(name: str, tmp_path: Path):
    more = {} if name == "flux_kontext" else {"video_length": 1}
    found = drawn(name, tmp_path, **more)
    (path,) = found.written
    assert path.suffix == ".png"
    assert path.stem.endswith("_7"), "the seed is in the name"
    assert picture(path).shape == (64, 96, 3)
    with Image.open(path) as opened:
        assert set(opened.text) == {"musubi_core"}, "no key that ComfyUI would take for a graph"
        facts = json.loads(opened.text["musubi_core"])
    assert (facts["architecture"], facts["prompt"], facts["seed"], facts["steps"]) == (name, "a cat", 7, 2)
    assert facts["model"] == [tiny(name).dit.name]
    assert str(tmp_path) not in json.dumps(facts), "no folders"


@pytest.mark.parametrize(("name", "fps"), [("hunyuan_video", 24.0), ("wan", 16.0)])
def test_a_clip_has_the_models_own_rate_and_says_what_it_was_made_of(name: str, fps: float, tmp_path: Path):
    (path,) = drawn(name, tmp_path).written
    count, rate, facts = clip_facts(path)
    assert (path.suffix, count, rate) == (".mp4", 5, fps)
    assert (facts["prompt"], facts["seed"], facts["fps"]) == ("a cat", 7, fps)


def test_another_rate_may_be_asked_for_and_metadata_may_be_left_out(tmp_path: Path):
    (path,) = drawn("wan", tmp_path, fps=12, no_metadata=True).written
    with av.open(path) as container:
        assert float(container.streams.video[0].average_rate) == 12
        assert "comment" not in container.metadata
    latent, one = drawn("wan", tmp_path, no_metadata=True, output_type="both", video_length=1).written
    with safe_open(latent, "pt") as file:
        assert "musubi_core" not in (file.metadata() or {})
    with Image.open(one) as opened:
        assert not opened.text


def test_images_are_a_folder_of_the_frames(tmp_path: Path):
    found = drawn("wan", tmp_path, output_type="latent_images")
    latent, folder = found.written
    assert latent.name == f"{folder.name}_latent.safetensors"
    assert [path.name for path in sorted(folder.iterdir())] == [f"{number:04d}.png" for number in range(5)]


def test_a_latent_needs_no_vae(tmp_path: Path):
    options = values("wan", tmp_path, output_type="latent")
    del options["vae"]
    assert call("wan", options).latent.shape == (16, 2, 8, 12)


@every
def test_a_latent_decoded_later_is_the_very_same_picture(name: str, tmp_path: Path):
    direct = drawn(name, tmp_path / "direct", output_type="latent_images")
    latent, pictures = direct.written
    paths = sorted(pictures.iterdir()) if pictures.is_dir() else [pictures]
    later = call(
        name,
        {
            "latent_path": [latent],
            "vae": tiny(name).vae,
            "save_path": tmp_path / "later",
            "output_type": "images",
        },
    )
    (found,) = later.written
    assert found.stem == pictures.stem
    again = sorted(found.iterdir()) if found.is_dir() else [found]
    assert len(again) == len(paths)
    for one, other in zip(again, paths, strict=True):
        assert np.array_equal(picture(one), picture(other))
        assert one.read_bytes() == other.read_bytes(), "metadata too"


def test_a_latent_tells_what_its_vae_must_know(tmp_path: Path):
    """TI2V-5B has a VAE and a frame rate of its own, by its task."""
    files = write_tiny_variant(tmp_path, 1, task="ti2v-5B")
    options = {**values("wan", tmp_path / "a", output_type="latent"), **files.options}
    (latent,) = call("wan", {**options, "dit": files.dit, "vae": files.vae}).written
    given = {"latent_path": [latent], "vae": files.vae, "save_path": tmp_path / "b"}
    (clip,) = call("wan", given).written
    assert clip_facts(clip)[:2] == (5, 24.0)


def test_a_latent_of_musubi_tuner_is_decoded_with_the_architecture_named(tmp_path: Path):
    latent = drawn("wan", tmp_path / "a", output_type="latent").latent
    foreign = tmp_path / "foreign_latent.safetensors"
    save_file({"latent": latent[None].bfloat16()}, foreign)
    given = {"latent_path": [foreign], "vae": tiny("wan").vae, "save_path": tmp_path / "b"}
    with pytest.raises(ConfigError, match="does not tell which model it is for"):
        call("wan", given)
    (clip,) = call("wan", {**given, "architecture": "wan"}).written
    assert clip.name == "foreign.mp4"
    second = call("wan", {**given, "architecture": "wan"}).written[0]
    assert second.name == "foreign_2.mp4", "nothing is overwritten"


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"other": torch.zeros(1)}, "it has no tensor 'latent'"),
        ({"latent": torch.zeros(4)}, r"it has shape \[4\]"),
        ({"latent": torch.full((16, 1, 4, 4), torch.nan)}, "NaN or infinity"),
        ({"latent": torch.zeros(48, 1, 4, 4)}, r"shape \[48, 1, 4, 4\], but those of wan"),
        ({"latent": torch.zeros(16, 4, 4)}, r"channels, frames, height, width"),
    ],
)
def test_a_file_that_is_no_latent_is_refused(tmp_path: Path, tensors: dict[str, torch.Tensor], message: str):
    path = tmp_path / "x.safetensors"
    save_file(tensors, path)
    given = {"latent_path": [path], "vae": tiny("wan").vae, "save_path": tmp_path / "out"}
    with pytest.raises(BadFileError, match=message):
        call("wan", {**given, "architecture": "wan"})
    assert not (tmp_path / "out").exists()


def test_every_prompt_of_a_file_is_drawn_as_if_it_were_alone(tmp_path: Path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat\na dog --d 9 --h 32 --f 1\na cat\n", encoding="utf-8")
    options = values("wan", tmp_path / "all", from_file=prompts, output_type="latent")
    del options["prompt"]
    first, second, third = (load_file(path)["latent"] for path in call("wan", options).written)
    assert torch.equal(first, drawn("wan", tmp_path / "1", output_type="latent").latent)
    dog = drawn(
        "wan",
        tmp_path / "2",
        prompt="a dog",
        seed=9,
        video_size=[32, 96],
        video_length=1,
        output_type="latent",
    )
    assert torch.equal(second, dog.latent)
    assert torch.equal(third, first), "equal prompts have files of their own"


def test_prompts_typed_one_by_one(tmp_path: Path):
    lines = iter(["a cat", "a cat --x 3", "a cat --i nowhere.png", "a dog --d 8", ""])
    options = values("wan", tmp_path / "typed", interactive=True, video_length=1)
    del options["prompt"]
    found = call("wan", options, ask=lambda: next(lines))
    assert len(found.written) == 2
    assert "unknown flag '--x'" in found.lines, "a slip ends nothing"
    assert "nowhere.png" in found.lines
    (alone,) = drawn("wan", tmp_path / "alone", video_length=1).written
    assert np.array_equal(picture(found.written[0]), picture(alone))


def test_without_a_seed_one_is_taken_and_told(tmp_path: Path):
    options = values("wan", tmp_path, output_type="latent")
    del options["seed"]
    first, second = call("wan", options), call("wan", options)
    assert not torch.equal(first.latent, second.latent)
    seed = int(first.written[0].stem.split("_")[1])
    assert f"The seed is {seed}." in first.lines
    assert torch.equal(drawn("wan", tmp_path / "again", seed=seed, output_type="latent").latent, first.latent)


@pytest.mark.parametrize("name", CLIPS)
def test_sizes_that_cannot_be_drawn_are_corrected_with_a_line(name: str, tmp_path: Path):
    found = drawn(name, tmp_path, video_size=[70, 100], video_length=7, output_type="latent")
    assert found.latent.shape == (16, 2, 8, 12)
    for line in ("width 100 becomes 96", "height 70 becomes 64", "frames 7 becomes 5"):
        assert line in found.lines


@every
def test_a_stop_between_steps_leaves_no_file(name: str, tmp_path: Path):
    done: list[int] = []

    def emit(event: Event) -> None:
        if isinstance(event, Progress) and event.stage.startswith("draw") and event.done:
            done.append(event.done)

    config = config_of(name, values(name, tmp_path, output_type="both", infer_steps=4))
    assert generate(config, emit, should_stop=lambda: bool(done)) == ()
    assert done == [1], "the step at work was the last"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("calls", range(0, 12, 2))
def test_whenever_a_batch_is_stopped_files_are_whole_and_drawings_are_kept(calls: int, tmp_path: Path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat\na dog\n", encoding="utf-8")
    options = values("wan", tmp_path / "out", from_file=prompts, video_length=1)
    del options["prompt"]
    found = call("wan", options, stop_after(calls))
    there = sorted((tmp_path / "out").iterdir()) if (tmp_path / "out").exists() else []
    assert there == sorted(found.written)
    for path in there:
        if path.suffix == ".png":
            picture(path)
        else:
            assert load_file(path)["latent"].isfinite().all()
    assert "Stopped." in found.lines
    if any(path.suffix == ".safetensors" for path in there):
        assert "kept as latents" in found.lines


def test_previews_are_told_and_written_as_one_file(tmp_path: Path):
    found = drawn("wan", tmp_path, infer_steps=3, preview_latent_every=1, output_type="latent")
    shown = [event for event in found.events if isinstance(event, Preview)]
    assert [event.step for event in shown] == [1, 2, 3]
    assert shown[0].frames.shape == (2, 8, 12, 3)
    assert (tmp_path / "preview_latent.mp4").is_file()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"prompt": None}, "No prompt is given. Give one of --prompt, --from_file, --interactive"),
        ({"from_file": "p.txt"}, "--prompt and --from_file are given"),
        ({"prompt": None, "from_file": "p.doc"}, r"expected a file ending in \.txt"),
        ({"video_size": [64]}, "--video_size has 1 numbers. Give height and width"),
        ({"video_size": [8, 64]}, "height is 8 pixels; expected a multiple of 16"),
        ({"save_path": None}, "--save_path is missing"),
        ({"dit": None}, "--dit is missing"),
        ({"dit": "nowhere.safetensors"}, "nowhere.safetensors does not exist"),
        ({"vae": "nowhere.safetensors"}, "nowhere.safetensors does not exist"),
        ({"vae": None}, "The VAE was not given"),
        ({"t5": None}, "UMT5-XXL was not given"),
        ({"image_path": "nowhere.png"}, "start picture nowhere.png .* does not exist"),
        ({"fp8_scaled": True}, "--fp8_scaled needs --fp8"),
        ({"blocks_to_swap": 40}, "use 0 to 1"),
        ({"sample_solver": "euler9"}, "choose unipc"),
        ({"interactive": True, "prompt": None}, "needs someone to ask"),
        ({"latent_path": ["nowhere.safetensors"]}, "nowhere.safetensors does not exist"),
        ({"magcache_mag_ratios": "nowhere.json"}, "nowhere.json"),
    ],
)
def test_wrong_input_is_refused_and_nothing_is_written(tmp_path: Path, given: dict[str, Any], message: str):
    options = {**values("wan", tmp_path / "out"), **given}
    with pytest.raises((ConfigError, BadFileError), match=message):
        call("wan", {name: value for name, value in options.items() if value is not None})
    assert not list((tmp_path / "out").glob("*"))


def test_a_picture_in_place_of_a_vae_is_refused_before_text_is_encoded(tmp_path: Path):
    with pytest.raises(BadFileError, match="is not a Wan VAE") as raised:
        drawn("wan", tmp_path / "out", vae=tiny("wan").dit)
    assert "wan_t2v-14B_tiny" in str(raised.value)


class Failing:
    """A VAE that runs out of memory at the second drawing."""

    def __init__(self) -> None:
        self.calls = 0

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if self.calls == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return torch.zeros(1, 1, 64, 96, 3, dtype=torch.uint8)


def test_when_decoding_fails_the_drawings_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a\nb\nc\n", encoding="utf-8")
    options = values("wan", tmp_path / "out", from_file=prompts, video_length=1)
    del options["prompt"]
    monkeypatch.setattr("musubi_core.models.wan.latents.WanCodec", lambda *given, **more: Failing())
    with pytest.raises(MusubiError, match=r"Out of memory while decoding\. What helps"):
        call("wan", options)
    endings = sorted(path.suffix for path in (tmp_path / "out").iterdir())
    assert endings == [".png", ".safetensors", ".safetensors"]


def test_a_size_beyond_all_memory_is_an_error_that_says_what_helps(tmp_path: Path):
    with pytest.raises(MusubiError, match=r"Out of memory while drawing.*--video_size"):
        drawn("wan", tmp_path / "out", video_size=[16_000_000, 16_000_000], video_length=1)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("words", ["something else", "shapes cannot be multiplied"])
def test_other_failures_stay_what_they_are(words: str):
    with pytest.raises(RuntimeError, match=words), enough_memory("drawing", "nothing"):
        raise RuntimeError(words)


@pytest.mark.parametrize("merged", [False, True], ids=["drawing", "merging"])
def test_loading_can_be_stopped_and_leaves_nothing(merged: bool, tmp_path: Path):
    options = values("wan", tmp_path / "out")
    if merged:
        lora = write_lora("wan", tmp_path / "lora.safetensors")
        options |= {"save_merged_model": tmp_path / "merged.safetensors", "lora_weight": [lora]}
    events: list[Event] = []

    def stop() -> bool:
        return sum(isinstance(one, Progress) and one.stage == "load" for one in events) > 3

    assert generate(config_of("wan", options), events.append, stop) == ()
    assert any("still being loaded" in one.text for one in events if isinstance(one, Note))
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["lora.safetensors"] * merged
