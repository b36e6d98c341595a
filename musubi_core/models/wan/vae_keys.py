"""Names of the VAEs' tensors in existing files: the original ones, and diffusers'.

The original naming counts the layers of encoder and decoder through: `encoder.downsamples.3` is a residual
block or a resampler. Wan 2.2's VAE groups them by level: `encoder.downsamples.1.downsamples.0`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

RESNETS = 2  # per level of the encoder; the decoder has one more
FLAT_MARK, GROUPED_MARK = (
    "encoder.downsamples.0.residual.0.gamma",
    "encoder.downsamples.0.downsamples.0.residual.0.gamma",
)
DIFFUSERS_FLAT_MARK, DIFFUSERS_GROUPED_MARK = (
    "encoder.down_blocks.0.norm1.gamma",
    "encoder.down_blocks.0.resnets.0.norm1.gamma",
)
_QKV = "encoder.mid_block.attentions.0.to_qkv.weight"  # only Wan's has it under this name

_LAYER = (  # inside a residual block; the numbers are places in a torch Sequential
    ("residual.0.gamma", "norm1.gamma"),
    ("residual.2.", "conv1."),
    ("residual.3.gamma", "norm2.gamma"),
    ("residual.6.", "conv2."),
    ("shortcut.", "conv_shortcut."),
)
_AROUND = (
    ("middle.0.", "mid_block.resnets.0."),
    ("middle.1.", "mid_block.attentions.0."),
    ("middle.2.", "mid_block.resnets.1."),
    ("head.0.gamma", "norm_out.gamma"),
    ("head.2.", "conv_out."),
)
_ENTRY = re.compile(r"^(encoder|decoder)\.conv1\.")
_GROUPED = re.compile(r"^(encoder\.down|decoder\.up)samples\.(\d+)\.(?:down|up)samples\.(\d+)\.")
_FLAT = re.compile(r"^(encoder\.down|decoder\.up)samples\.(\d+)\.")


@dataclass(frozen=True, slots=True, kw_only=True)
class VaeNames:
    """diffusers' name of each tensor -> its name in the file. grouped: the layout is Wan 2.2's."""

    sources: dict[str, str]
    grouped: bool


def diffusers_name(stored: str) -> str:
    """ "encoder.downsamples.3.residual.0.gamma" -> "encoder.down_blocks.3.norm1.gamma"."""
    if stored.startswith("conv1."):
        return f"quant_{stored.replace('conv1', 'conv')}"
    if stored.startswith("conv2."):
        return f"post_quant_{stored.replace('conv2', 'conv')}"
    name = _ENTRY.sub(r"\1.conv_in.", stored)
    if _GROUPED.match(name):
        name = _GROUPED.sub(_grouped_layer, name)
    else:
        name = _FLAT.sub(_flat_layer, name)
    for old, new in (*_AROUND, *_LAYER):
        name = name.replace(f".{old}", f".{new}")
    return name


def _grouped_layer(match: re.Match[str]) -> str:
    side, level, place = match.group(1), match.group(2), int(match.group(3))
    resnets = RESNETS if side == "encoder.down" else RESNETS + 1
    inner = f"resnets.{place}" if place < resnets else f"{side.partition('.')[2]}sampler"
    return f"{side}_blocks.{level}.{inner}."


def _flat_layer(match: re.Match[str]) -> str:
    side, place = match.group(1), int(match.group(2))
    if side == "encoder.down":
        return f"encoder.down_blocks.{place}."
    level, inner = divmod(place, RESNETS + 2)
    return f"decoder.up_blocks.{level}.{f'resnets.{inner}' if inner <= RESNETS else 'upsamplers.0'}."


def vae_names(stored: Iterable[str]) -> VaeNames | None:
    """How a file names the tensors of a Wan VAE; None if it holds none.

    A prefix such as "vae." before everything is taken off, and tensors without it are left out.
    """
    names = list(stored)
    marks = (
        (FLAT_MARK, False),
        (GROUPED_MARK, True),
        (DIFFUSERS_FLAT_MARK, False),
        (DIFFUSERS_GROUPED_MARK, True),
    )
    for mark, grouped in marks:
        marked = next((name for name in names if name == mark or name.endswith(f".{mark}")), None)
        if marked is None:
            continue
        prefix = marked.removesuffix(mark)
        own = {name.removeprefix(prefix): name for name in names if name.startswith(prefix)}
        original = mark in (FLAT_MARK, GROUPED_MARK)
        sources = {diffusers_name(short) if original else short: name for short, name in own.items()}
        if _QKV in sources:
            return VaeNames(sources=sources, grouped=grouped)
    return None
