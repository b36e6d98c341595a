"""The noise levels that a run trains on: t in 0..1, where 1 is pure noise.

Every mode of --timestep_sampling is a distribution; a draw is its quantile function of a uniform number.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from musubi_core.training.distributions import (
    UNIFORM,
    Distribution,
    clamped,
    cut,
    logit_normal,
    mixture,
    mode_density,
    shifted,
    squeezed,
)
from musubi_core.training.options.timesteps import TimestepOptions

# (tokens, log shift) of two points of a line, and latent cells per token side
LINES = {
    "flux_shift": (256, 0.5, 4096, 1.15, 2),
    "qwen_shift": (256, 0.5, 8192, 0.9, 2),
    "flux2_shift": (256, 0.5, 4096, 1.15, 1),
    "krea2_shift": (256, 0.5, 6400, 1.15, 2),
}
MIXED = {"qinglong_flux": "flux_shift", "qinglong_qwen": "qwen_shift"}
LOW_NOISE = (5.36, 1.0)  # mean and spread of the log-SNR of the qinglong modes' third part
IDEOGRAM_SPREAD, IDEOGRAM_LOGITS = 1.5, (-7.5, 9.0)  # spread and the limits of the result, as logits


def draw(options: TimestepOptions, quantiles: Tensor, *, height: int, width: int) -> Tensor:
    """t for each quantile: (B,) float64 in 0..1 -> (B,) float64 in the chosen range.

    height, width: of the latent; some modes shift towards noise for larger pictures. Frames never count.
    """
    if options.timestep_sampling == "musubi_sigma":
        return _musubi_sigma(options, quantiles)
    return distribution(options, height=height, width=width).quantile(quantiles)


def distribution(options: TimestepOptions, *, height: int, width: int) -> Distribution:
    """The distribution of t within min_timestep and max_timestep."""
    low, high = options.range
    base = _unlimited(options, options.timestep_sampling, height, width)
    if (low, high) == (0.0, 1.0):
        return base
    if options.preserve_distribution_shape:
        return cut(base, low, high, what=f"timestep_sampling {options.timestep_sampling}")
    return squeezed(base, low, high)


def quantile_range(
    options: TimestepOptions, low: float, high: float, *, height: int, width: int
) -> tuple[float, float]:
    """The quantiles, from and to, for which `draw` gives low <= t < high; t = 1 counts where high is 1."""
    if options.timestep_sampling == "musubi_sigma":
        first = 0.0 if high >= 1 else _musubi_share_from(options, high)
        return first, _musubi_share_from(options, low)
    ends = torch.tensor([low, high], dtype=torch.float64)
    first, last = distribution(options, height=height, width=width).cdf(ends).tolist()
    return 0.0 if low <= 0 else first, 1.0 if high >= 1 else last


def log_shift(mode: str, height: int, width: int) -> float:
    """The logarithm of the shift of a resolution-dependent mode, on a straight line that is not clamped."""
    x1, y1, x2, y2, side = LINES[mode]
    tokens = (height // side) * (width // side)
    return y1 + (y2 - y1) * (tokens - x1) / (x2 - x1)


def _unlimited(options: TimestepOptions, mode: str, height: int, width: int) -> Distribution:
    """The mode itself, over all of 0..1.

    Shifting the sigmoid of x by s is the sigmoid of x + ln s, so most modes are one logit-normal.
    """
    scale = options.sigmoid_scale
    if mode == "uniform":
        return UNIFORM
    if mode == "sigmoid":
        return logit_normal(0.0, scale)
    if mode == "shift":
        return logit_normal(math.log(options.discrete_flow_shift), scale)
    if mode in LINES:
        return logit_normal(log_shift(mode, height, width), scale)
    if mode == "ideogram4_shift":
        location = 0.5 * math.log(16 * height * 16 * width / 512**2)
        low, high = (1 / (1 + math.exp(-logit)) for logit in IDEOGRAM_LOGITS)
        return clamped(logit_normal(location, IDEOGRAM_SPREAD), low, high)
    if mode == "logsnr":
        return _log_snr(options.logit_mean, options.logit_std)
    if mode in MIXED:
        shift, style, detail = (ratio / 100 for ratio in options.qinglong_ratios)
        return mixture(
            [
                (shift, _unlimited(options, MIXED[mode], height, width)),
                (style, _log_snr(options.logit_mean, options.logit_std)),
                (detail, _log_snr(*LOW_NOISE)),
            ]
        )
    return shifted(_scheme(options), options.discrete_flow_shift)  # sigma


def _log_snr(mean: float, spread: float) -> Distribution:
    """Log-SNR ~ N(mean, spread); t = sigmoid(-logSNR / 2) (arXiv 2411.14793)."""
    return logit_normal(-mean / 2, spread / 2)


def _scheme(options: TimestepOptions) -> Distribution:
    """The densities of SD3 (arXiv 2403.03206); a higher logit_mean means more noise, as there."""
    if options.weighting_scheme == "logit_normal":
        return logit_normal(options.logit_mean, options.logit_std)
    if options.weighting_scheme == "mode":
        return mode_density(options.mode_scale)
    return UNIFORM


def _musubi_sigma(options: TimestepOptions, quantiles: Tensor) -> Tensor:
    """An index into musubi-tuner's table of 1000 falling noise levels: u = 0 is pure noise."""
    low, high = (1000 * t for t in options.range)
    index = torch.floor(_scheme(options).quantile(quantiles) * (high - low) + low)
    return _musubi_level(index)


def _musubi_share_from(options: TimestepOptions, t: float) -> float:
    """The share of draws of at least t. Their indices into the falling table are the lowest."""
    low, high = (1000 * end for end in options.range)
    count = int((_musubi_level(torch.arange(1000, dtype=torch.float64)) >= t).sum())
    if count == 1000:
        return 1.0
    place = torch.tensor((count - low) / (high - low), dtype=torch.float64).clamp(0, 1)
    return _scheme(options).cdf(place).item()


def _musubi_level(index: Tensor) -> Tensor:
    return 1 - index.clamp(max=999) / 1000
