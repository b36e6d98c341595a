"""--show_timesteps: the distribution of noise levels and the weights of the loss, as text or a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from musubi_core.events import FileWritten, Listener, Note
from musubi_core.files.replace import replace_file
from musubi_core.training.draws import generator_for
from musubi_core.training.loss import loss_weights
from musubi_core.training.options.timesteps import TimestepOptions
from musubi_core.training.timesteps import draw

if TYPE_CHECKING:
    from PIL.Image import Image

DRAWS = 100_000
BINS = 1000
LATENT = 128  # side of the latent of a 1024 x 1024 picture
PER_LINE, WIDTH = 25, 64  # of the text form


def show_timesteps(options: TimestepOptions, picture: Path, emit: Listener) -> None:
    """Emit the text form, or write a picture to `picture`, as options.show_timesteps says."""
    if options.show_timesteps == "image":
        image = plot(options)
        with replace_file(picture) as file:
            image.save(file, format="PNG")
        emit(FileWritten(path=picture, what="timestep distribution"))
    else:
        emit(Note(text="\n".join(text_lines(histogram(options), bin_weights(options)))))


def histogram(options: TimestepOptions) -> Tensor:
    """How many of 100,000 draws fall into each of 1000 bins: (1000,), t from 0 to 1."""
    quantiles = torch.rand(DRAWS, dtype=torch.float64, generator=generator_for("show_timesteps"))
    levels = draw(options, quantiles, height=LATENT, width=LATENT)
    return torch.bincount((levels * BINS).long().clamp(max=BINS - 1), minlength=BINS)


def bin_weights(options: TimestepOptions) -> Tensor:
    """The weight of the loss in the middle of each bin: (1000,)."""
    middles = (torch.arange(BINS, dtype=torch.float64) + 0.5) / BINS
    weights = loss_weights(options.weighting_scheme, middles)
    return torch.ones(BINS, dtype=torch.float64) if weights is None else weights


def text_lines(counts: Tensor, weights: Tensor) -> list[str]:
    """One line for 25 bins: timestep, share of the draws as a bar, mean weight."""
    shares = counts.double().reshape(-1, PER_LINE).sum(1) / DRAWS
    mean_weights = weights.reshape(-1, PER_LINE).mean(1)
    lines = ["timestep  share   weight"]
    for at, (share, weight) in enumerate(zip(shares.tolist(), mean_weights.tolist(), strict=True)):
        bar = "#" * round(WIDTH * share / float(shares.max()))
        lines.append(f"{at * PER_LINE:8d}  {share:6.2%}  {weight:7.3g}  {bar}")
    return lines


def plot(options: TimestepOptions) -> Image:
    """The share of the draws in each of 200 bins, as a picture."""
    from musubi_core.pictures.plot import bars

    shares = (histogram(options).double().reshape(-1, 5).sum(1) / DRAWS).tolist()
    title = f"{options.timestep_sampling}: share of the noise levels (0 clean, 1000 pure noise)"
    return bars(shares, title=title, x_low=0, x_high=BINS, x_label="timestep")
