"""How long a run takes, how steps are made, and with which numbers."""

from __future__ import annotations

from dataclasses import dataclass

from musubi_core.config import option


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopOptions:
    """Length, seed, accumulation and precision."""

    max_train_steps: int = option(1600, help="Optimizer steps of the whole run.", ge=1)
    max_train_epochs: int | None = option(
        None, help="Passes over the dataset. When given it decides, and max_train_steps does not.", ge=1
    )
    seed: int | None = option(
        None,
        help="The same seed gives the same LoRA. A random one is taken and reported when not given.",
        ge=0,
        le=2**63 - 1,
    )
    gradient_checkpointing: bool = option(
        False,
        help="Compute activations twice instead of keeping them: much less memory, about a third slower.",
    )
    gradient_accumulation_steps: int = option(
        1, help="Batches whose gradients make one step. The same as a larger batch, in less memory.", ge=1
    )
    mixed_precision: str | None = option(
        None,
        help="Precision of the computation. Not given: as accelerate launch says, else bf16 on a GPU and "
        "full precision on a CPU.",
        choices=("no", "fp16", "bf16"),
    )
    max_nonfinite_steps: int = option(
        3,
        help="Stop after this many steps in a row whose loss or gradient is not a number. Such steps never "
        "change the weights.",
        ge=1,
        advanced=True,
    )
    ddp_timeout: int | None = option(
        None, help="Minutes that processes wait for each other. Several GPUs only.", ge=1, advanced=True
    )
    ddp_gradient_as_bucket_view: bool = option(
        False,
        help="Accepted from older command lines. Gradients always live in one shared buffer anyway.",
        advanced=True,
    )
    ddp_static_graph: bool = option(
        False,
        help="Accepted from older command lines. Gradients are exchanged once per step anyway.",
        advanced=True,
    )
