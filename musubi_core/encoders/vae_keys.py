"""Names of a VAE's tensors in existing files: diffusers' names, and LDM's, which most single files have.

One map serves every VAE of this build (HunyuanVideo, FLUX, Stable Diffusion); only the shapes differ.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

BLOCKS = 4  # levels of encoder and decoder
DIFFUSERS_MARK = "encoder.down_blocks.0.resnets.0.norm1.weight"
LDM_MARK = "encoder.down.0.block.0.norm1.weight"

_LDM_TO_DIFFUSERS = (
    ("mid.block_1.", "mid_block.resnets.0."),
    ("mid.block_2.", "mid_block.resnets.1."),
    ("mid.attn_1.norm.", "mid_block.attentions.0.group_norm."),
    ("mid.attn_1.proj_out.", "mid_block.attentions.0.to_out.0."),
    ("mid.attn_1.q.", "mid_block.attentions.0.to_q."),
    ("mid.attn_1.k.", "mid_block.attentions.0.to_k."),
    ("mid.attn_1.v.", "mid_block.attentions.0.to_v."),
    (".nin_shortcut.", ".conv_shortcut."),
    (".norm_out.", ".conv_norm_out."),
)
_OLDER_DIFFUSERS = (  # before diffusers 0.12
    (".attentions.0.query.", ".attentions.0.to_q."),
    (".attentions.0.key.", ".attentions.0.to_k."),
    (".attentions.0.value.", ".attentions.0.to_v."),
    (".attentions.0.proj_attn.", ".attentions.0.to_out.0."),
)
_LEVEL = re.compile(r"^(encoder\.down|decoder\.up)\.(\d+)\.(block\.(\d+)|downsample|upsample)\.")


def diffusers_name(stored: str) -> str:
    """ "decoder.up.3.block.0.norm1.weight" -> "decoder.up_blocks.0.resnets.0.norm1.weight"."""
    name = stored
    for old, new in (*_LDM_TO_DIFFUSERS, *_OLDER_DIFFUSERS):
        name = name.replace(old, new)
    return _LEVEL.sub(_level, name)


def _level(match: re.Match[str]) -> str:
    side, level, part, resnet = match.group(1), int(match.group(2)), match.group(3), match.group(4)
    if side == "decoder.up":  # LDM counts the decoder's levels from the output
        level = BLOCKS - 1 - level
    inner = f"resnets.{resnet}" if resnet else f"{part}rs.0"
    return f"{side}_blocks.{level}.{inner}."


def sources(stored: Iterable[str]) -> dict[str, str] | None:
    """diffusers' name of each tensor -> its name in a file, whichever naming the file has.

    A prefix such as "vae." before everything is taken off, and tensors without it are left out. None if
    neither naming is found.
    """
    names = list(stored)
    for mark in (DIFFUSERS_MARK, LDM_MARK):
        marked = next((name for name in names if name == mark or name.endswith(f".{mark}")), None)
        if marked is not None:
            prefix = marked.removesuffix(mark)
            own = {name.removeprefix(prefix): name for name in names if name.startswith(prefix)}
            return {diffusers_name(short): name for short, name in own.items()}
    return None
