"""Cache files: musubi-tuner's tensor keys and metadata outside, canonical names inside.

    outside                        inside          shape
    latents_1x64x48_float16        latents         (16, 1, 64, 48)
    latents_control_0_1x32x32_...  latents_control_0
    llm_float16                    llm             (256, 4096)
    llm_mask                       llm_mask        (256,), masks carry no dtype
    varlen_t5_bfloat16             varlen_t5       (L, 4096), L differs between items

What this program adds stands in the metadata under `musubi_core.`; a file without it was made by
musubi-tuner. Either program reads the files of the other.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from musubi_core.config import LatentShape
from musubi_core.data.items import Sample
from musubi_core.errors import BadFileError
from musubi_core.files.tensor_info import TensorInfo
from musubi_core.files.tensors import TensorFile, read_header, write_tensors

FORMAT_VERSION = "1.0.1"  # musubi-tuner's
VARLEN = "varlen_"
_OURS = "musubi_core."
_MASK = "_mask"
_SIZE = re.compile(r"_\d+x\d+x\d+$")
_DTYPES = (
    *("float32", "float16", "bfloat16", "float64", "float8_e4m3fn", "float8_e5m2"),
    *("int8", "int16", "int32", "int64", "uint8", "bool"),
)


def tensor_key(name: str, shape: tuple[int, ...], dtype: str) -> str:
    """The key of a canonical tensor in a file. A latent of 3 dimensions (C, H, W) counts as one frame."""
    if name.endswith(_MASK):
        return name
    if _is_latent(name):
        frames = shape[-3] if len(shape) > 3 else 1
        return f"{name}_{frames}x{shape[-2]}x{shape[-1]}_{dtype}"
    return f"{name}_{dtype}"


def tensor_name(key: str) -> str:
    """The canonical name of a key. Raises ValueError for a key that no cache file has.

    The suffix is dropped whatever it says: musubi-tuner's Wan files name the latents' dtype on other tensors.
    """
    if key.endswith(_MASK):
        return key
    for dtype in _DTYPES:
        name = key.removesuffix(f"_{dtype}")
        if name == key:
            continue
        if not _is_latent(name):
            return name
        bare = _SIZE.sub("", name)
        if bare != name:
            return bare
    raise ValueError(
        f"{key!r} is no key of a cache file; expected a name and a number format, e.g. llm_float16"
    )


def _is_latent(name: str) -> bool:
    return name == "latents" or name.startswith("latents_")


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheHeader:
    """What a cache file holds, without its tensors."""

    path: Path
    tensors: Mapping[str, TensorInfo]  # by canonical name
    keys: Mapping[str, str]  # canonical name -> key in the file
    metadata: Mapping[str, str]

    @property
    def architecture(self) -> str:
        return self.metadata.get("architecture", "")

    @property
    def ours(self) -> bool:
        """Whether this program wrote the file, so that it may be compared, and deleted when stale."""
        return any(key.startswith(_OURS) for key in self.metadata)

    def fingerprint(self, part: str) -> str:
        """The fingerprint of one part ("latents", or the name of a text pass); "" when there is none."""
        return self.metadata.get(f"{_OURS}fingerprint.{part}", "")


def read_cache_header(path: Path) -> CacheHeader:
    """Read the header alone. Raises BadFileError for a damaged file or one that is no cache."""
    header = read_header(path)
    return _named(path, header.tensors, header.metadata)


def _named(path: Path, tensors: Mapping[str, Any], metadata: Mapping[str, str]) -> CacheHeader:
    keys: dict[str, str] = {}
    for key in tensors:
        try:
            name = tensor_name(key)
        except ValueError as error:
            raise BadFileError(f"{path} is not a cache file: {error}. Rebuild the cache.") from None
        if name in keys:
            raise BadFileError(f"{path} holds {name} twice, as {keys[name]} and as {key}. Rebuild the cache.")
        keys[name] = key
    infos = {
        name: TensorInfo(shape=tuple(tensors[key].shape), dtype=tensors[key].dtype)
        for name, key in keys.items()
    }
    return CacheHeader(path=path, tensors=infos, keys=keys, metadata=metadata)


def read_cache(path: Path) -> tuple[CacheHeader, dict[str, Tensor]]:
    """The header and all tensors by canonical name. Raises BadFileError."""
    with TensorFile(path) as file:
        header = _named(path, file.header.tensors, file.metadata)
        return header, {name: file.read(key) for name, key in header.keys.items()}


def write_cache(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write canonical tensors under musubi-tuner's keys, whole or not at all."""
    keyed = {
        tensor_key(name, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch.")): tensor
        for name, tensor in tensors.items()
    }
    write_tensors(path, keyed, metadata)


def not_finite(tensors: Mapping[str, Tensor]) -> str:
    """The name of the first tensor with NaN or infinity, "" when all are finite."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point():
            wide = tensor.float() if tensor.itemsize == 1 else tensor  # 8-bit floats have no isfinite
            if not bool(torch.isfinite(wide).all()):
                return name
    return ""


def latent_metadata(shape: LatentShape, sample: Sample) -> dict[str, str]:
    """musubi-tuner's metadata of a latent file. The size is the one in the file's name."""
    width, height = sample.bucket if sample.item.is_video else sample.item.size
    metadata = {
        "architecture": shape.architecture,
        "width": str(width),
        "height": str(height),
        "format_version": FORMAT_VERSION,
    }
    if sample.item.is_video:
        metadata["frame_count"] = str(sample.frames)
    return metadata


def text_metadata(architecture: str, caption: str) -> dict[str, str]:
    """musubi-tuner's metadata of a text file."""
    return {"architecture": architecture, "caption1": caption, "format_version": FORMAT_VERSION}


def our_metadata(part: str, fingerprint: str, facts: Mapping[str, Any]) -> dict[str, str]:
    """What this program adds for one part of a file: its fingerprint, and in words what went into it."""
    text = json.dumps(facts, sort_keys=True, ensure_ascii=False)
    return {f"{_OURS}fingerprint.{part}": fingerprint, f"{_OURS}facts.{part}": text}
