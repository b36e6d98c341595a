"""Edit pairs, by folder and by JSONL, from media files to batches and to a picture, with the tiny weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from musubi_core.data.batches import load_batch
from musubi_core.data.dataset import read_datasets
from musubi_core.data.order import epoch_batches
from musubi_core.data.training_set import TrainingSet, open_training_set
from musubi_core.demo.samples import base_beside_lora, open_sampler
from musubi_core.errors import ConfigError
from musubi_core.events import Note, Warned
from musubi_core.files.tensors import write_tensors
from musubi_core.models.flux_kontext.options import LatentOptions, TextOptions, TrainOptions
from musubi_core.models.flux_kontext.spec import SPEC
from musubi_core.models.spec import ArchSpec, EncoderRequest, LoadRequest, Pixels, TinyFiles
from musubi_core.networks.building import build_network
from musubi_core.networks.config import NetworkConfig
from musubi_core.networks.saving import lora_tensors
from musubi_core.networks.targets import Targets
from musubi_core.training.cache_config import CacheLatentsConfig, CacheTextConfig
from musubi_core.training.cache_jobs import cache_latents, cache_text

CPU = torch.device("cpu")
EDITS = {"cup": ((96, 80), "Make the cup green."), "cat": ((80, 96), "Give the cat a hat.")}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> TinyFiles:
    return SPEC.write_tiny(tmp_path_factory.mktemp("models"), 0)


def picture(path: Path, size: tuple[int, int], seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(path)
    return path


@dataclass
class Pairs:
    """Two edits on disk, and the dataset file that names them."""

    root: Path
    tiny: TinyFiles
    form: str  # "folder" or "jsonl"

    def write(self, *, controls: int = 1, control_side: tuple[int, int] | None = None, **keys: Any) -> None:
        """The media and a dataset file with `keys` added; with several controls their names are numbered."""
        lines = []
        for seed, (stem, (size, caption)) in enumerate(EDITS.items()):
            after = picture(self.root / "after" / f"{stem}.png", size, seed)
            names = [f"{stem}.png"] if controls == 1 else [f"{stem}_{n}.png" for n in range(controls)]
            before = [
                picture(self.root / "before" / name, control_side or size, 10 * seed + 5 + n)
                for n, name in enumerate(names)
            ]
            paths = {f"control_path_{n}" if controls > 1 else "control_path": p for n, p in enumerate(before)}
            members = {"image_path": after, **paths, "caption": caption}
            lines.append(json.dumps({name: str(value) for name, value in members.items()}))
            if self.form == "folder":
                after.with_suffix(".txt").write_text(caption, encoding="utf-8")
        source: dict[str, Any] = {
            "image_directory": str(self.root / "after"),
            "control_directory": str(self.root / "before"),
        }
        if self.form == "jsonl":
            (self.root / "pairs.jsonl").write_text("\n".join(lines), encoding="utf-8")
            source = {"image_jsonl_file": str(self.root / "pairs.jsonl")}
        keys = {"resolution": [96, 80], "enable_bucket": True, "batch_size": 2, **keys}
        table = {**source, "cache_directory": str(self.cache), **keys}
        text = "\n".join(f"{name} = {json.dumps(value)}" for name, value in table.items())
        self.toml.write_text(f"[[datasets]]\n{text}\n", encoding="utf-8")

    @property
    def toml(self) -> Path:
        return self.root / "dataset.toml"

    @property
    def cache(self) -> Path:
        return self.root / "cache"

    def cached(self, told: list[Any] | None = None) -> TrainingSet:
        """Run both jobs; what can be trained on afterwards."""
        emit = (told if told is not None else []).append
        common: dict[str, Any] = {
            "dataset_config": self.toml,
            "architecture": "flux_kontext",
            "device": "cpu",
        }
        latents = CacheLatentsConfig(vae=self.tiny.vae, **common)
        assert cache_latents(latents, emit).failed == ()
        texts = CacheTextConfig(arch_options=TextOptions(**self.tiny.options), **common)
        assert cache_text(texts, emit).failed == ()
        return open_training_set(read_datasets(self.toml), SPEC.latent, SPEC.required_tensors)

    def keys(self, name: str) -> dict[str, list[int]]:
        """key -> shape, as the safetensors library itself reads them."""
        with safe_open(self.cache / name, "pt") as file:
            return {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118 - no mapping


@pytest.fixture(params=["folder", "jsonl"])
def pairs(request, tmp_path, tiny) -> Pairs:
    return Pairs(tmp_path, tiny, request.param)


def test_two_edits_become_files_with_musubi_tuners_names_and_keys(pairs):
    pairs.write()
    pairs.cached()
    assert {path.name for path in pairs.cache.glob("*.safetensors")} == {
        "cup_0096x0080_fk.safetensors",
        "cup_fk_te.safetensors",
        "cat_0080x0096_fk.safetensors",
        "cat_fk_te.safetensors",
    }
    assert pairs.keys("cup_0096x0080_fk.safetensors") == {
        "latents_1x10x12_float32": [16, 10, 12],
        "latents_control_1x10x12_float32": [16, 10, 12],
    }
    assert pairs.keys("cup_fk_te.safetensors") == {
        "t5_vec_bfloat16": [512, 64],  # 4096 wide in the real encoder
        "clip_l_pooler_bfloat16": [64],  # 768
    }
    with safe_open(pairs.cache / "cup_0096x0080_fk.safetensors", "pt") as file:
        metadata = file.metadata()
    own = {key: value for key, value in metadata.items() if not key.startswith("musubi_core.")}
    assert own == {
        "architecture": "flux_kontext",
        "width": "96",
        "height": "80",
        "format_version": "1.0.1",
    }


def test_each_target_keeps_its_own_control(pairs):
    """Encoded one by one, and put together again, they are the same pairs."""
    pairs.write()
    pairs.cached()
    request = EncoderRequest(device=CPU, dtype=None, options=LatentOptions(), weights=pairs.tiny.vae)
    codec = SPEC.latents(request).open()
    for stem in EDITS:
        (file,) = pairs.cache.glob(f"{stem}_*_fk.safetensors")
        before = torch.from_numpy(np.array(Image.open(pairs.root / "before" / f"{stem}.png")))
        (alone,) = codec.encode(Pixels(frames=before[None, None], seeds=[0], controls=[[before[None]]]))
        found = next(t for key, t in load_file(file).items() if key.startswith("latents_control_"))
        torch.testing.assert_close(found, alone["latents_control"], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("keys", "control_side", "expected"),
    [
        ({}, (200, 100), [16, 10, 12]),  # the size of the target
        ({"no_resize_control": True}, (72, 40), [16, 4, 8]),  # 72x40 -> 64x32
        ({"control_resolution": [64, 64]}, (200, 100), [16, 6, 10]),  # 80x48
        ({"no_resize_control": True, "control_resolution": [64, 64]}, (50, 64), [16, 8, 6]),  # 48x64
    ],
    ids=["like the target", "no_resize_control", "control_resolution", "both"],
)
def test_controls_have_the_size_that_their_keys_ask_for(pairs, keys, control_side, expected):
    pairs.write(control_side=control_side, **keys)
    pairs.cached()
    shapes = pairs.keys("cup_0096x0080_fk.safetensors")
    assert [shape for key, shape in shapes.items() if "control" in key] == [expected]


def test_a_batch_trains_and_only_the_target_is_predicted(pairs):
    pairs.write(no_resize_control=True, resolution=[64, 64], enable_bucket=False, control_side=(80, 48))
    training = pairs.cached()
    (plan,) = epoch_batches(training, 0, 0)
    batch = load_batch(plan)
    inputs = SPEC.training_input(batch, TrainOptions())
    assert inputs.latents.shape == (2, 16, 8, 8)
    assert [one.shape for one in inputs.conditioning["references"]] == [(2, 16, 6, 10)]
    model = SPEC.load(LoadRequest(path=pairs.tiny.dit, device=CPU, dtype=torch.float32))
    t = torch.tensor([0.4, 0.9])
    velocity = SPEC.predict(model, inputs.latents, t, inputs.conditioning, TrainOptions())
    assert velocity.shape == inputs.latents.shape


def test_controls_of_other_sizes_never_share_a_batch(pairs):
    pairs.write(no_resize_control=True, resolution=[64, 64], enable_bucket=False)
    plans = epoch_batches(pairs.cached(), 0, 0)
    assert [len(plan.samples) for plan in plans] == [1, 1]


def test_several_controls_are_an_extension_that_keeps_the_first_ones_name(pairs):
    pairs.write(controls=2)
    training = pairs.cached()
    assert set(pairs.keys("cup_0096x0080_fk.safetensors")) == {
        "latents_1x10x12_float32",
        "latents_control_1x10x12_float32",
        "latents_control_1_1x10x12_float32",
    }
    batch = load_batch(epoch_batches(training, 0, 0)[0])
    conditioning = SPEC.training_input(batch, TrainOptions()).conditioning
    assert len(conditioning["references"]) == 2


def test_nothing_is_encoded_twice_and_a_changed_control_is_encoded_again(pairs):
    pairs.write()
    pairs.cached()
    before = {path.name: path.stat().st_mtime_ns for path in pairs.cache.glob("*_fk.safetensors")}
    picture(pairs.root / "before" / "cat.png", EDITS["cat"][0], 99)
    pairs.cached()
    after = {path.name: path.stat().st_mtime_ns for path in pairs.cache.glob("*_fk.safetensors")}
    assert {name for name in before if before[name] != after[name]} == {"cat_0080x0096_fk.safetensors"}


def test_files_of_musubi_tuner_are_accepted_and_train(pairs):
    pairs.write()
    pairs.cached()
    for path in list(pairs.cache.iterdir()):
        if path.suffix != ".safetensors":
            path.unlink()  # our manifest
            continue
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
        plain = {key: value for key, value in metadata.items() if not key.startswith("musubi_core.")}
        save_file(load_file(path), path, plain)
    training = open_training_set(read_datasets(pairs.toml), SPEC.latent, SPEC.required_tensors)
    assert len(training) == 2
    told: list[Any] = []
    assert len(pairs.cached(told)) == 2
    assert any(
        "made by another program" in e.text or "musubi" in e.text for e in told if isinstance(e, Warned)
    )


def test_a_picture_without_its_control_is_named_and_left_out(pairs):
    pairs.write()
    if pairs.form == "folder":
        (pairs.root / "before" / "cat.png").unlink()
    else:
        file = pairs.root / "pairs.jsonl"
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        del lines[1]["control_path"]
        file.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    told: list[Any] = []
    assert len(pairs.cached(told)) == 1
    report = next(event.text for event in told if isinstance(event, Note))
    assert "1 of 2 files used" in report and "cat.png" in report and "control" in report


def test_pictures_without_any_control_end_the_job_before_the_vae_is_opened(pairs):
    pairs.write()
    text = pairs.toml.read_text(encoding="utf-8")
    if pairs.form == "folder":
        lines = [line for line in text.splitlines() if "control_directory" not in line]
        pairs.toml.write_text("\n".join(lines), encoding="utf-8")
    else:
        file = pairs.root / "pairs.jsonl"
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        for line in lines:
            del line["control_path"]
        file.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"0 usable items of 2 files.*control"):
        pairs.cached()


def test_videos_are_refused(pairs):
    pairs.write()
    text = pairs.toml.read_text(encoding="utf-8").replace("image_", "video_")
    pairs.toml.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match="flux_kontext knows pictures only"):
        pairs.cached()


@pytest.fixture
def drawn(tmp_path, tiny) -> Callable[..., list[np.ndarray]]:
    """Pictures of the cached items, by the base model, as the demo draws them."""
    model = SPEC.load(LoadRequest(path=tiny.dit, device=CPU, dtype=torch.float32))
    targets = Targets(classes=SPEC.adapt_classes, exclude=SPEC.adapt_exclude)
    network = build_network(model, NetworkConfig(network_dim=1), targets, generator=torch.Generator())
    lora = tmp_path / "lora.safetensors"
    write_tensors(lora, lora_tensors(network))

    def draw(training: TrainingSet, spec: ArchSpec = SPEC) -> list[np.ndarray]:
        sampler = open_sampler(
            spec, dit=tiny.dit, vae=tiny.vae, lora=lora, latent_options=LatentOptions(), steps=2
        )
        return [base for base, _ in base_beside_lora(sampler, training.items, seed=0)]

    return draw


def test_a_sample_follows_its_control_and_never_sees_the_target(pairs, drawn):
    pairs.write()
    first = drawn(pairs.cached())
    assert [one.shape for one in first] == [(96, 80, 3), (80, 96, 3)]
    picture(pairs.root / "before" / "cat.png", EDITS["cat"][0], 99)
    other_control = drawn(pairs.cached())
    picture(pairs.root / "after" / "cat.png", EDITS["cat"][0], 98)
    other_target = drawn(pairs.cached())
    assert np.abs(first[0].astype(int) - other_control[0]).mean() > 0.1
    assert np.array_equal(first[1], other_control[1])
    assert np.array_equal(other_control[0], other_target[0])


def test_the_sampler_is_given_everything_but_the_target_and_shifts_by_its_size(pairs, drawn):
    given: list[set[str]] = []
    sizes: list[tuple[int, int]] = []

    def conditioning(batch, guidance, options):
        given.append(set(batch))
        return SPEC.sample_conditioning(batch, guidance, options)

    def shift(height: int, width: int) -> float:
        sizes.append((height, width))
        return 3.0

    pairs.write()
    sampling = replace(SPEC.sampling, shift_for=shift)
    drawn(pairs.cached(), replace(SPEC, sample_conditioning=conditioning, sampling=sampling))
    assert given == [{"latents_control", "t5_vec", "clip_l_pooler"}] * 4
    assert sizes == [(12, 10), (12, 10), (10, 12), (10, 12)]
