"""Wan 2.1 and 2.2 as the rest of the program sees them. Heavy parts are imported when they are used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from musubi_core.models.lazy import lazily
from musubi_core.models.spec import ArchSpec, ModelSpecCard
from musubi_core.models.wan.defaults import latent_for, sampling_for
from musubi_core.models.wan.detect import detect, refuse
from musubi_core.models.wan.keys import LORA_NAMES
from musubi_core.models.wan.layer_names import DIFFUSERS, released
from musubi_core.models.wan.options import LatentOptions, TextOptions, TrainOptions
from musubi_core.models.wan.ratios import ratios_for
from musubi_core.models.wan.required import unfit

if TYPE_CHECKING:
    from torch import nn

HERE = "musubi_core.models.wan"


def _blocks(network: Any) -> list[nn.Module]:
    return list(network.blocks)


SPEC = ArchSpec(
    name="wan",
    latent=latent_for(LatentOptions()),
    latent_for=latent_for,
    card=ModelSpecCard(
        architecture="wan2.1",  # of 2.2 too, as musubi-tuner writes it
        implementation="https://github.com/Wan-Video/Wan2.1",
        resolution="1280x720",
    ),
    detect=detect,
    refuse=refuse,
    load=lazily(f"{HERE}.load", "load"),
    settle=lazily(f"{HERE}.experts", "settle"),
    experts=lazily(f"{HERE}.experts", "experts"),
    harmless=("offload_inactive_dit", "force_v2_1_time_embedding"),
    write_tiny=lazily(f"{HERE}.tiny", "write_tiny"),
    latent_options=LatentOptions,
    text_options=TextOptions,
    latents=lazily(f"{HERE}.latents", "latents"),
    texts=lazily(f"{HERE}.text", "texts"),
    train_options=TrainOptions,
    training_input=lazily(f"{HERE}.inputs", "training_input"),
    training_only=("expert_loras", "image_to_video", "i2v", "one_frame"),
    predict=lazily(f"{HERE}.inputs", "predict"),
    blocks=_blocks,
    required_tensors=("latents", "t5"),
    unfit=unfit,
    adapt_classes=("WanAttentionBlock",),
    adapt_exclude=(r".*(patch_embedding|text_embedding|time_embedding|time_projection|norm|head).*",),
    keep_precise=(
        *("norm", "bias", "patch_embedding", "text_embedding", "time_embedding", "time_projection"),
        *("head", "modulation", "img_emb"),
    ),
    fp8_targets=("blocks",),
    lora_names=LORA_NAMES,
    network_modules=("networks.lora_wan", "networks.lora"),
    sampling=sampling_for(TrainOptions()),
    sampling_for=sampling_for,
    sample_conditioning=lazily(f"{HERE}.inputs", "sample_conditioning"),
    encode_pictures=lazily(f"{HERE}.pictures", "encode_pictures"),
    ratios_for=ratios_for,
    released=released,
    diffusers_names=DIFFUSERS,
)
