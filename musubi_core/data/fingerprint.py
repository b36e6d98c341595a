"""Fingerprints: one text that changes when anything that goes into a cached tensor changes.

Made from the contents of media and captions, never from their paths or times, so that a moved folder keeps
its caches. Times and sizes only decide whether a file must be read again to know its contents.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from musubi_core.config import LatentShape
from musubi_core.data.items import Sample

CACHE_FORMAT = 1  # raise it when the same facts lead to other tensors
RESIZE_RULE = "scale to cover, lanczos up, area down, centre crop"  # what the pixels of a sample went through


def fingerprint(facts: Mapping[str, Any]) -> str:
    """The same text for equal facts, on every machine. Facts are JSON values."""
    text = json.dumps(facts, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def seed_of(mark: str) -> int:
    """The seed of an item's posterior sample.

    It follows from the item's fingerprint, so neither order, batch size nor the other items matter.
    """
    return int(mark[:15], 16)


def latent_facts(
    sample: Sample, shape: LatentShape, content: Callable[[Path], str], encoder: Mapping[str, Any]
) -> dict[str, Any]:
    """Everything that decides the latent of a sample.

    content: the hash of a media file. encoder: identity and settings of the VAE, and dataset keys it reads.
    """
    item = sample.item
    return {
        "format": CACHE_FORMAT,
        "architecture": shape.architecture,
        "media": content(item.path),
        "targets": [content(path) for path in item.targets],
        "controls": [content(path) for path in item.controls],
        "control_sizes": [list(size) for size in sample.control_sizes],
        "bucket": list(sample.bucket),
        "window": [sample.start, sample.frames],
        "source_fps": item.fps,
        "fps": shape.fps if item.is_video else 0,
        "resize": RESIZE_RULE,
        **encoder,
    }


def text_facts(
    caption: str, architecture: str, *, part: str, identity: str, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Everything that decides what one text encoder makes of a caption."""
    return {
        "format": CACHE_FORMAT,
        "architecture": architecture,
        "pass": part,
        "caption": hashlib.sha256(caption.encode("utf-8")).hexdigest(),
        "encoder": identity,
        "settings": dict(settings),
    }
