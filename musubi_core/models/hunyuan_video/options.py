"""The options of this architecture alone. No torch here: the command line builds its parser from them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from musubi_core.config import ConfigError, option


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentOptions:
    """How the VAE turns pixels into latents and back."""

    vae_tiling: bool = option(
        False,
        help="Run the VAE on overlapping tiles of the picture: much less memory, nearly the same latents.",
    )
    vae_spatial_tile_sample_min_size: int | None = option(
        None,
        help="Width and height of a VAE tile in pixels, a multiple of 32. Giving it turns tiling on; "
        "tiling without it uses 256.",
        ge=64,
        advanced=True,
    )
    vae_chunk_size: int | None = option(
        None,
        help="Let each convolution of the VAE work on this many frames at a time. Saves memory on long "
        "clips; the result is the same.",
        ge=1,
        advanced=True,
    )

    def check(self) -> None:
        """Raises ConfigError for a tile size that does not divide into latent tiles with overlap."""
        size = self.vae_spatial_tile_sample_min_size
        if size is not None and size % 32:
            below = size // 32 * 32
            raise ConfigError(
                f"vae_spatial_tile_sample_min_size is {size}; tiles overlap by a quarter and one latent "
                f"covers 8 pixels, so it must be a multiple of 32: use {below} or {below + 32}."
            )

    @property
    def tile_size(self) -> int | None:
        """Pixels per side of a VAE tile, None for the whole picture at once."""
        if self.vae_spatial_tile_sample_min_size is not None:
            return self.vae_spatial_tile_sample_min_size
        return 256 if self.vae_tiling else None


@dataclass(frozen=True, slots=True, kw_only=True)
class TextOptions:
    """Which text encoders turn captions into conditioning."""

    text_encoder1: Path | None = option(
        None,
        help="LLaVA-Llama-3: ComfyUI's llava_llama3_fp16.safetensors, or the Hugging Face folder.",
    )
    text_encoder2: Path | None = option(
        None,
        help="CLIP-L: ComfyUI's clip_l.safetensors, or the Hugging Face folder of clip-vit-large-patch14.",
    )
    tokenizer1: str | None = option(
        None,
        help="Tokenizer of LLaVA-Llama-3: a folder with tokenizer.json, or a Hugging Face name. Needed only "
        "if it is not beside the encoder and Hugging Face cannot be reached.",
        advanced=True,
    )
    tokenizer2: str | None = option(
        None,
        help="Tokenizer of CLIP-L: a folder with tokenizer.json (or vocab.json and merges.txt), or a Hugging "
        "Face name. Needed only if it is not beside the encoder and Hugging Face cannot be reached.",
        advanced=True,
    )
    text_encoder_dtype: str = option(
        "float16",
        help="Precision of the text encoders and of the cached text: fp16, bf16 or fp32. On a CPU, fp16 is "
        "calculated in fp32.",
        advanced=True,
    )
    fp8_llm: bool = option(
        False,
        help="Keep the linear weights of LLaVA-Llama-3 in 8 bits: half the memory, slightly different text.",
    )

    def check(self) -> None:
        """Raises ConfigError naming the text encoder that is missing."""
        for number, name in ((1, "LLaVA-Llama-3"), (2, "CLIP-L")):
            if getattr(self, f"text_encoder{number}") is None:
                raise ConfigError(
                    f"The text encoder {name} was not given. Set --text_encoder{number} to its file or "
                    "folder."
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainOptions:
    """How the network is loaded and conditioned in training."""

    dit_dtype: str | None = option(
        None,
        help="Precision the network's weights are kept in: bf16, fp16 or fp32. Without it, the precision of "
        "the run.",
    )
    dit_in_channels: int = option(
        16,
        help="Input channels of the network: 16, or 32 for SkyReels image-to-video, which then also sees the "
        "first frame of each clip.",
    )
    guidance_scale: float = option(
        1.0,
        help="Guidance that the network is told during training. It is multiplied by guidance_multiplier.",
        ge=0.0,
    )
    guidance_multiplier: float = option(
        1.0,
        help="1 tells the network guidance_scale as it is, as nearly all existing HunyuanVideo LoRAs were "
        "trained. 1000 is the scale that the network sees when it generates.",
        ge=0.0,
        advanced=True,
    )

    def check(self) -> None:
        """Raises ConfigError for a number of channels that no trainable network has."""
        if self.dit_in_channels not in (16, 32):
            raise ConfigError(
                f"dit_in_channels is {self.dit_in_channels}; HunyuanVideo networks that can be trained have "
                "16 (text to video) or 32 (SkyReels image to video)."
            )
