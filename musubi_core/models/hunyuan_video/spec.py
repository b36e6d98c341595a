"""HunyuanVideo as the rest of the program sees it. Heavy parts are imported when they are used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from musubi_core.config import LatentShape
from musubi_core.models.hunyuan_video.defaults import USUAL, sampling_for
from musubi_core.models.hunyuan_video.detect import detect, refuse
from musubi_core.models.hunyuan_video.keys import LORA_NAMES
from musubi_core.models.hunyuan_video.layer_names import DIFFUSERS, RELATED, released
from musubi_core.models.hunyuan_video.options import LatentOptions, TextOptions, TrainOptions
from musubi_core.models.hunyuan_video.ratios import ratios_for
from musubi_core.models.lazy import lazily
from musubi_core.models.spec import ArchSpec, ModelSpecCard
from musubi_core.offload.groups import SwapRule, double_and_single

if TYPE_CHECKING:
    from torch import nn

HERE = "musubi_core.models.hunyuan_video"


def _blocks(network: Any) -> list[nn.Module]:
    return [*network.double_blocks, *network.single_blocks]


def _swap_lists(network: Any) -> tuple[list[nn.Module], ...]:
    return list(network.double_blocks), list(network.single_blocks)


SPEC = ArchSpec(
    name="hunyuan_video",
    latent=LatentShape(
        architecture="hunyuan_video",
        short="hv",
        channels=16,
        spatial=8,
        temporal=4,
        pixel_step=16,
        fps=24.0,
    ),
    card=ModelSpecCard(
        architecture="hunyuan-video",
        implementation="https://github.com/Tencent/HunyuanVideo",
        resolution="1280x720",
    ),
    detect=detect,
    refuse=refuse,
    load=lazily(f"{HERE}.load", "load"),
    write_tiny=lazily(f"{HERE}.tiny", "write_tiny"),
    latent_options=LatentOptions,
    text_options=TextOptions,
    latents=lazily(f"{HERE}.vae", "latents"),
    texts=lazily(f"{HERE}.text", "texts"),
    train_options=TrainOptions,
    training_input=lazily(f"{HERE}.inputs", "training_input"),
    training_only=("guidance_scale", "guidance_multiplier"),
    predict=lazily(f"{HERE}.inputs", "predict"),
    blocks=_blocks,
    required_tensors=("latents", "llm", "llm_mask", "clipL"),
    adapt_classes=("MMDoubleStreamBlock", "MMSingleStreamBlock"),
    adapt_exclude=(r".*(img_mod|txt_mod|modulation).*",),
    keep_precise=("norm", "bias", "mod", "time_in", "vector_in", "guidance_in", "txt_in", "img_in"),
    fp8_targets=("double_blocks", "single_blocks"),
    swap=SwapRule(lists=_swap_lists, share=double_and_single, visitors=("img_in", "txt_in")),
    lora_names=LORA_NAMES,
    network_modules=("networks.lora",),
    sampling=USUAL,
    sampling_for=sampling_for,
    sample_conditioning=lazily(f"{HERE}.inputs", "sample_conditioning"),
    encode_pictures=lazily(f"{HERE}.drawing", "encode_pictures"),
    noise=lazily(f"{HERE}.drawing", "noise"),
    ratios_for=ratios_for,
    released=released,
    diffusers_names=DIFFUSERS,
    related=RELATED,
)
