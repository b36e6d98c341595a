"""The options of this architecture alone. No torch here: the command line builds its parser from them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from musubi_core.config import ConfigError, option

_HALF = ("fp16", "float16")


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentOptions:
    """How the VAE turns pixels into latents and back: there is nothing to choose."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextOptions:
    """Which text encoders turn captions into conditioning."""

    text_encoder1: Path | None = option(
        None,
        help="T5-XXL: ComfyUI's t5xxl_fp16.safetensors or one of its fp8 files, or the Hugging Face folder.",
    )
    text_encoder2: Path | None = option(
        None,
        help="CLIP-L: ComfyUI's clip_l.safetensors, or the Hugging Face folder of clip-vit-large-patch14.",
    )
    tokenizer1: str | None = option(
        None,
        help="Tokenizer of T5-XXL: a folder with tokenizer.json, or a Hugging Face name. Needed only if it "
        "is not beside the encoder and Hugging Face cannot be reached.",
        advanced=True,
    )
    tokenizer2: str | None = option(
        None,
        help="Tokenizer of CLIP-L: a folder with tokenizer.json (or vocab.json and merges.txt), or a Hugging "
        "Face name. Needed only if it is not beside the encoder and Hugging Face cannot be reached.",
        advanced=True,
    )
    text_encoder_dtype: str = option(
        "bfloat16",
        help="Precision of the text encoders and of the cached text: bf16 or fp32. T5 overflows in fp16.",
        advanced=True,
    )
    fp8_t5: bool = option(
        False, help="Keep the linear weights of T5-XXL in 8 bits: half the memory, slightly different text."
    )

    def check(self) -> None:
        """Raises ConfigError naming the text encoder that is missing, and for a precision T5 cannot use."""
        for number, name in ((1, "T5-XXL"), (2, "CLIP-L")):
            if getattr(self, f"text_encoder{number}") is None:
                raise ConfigError(
                    f"The text encoder {name} was not given. Set --text_encoder{number} to its file or "
                    "folder."
                )
        if self.text_encoder_dtype in _HALF:
            raise ConfigError(
                f"text_encoder_dtype is {self.text_encoder_dtype}, in which T5-XXL overflows to NaN. "
                "Use bf16 (the default) or fp32."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainOptions:
    """How the network is loaded and conditioned in training."""

    dit_dtype: str | None = option(
        None,
        help="Precision the network's weights are kept in: bf16, fp16 or fp32. Without it, the precision of "
        "the run.",
    )
    guidance_scale: float = option(
        1.0,
        help="Guidance that the network is told during training. 1 is what nearly all existing LoRAs of FLUX "
        "were trained with; musubi-tuner always uses 1 for Kontext, whatever it is given.",
        ge=0.0,
    )
    reference_placement: str = option(
        "offset",
        choices=("offset", "index"),
        help="Where several control pictures of an item stand: side by side (offset), as ComfyUI places "
        "them by default, or one behind the other (index). One control picture stands the same in both.",
        advanced=True,
    )
