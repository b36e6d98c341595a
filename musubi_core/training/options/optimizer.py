"""Which optimizer moves the adapter weights."""

from __future__ import annotations

from dataclasses import dataclass

from musubi_core.config import option, parse_key_values


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerOptions:
    """Optimizer, its arguments, learning rate and gradient clipping."""

    optimizer_type: str = option(
        "AdamW",
        help="AdamW, AdamW8bit, Adafactor, Prodigy, AdamWScheduleFree, any class of torch.optim, "
        "or a class by its full name such as bitsandbytes.optim.PagedAdamW8bit.",
    )
    optimizer_args: tuple[str, ...] = option(
        (),
        help="Arguments of the optimizer as key=value, e.g. weight_decay=0.01 betas=0.9,0.99.",
        advanced=True,
    )
    learning_rate: float = option(
        1e-4,
        help="Step size. 1e-4 to 2e-4 suits AdamW at rank 16 to 32; self-tuning ones such as Prodigy want 1.",
        ge=0.0,
    )
    max_grad_norm: float = option(
        1.0,
        help="Gradients longer than this are shortened to it. 0 switches clipping off.",
        ge=0.0,
        advanced=True,
    )

    def check(self) -> None:
        """Raises ConfigError for arguments that are no key=value."""
        parse_key_values(self.optimizer_args, where="--optimizer_args")
