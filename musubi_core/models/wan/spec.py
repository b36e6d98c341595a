"""Wan 2.1 and 2.2 as the rest of the program sees them. Heavy parts are imported when they are used."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from musubi_core.models.spec import (
    ArchSpec,
    Batch,
    Conditioning,
    EncoderRequest,
    Expert,
    LatentEncoding,
    LoadRequest,
    ModelSpecCard,
    TextPass,
    TinyFiles,
    TrainingInput,
)
from musubi_core.models.wan.defaults import latent_for, sampling_for
from musubi_core.models.wan.detect import detect, refuse
from musubi_core.models.wan.keys import LORA_NAMES
from musubi_core.models.wan.layer_names import DIFFUSERS, released
from musubi_core.models.wan.options import LatentOptions, TextOptions, TrainOptions
from musubi_core.models.wan.required import unfit

if TYPE_CHECKING:
    from torch import Tensor, nn


def _load(request: LoadRequest) -> nn.Module:
    from musubi_core.models.wan.load import load

    return load(request)


def _settle(dit: Path, options: TrainOptions) -> TrainOptions:
    from musubi_core.models.wan.experts import settle

    return settle(dit, options)


def _experts(dit: Path, options: TrainOptions) -> tuple[Expert, ...]:
    from musubi_core.models.wan.experts import experts

    return experts(dit, options)


def _write_tiny(folder: Path, seed: int) -> TinyFiles:
    from musubi_core.models.wan.tiny import write_tiny

    return write_tiny(folder, seed)


def _latents(request: EncoderRequest) -> LatentEncoding:
    from musubi_core.models.wan.latents import latents

    return latents(request)


def _texts(request: EncoderRequest) -> tuple[TextPass, ...]:
    from musubi_core.models.wan.text import texts

    return texts(request)


def _training_input(batch: Batch, options: TrainOptions) -> TrainingInput:
    from musubi_core.models.wan.inputs import training_input

    return training_input(batch, options)


def _predict(network: nn.Module, x: Tensor, t: Tensor, conditioning: Conditioning, options: Any) -> Tensor:
    from musubi_core.models.wan.inputs import predict

    return predict(network, x, t, conditioning, options)


def _sample_conditioning(batch: Batch, guidance: float, options: TrainOptions) -> Conditioning:
    from musubi_core.models.wan.inputs import sample_conditioning

    return sample_conditioning(batch, guidance, options)


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
    load=_load,
    settle=_settle,
    experts=_experts,
    write_tiny=_write_tiny,
    latent_options=LatentOptions,
    text_options=TextOptions,
    latents=_latents,
    texts=_texts,
    train_options=TrainOptions,
    training_input=_training_input,
    predict=_predict,
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
    sample_conditioning=_sample_conditioning,
    released=released,
    diffusers_names=DIFFUSERS,
)
