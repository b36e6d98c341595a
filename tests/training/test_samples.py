"""Samples while training: the pictures that `generate` draws, and a training that does not notice them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from musubi_core.config import build, options_of
from musubi_core.errors import ConfigError
from musubi_core.events import Event, FileWritten, Metrics, Note, Preview, Warned
from musubi_core.generation.config import GenerateConfig, arch_options
from musubi_core.generation.job import generate
from musubi_core.models.registry import SPECS, architecture
from musubi_core.models.spec import TinyFiles
from musubi_core.training.cache_config import CacheLatentsConfig, CacheTextConfig
from musubi_core.training.cache_jobs import cache_latents, cache_text
from musubi_core.training.config import TrainConfig
from musubi_core.training.requests import Requests
from musubi_core.training.run import train


def own(cls: type, files: TinyFiles) -> Any:
    known = {info.name for info in options_of(cls)}
    return build(cls, {k: v for k, v in files.options.items() if k in known}, where="the test")


class Place:
    """Two cached pictures, a prompt file, and the tiny model of an architecture."""

    def __init__(self, root: Path, name: str) -> None:
        self.root, self.spec = root, architecture(name)
        self.files = self.spec.write_tiny(root / "models", 0)
        media, controls = root / "media", root / "controls"
        for folder in (media, controls):
            folder.mkdir()
        for number, grey in enumerate((60, 180)):
            for folder in (media, controls):
                Image.new("RGB", (32, 48), (grey, 90, 30)).save(folder / f"p{number}.png")
            (media / f"p{number}.txt").write_text(f"picture {number}", encoding="utf-8")
        takes = name == "flux_kontext"
        self.dataset = root / "dataset.toml"
        self.dataset.write_text(
            "[general]\nresolution = [32, 48]\ncaption_extension = '.txt'\n[[datasets]]\n"
            f"image_directory = '{media.as_posix()}'\ncache_directory = '{(root / 'cache').as_posix()}'\n"
            + (f"control_directory = '{controls.as_posix()}'\n" if takes else ""),
            encoding="utf-8",
        )
        # a control picture keeps its size: the usual one for it is a million pixels
        control = {"control_image_path": [str(controls / "p0.png")], "no_resize_control": True}
        prompts = [
            {"prompt": "a red ball", "width": 32, "height": 48, "sample_steps": 3, "seed": 11},
            {"prompt": "two cats", "width": 32, "height": 32, "sample_steps": 2, "cfg_scale": 3.0},
        ]
        self.prompts = root / "prompts.json"
        told = [{**one, "frame_count": 1, **(control if takes else {})} for one in prompts]
        self.prompts.write_text(json.dumps(told), encoding="utf-8")
        common = {"dataset_config": self.dataset, "architecture": name, "device": "cpu"}
        latent, text = own(self.spec.latent_options, self.files), own(self.spec.text_options, self.files)
        cache_latents(
            replace(
                build(CacheLatentsConfig, {**common, "vae": self.files.vae}, where=""), arch_options=latent
            )
        )
        cache_text(replace(build(CacheTextConfig, common, where=""), arch_options=text))
        self.encoders = SimpleNamespace(latent=latent, text=text)

    def config(self, out: str, **options: Any) -> TrainConfig:
        values = {
            "dit": self.files.dit,
            "vae": self.files.vae,
            "dataset_config": self.dataset,
            "output_dir": self.root / out,
            "output_name": "lora",
            "network_dim": 2,
            "learning_rate": 0.05,
            "mixed_precision": "no",
            "seed": 3,
            "max_train_steps": 4,
            "timestep_sampling": "shift",
            **options,
        }
        config = build(TrainConfig, values, where="the test")
        return replace(config, arch_options=own(self.spec.train_options, self.files), encoders=self.encoders)

    def run(self, out: str, **options: Any) -> list[Event]:
        events: list[Event] = []
        train(self.config(out, **options), events.append)
        return events

    def lora(self, out: str, name: str = "lora") -> dict[str, torch.Tensor]:
        return load_file(self.root / out / f"{name}.safetensors")

    def generated(self, lora: Path, **options: Any) -> np.ndarray:
        """The first prompt as `generate` draws it with a finished LoRA beside the layers."""
        values = {
            "dit": self.files.dit,
            "vae": self.files.vae,
            "device": "cpu",
            "mixed_precision": "no",
            "from_file": self.prompts,
            "lora_weight": [lora],
            "lora_mode": "runtime",
            "save_path": self.root / "drawn",
        }
        config = build(GenerateConfig, values, where="the test")
        high = [lora] if "dit_high_noise" in options else []
        config = replace(
            config,
            arch_options=arch_options(self.spec, **self.files.options, **options),
            loras=replace(config.loras, lora_weight_high_noise=tuple(high)),
        )
        first, *_ = generate(config)
        return np.asarray(Image.open(first))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Place]:
    made: dict[str, Place] = {}

    def get(name: str) -> Place:
        if name not in made:
            made[name] = Place(tmp_path_factory.mktemp(name), name)
        return made[name]

    return get


@pytest.mark.parametrize("name", SPECS)
def test_samples_are_the_pictures_of_generate_and_the_training_does_not_notice_them(place, name):
    here: Place = place(name)
    plain = here.run("plain", save_every_n_steps=2)
    drawn = here.run(
        "drawn",
        save_every_n_steps=2,
        sample_prompts=here.prompts,
        sample_every_n_steps=2,
        sample_at_first=True,
    )
    for file in ("lora", "lora-step00000002"):
        ours, theirs = here.lora("drawn", file), here.lora("plain", file)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)

    def losses(events: list[Event]) -> list[float]:
        return [event.values["loss/current"] for event in events if isinstance(event, Metrics)]

    assert losses(drawn) == losses(plain)

    previews = [event for event in drawn if isinstance(event, Preview)]
    assert [(one.step, one.details["number"]) for one in previews] == [
        (step, number) for step in (0, 2, 4) for number in (0, 1)
    ]
    samples = sorted(path.name for path in (here.root / "drawn" / "samples").iterdir())
    assert samples == sorted(one.details["file"] for one in previews)
    assert samples[0] == "lora-step00000000_00_11.png"
    for step, lora in ((2, "lora-step00000002"), (4, "lora")):
        ours = next(one.frames[0] for one in previews if one.step == step)
        theirs = here.generated(here.root / "plain" / f"{lora}.safetensors")
        assert np.array_equal(ours, theirs)
    first, last = (np.asarray(p.frames[0], np.int64) for p in (previews[0], previews[-2]))
    assert np.abs(first - last).max() > 0, "the LoRA shows"


def test_both_networks_of_a_pair_draw(place, tmp_path):
    here: Place = place("wan")
    pair = {"task": "t2v-A14B", "dit_high_noise": here.spec.write_tiny(tmp_path, 9).dit}
    found = {}
    for boundary in (0.2, 0.8):
        given = {**pair, "timestep_boundary": boundary}
        config = here.config(f"pair {boundary}", sample_prompts=here.prompts, sample_every_n_steps=4)
        config = replace(config, arch_options=build(here.spec.train_options, given, where="the test"))
        events: list[Event] = []
        train(config, events.append)
        sample = next(event.frames[0] for event in events if isinstance(event, Preview))
        lora = config.saving.output_dir / "lora.safetensors"
        assert np.array_equal(sample, here.generated(lora, **given))
        found[boundary] = sample
    assert not np.array_equal(found[0.2], found[0.8])


def test_samples_say_what_they_were_made_of(place):
    here: Place = place("hunyuan_video")
    events = here.run("told", sample_prompts=here.prompts, sample_every_n_epochs=2)
    written = [event.path for event in events if isinstance(event, FileWritten) and event.what == "sample"]
    assert [path.name[:17] for path in written] == ["lora-step00000004"] * 2, "one round for each due step"
    with Image.open(written[0]) as picture:
        text = picture.info["musubi_core"]
    for word in ('"prompt": "a red ball"', '"seed": 11', '"step": 4', '"lora": "lora"'):
        assert word in text


def test_a_prompt_without_a_seed_keeps_one_for_the_whole_run(place):
    here: Place = place("hunyuan_video")
    events = here.run("seeds", sample_prompts=here.prompts, sample_every_n_steps=2)
    seeds = {event.details["seed"] for event in events if isinstance(event, Preview)}
    assert seeds == {11, 4}, "the second prompt has the seed of the run and its place in the file"


def test_whoever_asks_gets_samples_at_the_next_step_and_only_once(place):
    here: Place = place("hunyuan_video")
    requests, events = Requests(), []

    def listen(event: Event) -> None:
        events.append(event)
        if isinstance(event, Metrics) and event.step == 1:
            requests.ask("sample")

    train(here.config("asked", sample_prompts=here.prompts), listen, requests=requests)
    assert [event.step for event in events if isinstance(event, Preview)] == [1, 1]

    events.clear()
    train(here.config("nothing"), listen, requests=requests)
    words = [event.text for event in events if isinstance(event, Warned)]
    assert any("no --sample_prompts" in text for text in words)


def test_a_sample_that_fails_costs_no_training(place, monkeypatch):
    here: Place = place("hunyuan_video")

    def full(*args: Any, **kwargs: Any) -> None:
        raise torch.OutOfMemoryError("none left")

    monkeypatch.setattr("musubi_core.training.samples.draw", full)
    events = here.run("full", sample_prompts=here.prompts, sample_every_n_steps=2)
    words = [event.text for event in events if isinstance(event, Warned)]
    assert [text for text in words if "samples of step 2 were not made, training goes on: none left" in text]
    assert len(here.lora("full")) > 0


def test_stopping_during_a_sample_leaves_no_half_picture_and_keeps_the_training(place):
    here: Place = place("hunyuan_video")
    events: list[Event] = []

    def stop() -> bool:
        return any(isinstance(e, Metrics) and e.step == 2 for e in events)

    result = train(
        here.config("stopped", sample_prompts=here.prompts, sample_every_n_steps=2), events.append, stop
    )
    assert result.stopped and result.step == 2 and result.lora is not None
    assert not list((here.root / "stopped" / "samples").iterdir())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sample_every_n_steps": 2}, "nothing to draw. Set --sample_prompts"),
        ({"sample_prompts": Path("absent.txt"), "sample_at_first": True}, "absent.txt does not exist"),
        ({"sample_prompts": "given", "vae": None}, "needs the VAE"),
    ],
)
def test_samples_that_cannot_be_made_are_refused_at_the_start(place, options, words):
    here: Place = place("hunyuan_video")
    if options.get("sample_prompts") == "given":
        options = {**options, "sample_prompts": here.prompts}
    with pytest.raises(ConfigError, match=words):
        here.run("refused", **options)


def test_text_encoders_are_asked_for_before_the_network_is_loaded(place, monkeypatch):
    here: Place = place("hunyuan_video")
    monkeypatch.setattr("musubi_core.training.run.load_experts", lambda opened: pytest.fail("loaded"))
    config = replace(here.config("early", sample_prompts=here.prompts), encoders=None)
    with pytest.raises(ConfigError, match="text_encoder1"):
        train(config)


def test_samples_may_be_compiled_around(place):
    """Drawing at other sizes must not change how the blocks are compiled for training."""
    here: Place = place("hunyuan_video")
    options = {"compile": True, "compile_backend": "aot_eager", "save_every_n_steps": 2}
    here.run("compiled plain", **options)
    here.run("compiled", **options, sample_prompts=here.prompts, sample_every_n_steps=2)
    ours, theirs = here.lora("compiled"), here.lora("compiled plain")
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_swapped_blocks_change_neither_samples_nor_training_whatever_else_is_on(place):
    here: Place = place("wan")
    options = {
        "gradient_checkpointing": True,
        "gradient_accumulation_steps": 2,
        "fp8_base": True,
        "fp8_scaled": True,
        "validation_split": 0.5,
        "validate_every_n_steps": 2,
        "sample_prompts": here.prompts,
        "sample_every_n_steps": 2,
    }
    found = []
    for swap in ({}, {"blocks_to_swap": 1, "block_swap_ring_size": 1}):
        events = here.run("swapped", **options, **swap)
        pictures = [event.frames for event in events if isinstance(event, Preview)]
        numbers = [
            {name: value for name, value in event.values.items() if name.startswith("loss")}
            for event in events
            if isinstance(event, Metrics)
        ]
        told = [event.text for event in events if isinstance(event, Note)]
        assert any("1 blocks wait in main memory" in text for text in told) == bool(swap)
        found.append((pictures, numbers, here.lora("swapped")))
    (plain, losses, lora), (swapped, again, other) = found
    assert len(plain) >= 4
    assert all(map(np.array_equal, plain, swapped))
    assert losses == again
    assert any("loss/validation" in line for line in losses)
    assert all(torch.equal(lora[key], other[key]) for key in lora)
