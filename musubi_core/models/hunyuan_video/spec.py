"""HunyuanVideo as the rest of the program sees it. Heavy parts are imported when they are used."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from musubi_core.config import LatentShape
from musubi_core.models.hunyuan_video.detect import detect, refuse
from musubi_core.models.hunyuan_video.keys import LORA_NAMES
from musubi_core.models.hunyuan_video.layer_names import DIFFUSERS, RELATED, released
from musubi_core.models.hunyuan_video.options import LatentOptions, TextOptions, TrainOptions
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
    from musubi_core.models.hunyuan_video.load import load

    return load(request)


def _write_tiny(folder: Path, seed: int) -> TinyFiles:
    from musubi_core.models.hunyuan_video.tiny import write_tiny

    return write_tiny(folder, seed)


def _latents(request: EncoderRequest) -> LatentEncoding:
    from musubi_core.models.hunyuan_video.vae import latents

    return latents(request)


def _texts(request: EncoderRequest) -> tuple[TextPass, ...]:
    from musubi_core.models.hunyuan_video.text import texts

    return texts(request)


def _training_input(batch: Batch, options: TrainOptions) -> TrainingInput:
    from musubi_core.models.hunyuan_video.inputs import training_input

    return training_input(batch, options)


def _predict(network: nn.Module, x: Tensor, t: Tensor, conditioning: Conditioning, options: Any) -> Tensor:
    from musubi_core.models.hunyuan_video.inputs import predict

    return predict(network, x, t, conditioning, options)


def _sample_conditioning(batch: Batch, guidance: float, options: TrainOptions) -> Conditioning:
    from musubi_core.models.hunyuan_video.inputs import sample_conditioning

    return sample_conditioning(batch, guidance, options)


def _blocks(network: Any) -> list[nn.Module]:
    return [*network.double_blocks, *network.single_blocks]


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
    required_tensors=("latents", "llm", "llm_mask", "clipL"),
    adapt_classes=("MMDoubleStreamBlock", "MMSingleStreamBlock"),
    adapt_exclude=(r".*(img_mod|txt_mod|modulation).*",),
    keep_precise=("norm", "bias", "mod", "time_in", "vector_in", "guidance_in", "txt_in", "img_in"),
    fp8_targets=("double_blocks", "single_blocks"),
    lora_names=LORA_NAMES,
    network_modules=("networks.lora",),
    sampling=SamplingDefaults(steps=50, shift=7.0, guidance=6.0, fps=24.0),
    sample_conditioning=_sample_conditioning,
    released=released,
    diffusers_names=DIFFUSERS,
    related=RELATED,
)
