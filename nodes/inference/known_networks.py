"""ComfyUI's networks that MagCache knows: where their blocks begin and end, and which ratios are theirs.

A class that is not here is left alone: newer ones derive from these and do more inside or beside the blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

# latent cells: half way, as a factor, between the two sizes that ratios were measured at
WAN_LARGE = 9480
HUNYUAN_LARGE = 10840


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What only the sampling run tells.

    size: height and width of the latent. references: pictures to edit are given. masked: part of the latent
    is given, e.g. the first frame. whole: the run goes through the whole schedule.
    """

    size: tuple[int, int]
    references: bool
    masked: bool
    whole: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownNetwork:
    """blocks: attribute with the list of the first kind of blocks. tail: the module behind all blocks.

    table: architecture and variant of the ratios for a run of this network.
    """

    blocks: str
    tail: str
    table: Callable[[Facts], tuple[str, str]]


def known_network(model: Any) -> KnownNetwork | None:
    """What is known of the network of a ModelPatcher."""
    classes = type(model.model).__name__, type(model.model.diffusion_model).__name__
    make = _KNOWN.get(classes)
    return None if make is None else make(model.model.model_config.unet_config)


def network_class(model: Any) -> str:
    """For messages."""
    return type(model.model.diffusion_model).__name__


def _flux(config: Mapping[str, Any]) -> KnownNetwork:
    def table(facts: Facts) -> tuple[str, str]:
        return ("flux_kontext" if facts.references else "flux"), "dev"

    return KnownNetwork(blocks="double_blocks", tail="final_layer", table=table)


def _chroma(config: Mapping[str, Any]) -> KnownNetwork:
    return KnownNetwork(blocks="double_blocks", tail="final_layer", table=lambda facts: ("chroma", "base"))


def _hunyuan_video(config: Mapping[str, Any]) -> KnownNetwork:
    kind = "t2v" if config.get("in_channels", 16) == 16 else "i2v"

    def table(facts: Facts) -> tuple[str, str]:
        size = "720p" if facts.size[0] * facts.size[1] > HUNYUAN_LARGE else "544p"
        return "hunyuan_video", f"{kind}-{size}"

    return KnownNetwork(blocks="double_blocks", tail="final_layer", table=table)


def _qwen_image(config: Mapping[str, Any]) -> KnownNetwork:
    def table(facts: Facts) -> tuple[str, str]:
        return "qwen_image", "edit" if facts.references else "base"

    return KnownNetwork(blocks="transformer_blocks", tail="norm_out", table=table)


def _wan(config: Mapping[str, Any]) -> KnownNetwork:
    def table(facts: Facts) -> tuple[str, str]:
        return "wan", _wan_variant(config, facts)

    return KnownNetwork(blocks="blocks", tail="head", table=table)


def _wan_variant(config: Mapping[str, Any], facts: Facts) -> str:
    kind, width, channels = config.get("model_type"), config.get("dim", 0), config.get("in_dim", 0)
    size = "14B" if width >= 5120 else "5B" if width >= 3072 else "1.3B"
    if channels == 48:
        return f"ti2v-{size}-{'i2v' if facts.masked else 't2v'}"
    if kind == "i2v":
        return f"i2v-{size}-{'720p' if facts.size[0] * facts.size[1] > WAN_LARGE else '480p'}"
    if kind == "t2v" and channels > 16:
        return f"i2v-A{size}"  # a first frame and no CLIP: Wan 2.2
    if kind == "t2v" and size == "14B" and not facts.whole:
        return "t2v-A14B"  # the same network as 2.1's, but one of two that share the schedule
    return f"{kind}-{size}"


_KNOWN: dict[tuple[str, str], Callable[[Mapping[str, Any]], KnownNetwork]] = {
    ("Flux", "Flux"): _flux,
    ("Chroma", "Chroma"): _chroma,
    ("HunyuanVideo", "HunyuanVideo"): _hunyuan_video,
    ("HunyuanVideoI2V", "HunyuanVideo"): _hunyuan_video,
    ("HunyuanVideoSkyreelsI2V", "HunyuanVideo"): _hunyuan_video,
    ("WAN21", "WanModel"): _wan,
    ("WAN21_Vace", "VaceWanModel"): _wan,
    ("WAN22", "WanModel"): _wan,
    ("QwenImage", "QwenImageTransformer2DModel"): _qwen_image,
}
