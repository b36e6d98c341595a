"""Which model draws, and how it is kept in memory. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from musubi_core.config import option
from musubi_core.errors import ConfigError
from musubi_core.offload.config import SwapConfig
from musubi_core.quantization.config import Fp8Options, SchemeOptions

ATTENTION = {  # musubi-tuner's words -> ours
    "sdpa": "sdpa",
    "torch": "sdpa",
    "flash": "flash_attn",
    "flash2": "flash_attn",
    "flash3": "flash3",
    "sageattn": "sage_attn",
    "xformers": "xformers",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOptions:
    """Files of the base model, attention, precision, and what waits in host memory."""

    dit: Path | None = option(
        None, help="The diffusion transformer: a .safetensors or .pt file, or a folder of shards."
    )
    vae: Path | None = option(None, help="The VAE. Needed for everything but --output_type latent.")
    architecture: str | None = option(
        None, help="Name of the model's architecture. Read from the file when not given."
    )
    device: str | None = option(
        None, help="Where to compute, e.g. cuda, cuda:1 or cpu. Default: the GPU when there is one."
    )
    text_encoder_cpu: bool = option(
        False, help="Run the text encoders on the CPU: slow, but they then need no GPU memory."
    )
    attn_mode: str = option(
        "sdpa",
        choices=tuple(ATTENTION),
        help="How attention is computed: sdpa (or torch) by PyTorch, the others by their library.",
    )
    split_attn: bool = option(
        False, help="Compute attention one sample at a time: a little slower, less memory.", advanced=True
    )
    mixed_precision: str | None = option(
        None,
        help="Precision of the computation, and of the weights without --dit_dtype. Default: bf16 on a GPU "
        "(fp16 where it has no bf16), full precision on a CPU.",
        choices=("no", "fp16", "bf16"),
    )
    vae_dtype: str | None = option(
        None,
        help="Number format the VAE computes in. Default: the architecture's own choice.",
        choices=("float16", "bfloat16", "float32", "fp16", "bf16", "fp32"),
    )
    fp8: bool = option(
        False,
        help="Keep the large weights of the model in 8 bits: half the memory. Add --fp8_scaled, which costs "
        "nothing and is more exact.",
    )
    fp8_scaled: bool = option(
        False,
        help="Give the 8-bit weights of --fp8 scales, which keeps them closer to the model. The file must be "
        "fp16, bf16 or fp32, or made by musubi quantize-fp8.",
    )
    fp8_fast: bool = option(
        False,
        help="Multiply in fp8 on cards that can (RTX 40, H100 and later): faster, but activations are "
        "rounded too. Needs --fp8_scaled with --fp8_granularity channel or tensor.",
        advanced=True,
    )
    upcast_fp8: bool = option(
        False,
        help="Let --fp8_scaled take a file that is fp8 already. Its weights are rounded a second time, so a "
        "bf16 file is better.",
        advanced=True,
    )
    scheme: SchemeOptions
    blocks_to_swap: int = option(
        0,
        help="Transformer blocks whose weights wait in main memory until they are needed. Each one saves its "
        "size in GPU memory and costs a copy per step.",
        ge=0,
    )
    block_swap_ring_size: int = option(
        2,
        help="Swapped blocks on the GPU at a time. 2 copies the next block while one computes.",
        ge=1,
        advanced=True,
    )
    use_pinned_memory_for_block_swap: bool = option(
        False,
        help="Keep swapped weights in memory that the GPU reads directly: faster, but that memory cannot be "
        "swapped to disk, and Windows counts it as shared GPU memory.",
    )

    @property
    def attention(self) -> str:
        """What `device.attention` calls it."""
        return ATTENTION[self.attn_mode]

    @property
    def swap(self) -> SwapConfig:
        return SwapConfig(
            blocks_to_swap=self.blocks_to_swap,
            block_swap_ring_size=self.block_swap_ring_size,
            use_pinned_memory_for_block_swap=self.use_pinned_memory_for_block_swap,
        )

    @property
    def fp8_options(self) -> Fp8Options:
        return Fp8Options(
            fp8_base=self.fp8,
            fp8_scaled=self.fp8_scaled,
            fp8_fast=self.fp8_fast,
            upcast_fp8=self.upcast_fp8,
            scheme=self.scheme,
        )

    def check(self) -> None:
        """Raises ConfigError for 8-bit options that contradict each other, and a VAE that is not there."""
        if self.fp8_scaled and not self.fp8:
            raise ConfigError("--fp8_scaled needs --fp8, as in musubi-tuner. Add --fp8.")
        self.fp8_options.check()
        if self.vae is not None and not self.vae.exists():
            raise ConfigError(f"--vae: {self.vae} does not exist. Give the path of an existing file.")
