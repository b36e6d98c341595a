"""FLUX.1 Kontext as the rest of the program sees it. Heavy parts are imported when they are used."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from musubi_core.config import LatentShape
from musubi_core.models.flux_kontext.detect import detect, refuse
from musubi_core.models.flux_kontext.keys import LORA_NAMES
from musubi_core.models.flux_kontext.layer_names import DIFFUSERS, released
from musubi_core.models.flux_kontext.options import LatentOptions, TextOptions, TrainOptions
from musubi_core.models.spec import (
    ArchSpec,
    Batch,
    Conditioning,
    EncoderRequest,
    LatentEncoding,
    LoadRequest,
    ModelSpecCard,
    SamplingDefaults,
    TextPass,
    TinyFiles,
    TrainingInput,
)

if TYPE_CHECKING:
    from torch import Tensor, nn


def _load(request: LoadRequest) -> nn.Module:
    from musubi_core.models.flux_kontext.load import load

    return load(request)


def _write_tiny(folder: Path, seed: int) -> TinyFiles:
    from musubi_core.models.flux_kontext.tiny import write_tiny

    return write_tiny(folder, seed)


def _latents(request: EncoderRequest) -> LatentEncoding:
    from musubi_core.models.flux_kontext.vae import latents

    return latents(request)


def _texts(request: EncoderRequest) -> tuple[TextPass, ...]:
    from musubi_core.models.flux_kontext.text import texts

    return texts(request)


def _training_input(batch: Batch, options: TrainOptions) -> TrainingInput:
    from musubi_core.models.flux_kontext.inputs import training_input

    return training_input(batch, options)


def _predict(network: nn.Module, x: Tensor, t: Tensor, conditioning: Conditioning, options: Any) -> Tensor:
    from musubi_core.models.flux_kontext.inputs import predict

    return predict(network, x, t, conditioning, options)


def _sample_conditioning(batch: Batch, guidance: float, options: TrainOptions) -> Conditioning:
    from musubi_core.models.flux_kontext.inputs import sample_conditioning

    return sample_conditioning(batch, guidance, options)


def _shift(height: int, width: int) -> float:
    from musubi_core.models.flux_kontext.inputs import dynamic_shift

    return dynamic_shift(height, width)


def _blocks(network: Any) -> list[nn.Module]:
    return [*network.double_blocks, *network.single_blocks]


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
    load=_load,
    write_tiny=_write_tiny,
    latent_options=LatentOptions,
    text_options=TextOptions,
    latents=_latents,
    texts=_texts,
    train_options=TrainOptions,
    training_input=_training_input,
    predict=_predict,
    blocks=_blocks,
    required_tensors=("latents", "latents_control", "t5_vec", "clip_l_pooler"),
    adapt_classes=("DoubleStreamBlock", "SingleStreamBlock"),
    adapt_exclude=(r".*(img_mod\.lin|txt_mod\.lin|modulation\.lin).*", r".*(norm).*"),
    keep_precise=(
        *("norm", "bias", "mod", "time_in", "vector_in", "guidance_in", "txt_in", "img_in", "final_layer"),
    ),
    fp8_targets=("double_blocks", "single_blocks"),
    lora_names=LORA_NAMES,
    network_modules=("networks.lora_flux", "networks.lora"),
    sampling=SamplingDefaults(steps=28, shift=3.158, shift_for=_shift, guidance=2.5, fps=0.0),
    sample_conditioning=_sample_conditioning,
    released=released,
    diffusers_names=DIFFUSERS,
)
