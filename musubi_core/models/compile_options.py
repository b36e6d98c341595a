"""torch.compile of the network."""

from __future__ import annotations

from dataclasses import dataclass

from musubi_core.config import option
from musubi_core.errors import ConfigError

CUDA_GRAPHS = ("reduce-overhead", "max-autotune")  # modes that count on weights staying where they are
MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")


@dataclass(frozen=True, slots=True, kw_only=True)
class CompileOptions:
    """Compile each block (--compile) or the whole network (--dynamo_backend). Failing falls back to plain."""

    compile: bool = option(
        False,
        help="Compile each transformer block: slow at the start, then faster. Needs Triton on a GPU.",
    )
    compile_backend: str = option("inductor", help="Compiler of --compile.", advanced=True)
    compile_mode: str = option("default", help="What --compile optimises for.", choices=MODES, advanced=True)
    compile_dynamic: str = option(
        "auto",
        help="Whether --compile expects changing sizes. auto: after the first change.",
        choices=("auto", "true", "false"),
        advanced=True,
    )
    compile_fullgraph: bool = option(
        False, help="Let --compile fail when a block cannot be compiled in one piece.", advanced=True
    )
    compile_cache_size_limit: int | None = option(
        None, help="How many versions of a block the compiler keeps, one per size.", ge=1, advanced=True
    )
    dynamo_backend: str = option(
        "NO", help="Compile the whole network with this backend, e.g. INDUCTOR. NO is off.", advanced=True
    )
    dynamo_mode: str = option(
        "default", help="What --dynamo_backend optimises for.", choices=MODES[:3], advanced=True
    )
    dynamo_fullgraph: bool = option(
        False,
        help="Let --dynamo_backend fail when the network cannot be compiled in one piece.",
        advanced=True,
    )
    dynamo_dynamic: bool = option(
        False, help="Tell --dynamo_backend to expect changing sizes.", advanced=True
    )
    cuda_allow_tf32: bool = option(
        False,
        help="Let NVIDIA cards use TF32 for full-precision matrices: faster, a little less exact.",
        advanced=True,
    )
    cuda_cudnn_benchmark: bool = option(
        False, help="Let cuDNN try its convolutions and keep the fastest.", advanced=True
    )

    @property
    def whole(self) -> bool:
        """Whether the whole network is compiled."""
        return self.dynamo_backend.upper() != "NO"

    def check(self, *, split_attention: bool, swapping: bool) -> None:
        """Raises ConfigError for two ways of compiling at once, or one that cannot follow swapped blocks."""
        if self.compile and self.whole:
            raise ConfigError(
                f"--compile and --dynamo_backend {self.dynamo_backend} both compile the network. Keep one."
            )
        if self.compile_fullgraph and split_attention:
            raise ConfigError(
                "--compile_fullgraph cannot compile --split_attn in one piece. Remove one of them."
            )
        if swapping and self.whole:
            raise ConfigError(
                f"--dynamo_backend {self.dynamo_backend} compiles the whole network, and --blocks_to_swap "
                "changes its weights between the blocks. Use --compile, which compiles block by block."
            )
        if swapping and self.compile and self.compile_mode in CUDA_GRAPHS:
            raise ConfigError(
                f"--compile_mode {self.compile_mode} records where weights lie, and --blocks_to_swap moves "
                "them. Use --compile_mode default or max-autotune-no-cudagraphs."
            )
