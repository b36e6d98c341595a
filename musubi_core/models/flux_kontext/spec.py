"""FLUX.1 Kontext as the rest of the program sees it. Heavy parts are imported when they are used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from musubi_core.config import LatentShape
from musubi_core.models.flux_kontext.detect import detect, refuse
from musubi_core.models.flux_kontext.keys import LORA_NAMES
from musubi_core.models.flux_kontext.layer_names import DIFFUSERS, released
from musubi_core.models.flux_kontext.options import LatentOptions, TextOptions, TrainOptions
from musubi_core.models.flux_kontext.ratios import ratios_for
from musubi_core.models.flux_kontext.sizes import nearest_size
from musubi_core.models.lazy import lazily
from musubi_core.models.spec import ArchSpec, ModelSpecCard, SamplingDefaults, TakenPictures
from musubi_core.offload.groups import SwapRule, double_and_single

if TYPE_CHECKING:
    from torch import nn

HERE = "musubi_core.models.flux_kontext"


def _blocks(network: Any) -> list[nn.Module]:
    return [*network.double_blocks, *network.single_blocks]


def _swap_lists(network: Any) -> tuple[list[nn.Module], ...]:
    return list(network.double_blocks), list(network.single_blocks)


SPEC = ArchSpec(
    name="flux_kontext",
    latent=LatentShape(
        architecture="flux_kontext",
        short="fk",
        channels=16,
        spatial=8,
        temporal=0,
        pixel_step=16,
        fps=0.0,
        min_controls=1,
        max_controls=None,
    ),
    card=ModelSpecCard(
        architecture="Flux.1-dev",
        implementation="https://github.com/black-forest-labs/flux",
        resolution="1024x1024",
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
    training_only=("guidance_scale",),
    predict=lazily(f"{HERE}.inputs", "predict"),
    blocks=_blocks,
    required_tensors=("latents", "latents_control", "t5_vec", "clip_l_pooler"),
    adapt_classes=("DoubleStreamBlock", "SingleStreamBlock"),
    adapt_exclude=(r".*(img_mod\.lin|txt_mod\.lin|modulation\.lin).*", r".*(norm).*"),
    keep_precise=(
        *("norm", "bias", "mod", "time_in", "vector_in", "guidance_in", "txt_in", "img_in", "final_layer"),
    ),
    fp8_targets=("double_blocks", "single_blocks"),
    swap=SwapRule(lists=_swap_lists, share=double_and_single, stay=2, visitors=("img_in", "txt_in")),
    lora_names=LORA_NAMES,
    network_modules=("networks.lora_flux", "networks.lora"),
    sampling=SamplingDefaults(
        steps=28,
        shift=3.158,
        shift_for=lazily(f"{HERE}.inputs", "dynamic_shift"),
        guidance=2.5,
        fps=0.0,
        pictures=TakenPictures(control_images=(0, None), control_size=nearest_size),
    ),
    sample_conditioning=lazily(f"{HERE}.inputs", "sample_conditioning"),
    encode_pictures=lazily(f"{HERE}.drawing", "encode_pictures"),
    noise=lazily(f"{HERE}.drawing", "noise"),
    ratios_for=ratios_for,
    released=released,
    diffusers_names=DIFFUSERS,
)
