"""Which noise levels a run trains on, and how much each counts."""

from __future__ import annotations

from dataclasses import dataclass

from musubi_core.config import option
from musubi_core.errors import ConfigError

MODES = (
    "sigma",
    "uniform",
    "sigmoid",
    "shift",
    "flux_shift",
    "qwen_shift",
    "flux2_shift",
    "krea2_shift",
    "ideogram4_shift",
    "logsnr",
    "qinglong_flux",
    "qinglong_qwen",
    "musubi_sigma",
)
SCHEMES = ("none", "logit_normal", "mode", "cosmap", "sigma_sqrt")
SCALED = {
    "sigmoid",
    "shift",
    "flux_shift",
    "qwen_shift",
    "flux2_shift",
    "krea2_shift",
    "qinglong_flux",
    "qinglong_qwen",
}
NORMAL = {"logsnr", "qinglong_flux", "qinglong_qwen"}  # modes that read logit_mean and logit_std


@dataclass(frozen=True, slots=True, kw_only=True)
class TimestepOptions:
    """The distribution of t (1 is pure noise, 0 is clean) and the weight of the loss at each t."""

    timestep_sampling: str = option(
        "sigma",
        help="How noise levels are drawn. sigma: by weighting_scheme, then discrete_flow_shift. shift and "
        "flux_shift suit most models. musubi_sigma: exactly what musubi-tuner calls sigma, where the shift "
        "has no effect and the range counts from noise to clean.",
        choices=MODES,
    )
    discrete_flow_shift: float = option(
        1.0, help="Moves the noise levels of sigma and shift up (above 1) or down (below 1).", ge=1e-3
    )
    sigmoid_scale: float = option(
        1.0,
        help="Spread of sigmoid and of the shift modes; larger means more very clean and very noisy.",
        ge=1e-3,
        advanced=True,
    )
    weighting_scheme: str = option(
        "none",
        help="logit_normal and mode: how sigma draws noise levels. sigma_sqrt, cosmap: weights of the loss.",
        choices=SCHEMES,
        advanced=True,
    )
    logit_mean: float = option(
        0.0, help="Mean of logit_normal, or of the log-SNR of logsnr (-6 for style).", advanced=True
    )
    logit_std: float = option(
        1.0, help="Spread of logit_normal, or of the log-SNR of logsnr (2 for style).", ge=1e-3, advanced=True
    )
    mode_scale: float = option(
        1.29, help="Strength of the mode weighting scheme; 0 is uniform.", ge=-1.0, le=1.75, advanced=True
    )
    min_timestep: int | None = option(
        None, help="Lowest timestep, 0 (clean) to 999. All modes keep to the range.", ge=0, le=999
    )
    max_timestep: int | None = option(None, help="Highest timestep, 1 to 1000 (pure noise).", ge=1, le=1000)
    preserve_distribution_shape: bool = option(
        False,
        help="Cut the distribution at min_timestep and max_timestep instead of squeezing it into the range.",
        advanced=True,
    )
    num_timestep_buckets: int | None = option(
        None,
        help="Spread each epoch's noise levels evenly over this many equally likely slices. Good for small "
        "datasets; 1 is off.",
        ge=1,
        advanced=True,
    )
    qinglong_ratios: tuple[float, ...] = option(
        (80.0, 7.5, 12.5),
        help="Percent of shift, logsnr and low-noise draws in the qinglong modes. musubi-tuner's newer code "
        "uses 79 11 10 for qinglong_flux and 95 0 5 for qinglong_qwen.",
        ge=0.0,
        le=100.0,
        advanced=True,
    )
    timestep_offset: float = option(
        0.0,
        help="Added to the timestep (0 to 1000) that the network is told. 1 is what musubi-tuner passes.",
        ge=-1.0,
        le=1.0,
        advanced=True,
    )
    show_timesteps: str | None = option(
        None,
        help="Show the distribution and the weights of the loss, then stop.",
        choices=("image", "console"),
    )

    @property
    def range(self) -> tuple[float, float]:
        """Lowest and highest t, both in 0..1."""
        low = 0 if self.min_timestep is None else self.min_timestep
        high = 1000 if self.max_timestep is None else self.max_timestep
        return low / 1000, high / 1000

    @property
    def strata(self) -> int:
        """Slices per epoch; 0 means independent draws."""
        buckets = self.num_timestep_buckets or 0
        return buckets if buckets > 1 else 0

    def check(self) -> None:
        """Raises ConfigError for an empty range or settings that a mode cannot follow."""
        low, high = self.range
        if low >= high:
            raise ConfigError(
                f"min_timestep {low * 1000:g} is not below max_timestep {high * 1000:g}; "
                "0 is clean and 1000 is pure noise."
            )
        if len(self.qinglong_ratios) != 3 or abs(sum(self.qinglong_ratios) - 100) > 1e-6:
            given = " ".join(f"{ratio:g}" for ratio in self.qinglong_ratios)
            raise ConfigError(f"qinglong_ratios is {given}; give three percentages that add up to 100.")
        if self.timestep_sampling == "musubi_sigma":
            self._check_compatible()

    def _check_compatible(self) -> None:
        ignored = {
            "discrete_flow_shift": self.discrete_flow_shift != 1.0,
            "preserve_distribution_shape": self.preserve_distribution_shape,
            "num_timestep_buckets": bool(self.strata),
        }
        for name, given in ignored.items():
            if given:
                raise ConfigError(
                    f"timestep_sampling musubi_sigma takes no {name}, as in musubi-tuner. "
                    f"Remove {name}, or use timestep_sampling sigma, which follows it."
                )

    def without_effect(self) -> tuple[str, ...]:
        """One line for each given option that the chosen mode does not read."""
        mode, scheme = self.timestep_sampling, self.weighting_scheme
        drawn = mode in ("sigma", "musubi_sigma")  # weighting_scheme chooses the noise levels
        shaped = mode in NORMAL or (drawn and scheme == "logit_normal")
        unread = {
            "discrete_flow_shift": self.discrete_flow_shift != 1.0 and mode not in ("sigma", "shift"),
            "sigmoid_scale": self.sigmoid_scale != 1.0 and mode not in SCALED,
            "logit_mean": self.logit_mean != 0.0 and not shaped,
            "logit_std": self.logit_std != 1.0 and not shaped,
            "mode_scale": self.mode_scale != 1.29 and not (drawn and scheme == "mode"),
            "weighting_scheme": scheme in ("logit_normal", "mode") and not drawn,
        }
        return tuple(
            f"{name} {getattr(self, name)} has no effect with timestep_sampling {mode} "
            f"and weighting_scheme {scheme}."
            for name, given in unread.items()
            if given
        )
