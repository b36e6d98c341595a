"""How the learning rate changes over a run."""

from __future__ import annotations

from dataclasses import dataclass

from musubi_core.config import option, parse_key_values
from musubi_core.errors import ConfigError

SCHEDULERS = (
    "constant",
    "constant_with_warmup",
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "inverse_sqrt",
    "cosine_with_min_lr",
    "warmup_stable_decay",
    "piecewise_constant",
    "rex",
    "adafactor",
)
ARGUMENTS = {  # what --lr_scheduler_args may hold, per scheduler
    "piecewise_constant": ("step_rules",),
    "rex": ("rex_alpha", "rex_beta"),
}


def steps_or_fraction(text: str) -> float:
    """ "10%" -> 0.1, "0.1" -> 0.1, "100" -> 100.0. Raises ValueError with the reason."""
    text = text.strip()
    if text.endswith("%"):
        share = float(text[:-1]) / 100
        if not 0 <= share < 1:
            raise ValueError("a percentage must be at least 0% and below 100%")
        return share
    try:
        return float(text)
    except ValueError:
        raise ValueError('expected steps such as 100, a fraction such as 0.1, or "10%"') from None


def steps_of(value: float, total: int) -> int:
    """Below 1 a share of `total` steps, else a number of steps."""
    return int(value * total) if value < 1 else int(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleOptions:
    """The learning-rate schedule. Steps are optimizer steps, whatever the number of processes."""

    lr_scheduler: str = option(
        "constant", help="How the learning rate changes from warm-up to the last step.", choices=SCHEDULERS
    )
    lr_warmup_steps: float = option(
        0.0,
        help='Steps in which the learning rate grows from 0: a number, a fraction such as 0.1, or "10%".',
        ge=0.0,
        parse=steps_or_fraction,
    )
    lr_decay_steps: float = option(
        0.0,
        help='Steps of the final decay of warmup_stable_decay: a number, a fraction such as 0.1, or "10%".',
        ge=0.0,
        parse=steps_or_fraction,
        advanced=True,
    )
    lr_scheduler_num_cycles: int = option(1, help="Restarts of cosine_with_restarts.", ge=1, advanced=True)
    lr_scheduler_power: float = option(1.0, help="Exponent of polynomial.", ge=0.0, advanced=True)
    lr_scheduler_timescale: int | None = option(
        None,
        help="Steps in which inverse_sqrt falls noticeably. Warm-up, else 10000, when not given.",
        ge=1,
        advanced=True,
    )
    lr_scheduler_min_lr_ratio: float | None = option(
        None,
        help="Lowest learning rate as a share of the highest: cosine_with_min_lr, warmup_stable_decay, rex.",
        ge=0.0,
        le=1.0,
        advanced=True,
    )
    lr_scheduler_type: str = option(
        "",
        help="A scheduler class instead of lr_scheduler: a name in torch.optim.lr_scheduler or a full "
        "dotted name. It gets the optimizer and lr_scheduler_args.",
        advanced=True,
    )
    lr_scheduler_args: tuple[str, ...] = option(
        (), help="Arguments of the scheduler as key=value, e.g. rex_alpha=0.1.", advanced=True
    )

    @property
    def follows_total(self) -> bool:
        """Whether a longer run has other learning rates from its first step on."""
        fraction = 0 < self.lr_warmup_steps < 1 or 0 < self.lr_decay_steps < 1
        steady = ("constant", "constant_with_warmup", "inverse_sqrt", "piecewise_constant", "adafactor")
        return not self.lr_scheduler_type and (fraction or self.lr_scheduler not in steady)

    def check(self) -> None:
        """Raises ConfigError for settings that contradict each other or would be ignored."""
        for name in ("lr_warmup_steps", "lr_decay_steps"):
            value = getattr(self, name)
            if value > 1 and value != int(value):
                raise ConfigError(f"{name} is {value:g}; give whole steps (2) or a fraction below 1 (0.1).")
        arguments = parse_key_values(self.lr_scheduler_args, where="--lr_scheduler_args")
        if self.lr_scheduler_type:
            return
        known = ARGUMENTS.get(self.lr_scheduler, ())
        foreign = [name for name in arguments if name not in known]
        if foreign:
            knows = ", ".join(known) if known else "none"
            raise ConfigError(
                f"--lr_scheduler_args {foreign[0]}: {self.lr_scheduler} does not know it. It knows: {knows}."
            )
        if self.lr_scheduler == "constant" and self.lr_warmup_steps:
            raise ConfigError(
                f"lr_scheduler constant has no warm-up, but lr_warmup_steps is {self.lr_warmup_steps:g}. "
                "Use lr_scheduler constant_with_warmup, or lr_warmup_steps 0."
            )
        if self.lr_scheduler == "cosine_with_min_lr" and self.lr_scheduler_min_lr_ratio is None:
            raise ConfigError("lr_scheduler cosine_with_min_lr needs lr_scheduler_min_lr_ratio, e.g. 0.1.")
        if self.lr_scheduler == "piecewise_constant" and "step_rules" not in arguments:
            raise ConfigError(
                'lr_scheduler piecewise_constant needs --lr_scheduler_args step_rules="1:10,0.1:20,0.01".'
            )
