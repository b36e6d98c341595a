"""Files of drawings: pictures, clips and latents, with what they were made of inside."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from musubi_core.data.video_writer import write_mp4
from musubi_core.errors import BadFileError
from musubi_core.files.replace import replace_file, replace_folder
from musubi_core.files.tensors import TensorFile, write_tensors

if TYPE_CHECKING:
    from PIL.PngImagePlugin import PngInfo

KEY = "musubi_core"  # of the metadata, one JSON object
LATENT = "latent"  # the name of the one tensor, as in musubi-tuner's files
LATENT_ENDING = "_latent"

Facts = Mapping[str, Any]  # what a drawing was made of, JSON values; empty: nothing is told


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredLatent:
    """A latent from a file: (C, F, H, W) or (C, H, W) float32, and what the file says of it."""

    latent: Tensor
    facts: Facts


def free_stem(folder: Path, seed: int, promised: Collection[str] = ()) -> str:
    """A name by date, time and seed that nothing in the folder has. promised: names of files to come."""
    return unused(folder, f"{time.strftime('%Y%m%d-%H%M%S')}_{seed}", promised)


def unused(folder: Path, stem: str, promised: Collection[str] = ()) -> str:
    """`stem`, or with a number behind it, so that nothing in the folder has the name already."""
    there = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    taken = there | set(promised)

    def is_free(name: str) -> bool:
        endings = ("", ".png", ".mp4", f"{LATENT_ENDING}.safetensors")
        return taken.isdisjoint(name + ending for ending in endings)

    return next(
        name for name in (stem, *(f"{stem}_{number}" for number in range(2, len(taken) + 3))) if is_free(name)
    )


def write_frames(
    folder: Path, stem: str, frames: NDArray[np.uint8], *, fps: float, as_images: bool, facts: Facts
) -> Path:
    """Write (F, H, W, 3) uint8 as one PNG, one MP4, or a folder of PNGs, and return its path.

    A single frame is a PNG in any case.
    """
    if len(frames) == 1:
        return _write_png(folder / f"{stem}.png", frames[0], facts)
    if as_images:
        with replace_folder(folder / stem) as inside:
            for number, pixels in enumerate(frames):
                _write_png(inside / f"{number:04d}.png", pixels, facts)
        return folder / stem
    path = folder / f"{stem}.mp4"
    told = {"title": str(facts.get("prompt", ""))[:200], "comment": _json(facts)} if facts else {}
    with replace_file(path) as file:
        write_mp4(file, frames, fps, fine=True, metadata=told)
    return path


def write_latent(folder: Path, stem: str, latent: Tensor, facts: Facts) -> Path:
    """Write a latent as the network sees it, (C, F, H, W) or (C, H, W)."""
    path = folder / f"{stem}{LATENT_ENDING}.safetensors"
    metadata = {KEY: _json(facts)} if facts else {}
    write_tensors(path, {LATENT: latent.to("cpu", torch.float32).contiguous()}, metadata)
    return path


def read_latent(path: Path) -> StoredLatent:
    """A latent that this program or musubi-tuner wrote. Raises BadFileError for another kind of file."""
    with TensorFile(path) as file:
        if LATENT not in file.names:
            names = ", ".join(file.names[:3]) or "none"
            raise BadFileError(
                f"{path} is no latent of a drawing: it has no tensor {LATENT!r} (found: {names}). Give a "
                "file that --output_type latent wrote."
            )
        latent = file.read(LATENT).float()
        text = file.metadata.get(KEY, "{}")
    if latent.ndim == 5 and len(latent) == 1:
        latent = latent[0]
    if latent.ndim not in (3, 4):
        raise BadFileError(
            f"{path} is no latent of a drawing: it has shape {list(latent.shape)}. Expected (channels, "
            "frames, height, width), or (channels, height, width) of a picture."
        )
    if not torch.isfinite(latent).all():
        raise BadFileError(f"{path} holds NaN or infinity, which cannot be decoded. Draw it again.")
    return StoredLatent(latent=latent, facts=_facts(text, path))


def architecture_told(path: Path) -> str:
    """The architecture that a latent says it is of; "" when it does not. Raises BadFileError."""
    return str(read_latent(path).facts.get("architecture", ""))


def _write_png(path: Path, pixels: NDArray[np.uint8], facts: Facts) -> Path:
    """(H, W, 3) uint8."""
    from PIL import Image

    with replace_file(path) as file:
        Image.fromarray(pixels).save(file, format="PNG", pnginfo=_png_info(facts))
    return path


def _png_info(facts: Facts) -> PngInfo | None:
    # Not under the word "prompt": ComfyUI would take it for a graph.
    from PIL.PngImagePlugin import PngInfo

    if not facts:
        return None
    info = PngInfo()
    info.add_itxt(KEY, _json(facts))
    return info


def _json(facts: Facts) -> str:
    return json.dumps(facts, ensure_ascii=False, allow_nan=False)


def _facts(text: str, path: Path) -> Facts:
    try:
        facts = json.loads(text)
    except json.JSONDecodeError as error:
        raise BadFileError(f"{path}: its metadata is damaged: {error}. Decode it from a copy.") from None
    if not isinstance(facts, dict):
        raise BadFileError(f"{path}: its metadata is damaged: {text[:40]!r} is no JSON object.")
    return facts
