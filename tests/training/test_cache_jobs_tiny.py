"""The caching jobs with the real VAE and text encoders, tiny, on real media: the files others will read."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from cache_stage import Stage
from safetensors import safe_open

from musubi_core.data.batches import load_batch
from musubi_core.data.dataset import read_datasets
from musubi_core.data.order import epoch_batches
from musubi_core.data.training_set import open_training_set
from musubi_core.models.hunyuan_video.options import TextOptions
from musubi_core.models.hunyuan_video.spec import SPEC
from musubi_core.models.spec import TinyFiles


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> TinyFiles:
    return SPEC.write_tiny(tmp_path_factory.mktemp("models"), 0)


@pytest.fixture
def stage(tmp_path) -> Stage:
    stage = Stage(tmp_path, None)
    for number in range(4):
        stage.picture(
            f"p{number}.png", f"picture {number}", grey=60 + 40 * number, size=(64, 32 + 32 * (number % 2))
        )
    return stage


def clip(path: Path, frames: int) -> None:
    import av
    import numpy as np

    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=24)
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        for index in range(frames):
            picture = np.full((32, 64, 3), 10 * index % 250, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    path.with_suffix(".txt").write_text("a clip", encoding="utf-8")


def contents(path: Path) -> dict[str, tuple[list[int], str]]:
    """key -> (shape, dtype), as the safetensors library itself reads them."""
    with safe_open(path, "pt") as file:
        slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 - no mapping
        return {key: (part.get_shape(), part.get_dtype()) for key, part in slices.items()}


def test_files_have_the_names_keys_shapes_and_dtypes_of_the_reference(stage, tiny):
    clip(stage.media / "v.mp4", 30)
    for path in stage.media.glob("p*"):
        path.unlink()
    del stage.keys["image_directory"]
    stage.keys |= {"video_directory": str(stage.media), "target_frames": [1, 9]}
    stage.keys |= {"frame_extraction": "uniform", "frame_sample": 2}
    report = stage.latents(vae=tiny.vae)
    stage.text(arch_options=TextOptions(**tiny.options))
    assert report.written == 4 and report.failed == ()
    assert set(stage.files()) == {
        "v_00000-001_0064x0032_hv.safetensors",
        "v_00029-001_0064x0032_hv.safetensors",
        "v_00000-009_0064x0032_hv.safetensors",
        "v_00021-009_0064x0032_hv.safetensors",
        "v_hv_te.safetensors",
    }
    latents = contents(stage.cache / "v_00021-009_0064x0032_hv.safetensors")
    assert latents == {"latents_3x4x8_float16": ([16, 3, 4, 8], "F16")}
    text = contents(stage.cache / "v_hv_te.safetensors")
    assert {key: shape for key, (shape, _) in text.items()} == {
        "llm_float16": [256, 128],  # 4096 wide in the real encoder
        "llm_mask": [256],
        "clipL_float16": [64],  # 768
        "clipL_mask": [77],
    }
    with safe_open(stage.cache / "v_00021-009_0064x0032_hv.safetensors", "pt") as file:
        metadata = file.metadata()
    own = {key: value for key, value in metadata.items() if not key.startswith("musubi_core.")}
    assert own == {
        "architecture": "hunyuan_video",
        "width": "64",
        "height": "32",
        "frame_count": "9",
        "format_version": "1.0.1",
    }


def test_pictures_go_from_files_to_batches(stage, tiny):
    stage.keys |= {"enable_bucket": True, "batch_size": 2}
    stage.latents(vae=tiny.vae, vae_dtype="float32")
    stage.text(arch_options=TextOptions(**tiny.options), batch_size=3)
    found = open_training_set(read_datasets(stage.toml), SPEC.latent, SPEC.required_tensors)
    batches = [load_batch(plan) for plan in epoch_batches(found, 0, 0)]
    assert [len(batch["latents"]) for batch in batches] == [2, 2]
    assert {batch["latents"].dtype for batch in batches} == {torch.float32}
    assert all(set(SPEC.required_tensors) <= set(batch) for batch in batches)


def test_the_batch_size_changes_latents_by_rounding_only(stage, tiny):
    stage.latents(vae=tiny.vae, vae_dtype="float32", batch_size=1)
    one = _tensors(stage)
    for path in stage.cache.iterdir():
        path.unlink()
    stage.latents(vae=tiny.vae, vae_dtype="float32", batch_size=4)
    for name, tensor in _tensors(stage).items():
        torch.testing.assert_close(tensor, one[name], rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(os.name == "nt", reason="there is no SIGKILL on Windows")
def test_a_killed_job_is_continued_by_the_next_run(stage, tiny):
    for number in range(4, 24):
        stage.picture(f"p{number}.png", f"picture {number}", grey=10 * number)
    stage.latents(vae=tiny.vae)
    whole = stage.files()
    for path in stage.cache.iterdir():
        path.unlink()
    command = ["cache-latents", "--dataset_config", stage.toml, "--vae", tiny.vae, "--device", "cpu"]
    command += ["--architecture", SPEC.name]
    with subprocess.Popen(
        [sys.executable, "-m", "musubi_core", *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        until = time.monotonic() + 60
        while len(stage.files()) < 3 and process.poll() is None and time.monotonic() < until:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    done = len(stage.files())
    report = stage.latents(vae=tiny.vae)
    assert report.reused == done >= 3 and report.written == 24 - done
    assert stage.files() == whole
    assert not [path for path in stage.cache.iterdir() if path.suffix not in (".safetensors", ".json")]


def _tensors(stage: Stage) -> dict[str, torch.Tensor]:
    found = {}
    for path in stage.cache.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            found |= {f"{path.name}:{key}": file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    return found
