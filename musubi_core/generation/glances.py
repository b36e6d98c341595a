"""Small pictures of what is being drawn, while it is being drawn, without the VAE."""

from __future__ import annotations

from torch import Tensor

from musubi_core.events import Listener, Preview
from musubi_core.generation.draw import OnStep
from musubi_core.generation.networks import Networks
from musubi_core.models.spec import LatentColours
from musubi_core.sampling.colours import glance, grey_glance
from musubi_core.sampling.solving import Step


def glances(networks: Networks, emit: Listener, *, title: str, every: int = 1) -> OnStep:
    """`on_step` for `draw` that shows the network's idea of the result after every so many steps.

    The pictures are as large as the latent: one cell, one pixel. every: 1 or more.
    """
    spec, options = networks.spec, networks.options
    usual, temporal = spec.sampling_with(options), spec.latent_with(options).temporal
    fps = usual.fps / temporal if temporal else 0.0

    def on_step(step: Step) -> None:
        if (step.index + 1) % every == 0:
            frames = at_a_glance(step.clean[0], usual.colours).numpy()
            emit(Preview(step=step.index + 1, title=title, frames=frames, fps=fps))

    return on_step


def at_a_glance(clean: Tensor, colours: LatentColours | None) -> Tensor:
    """(C, F, H, W) or (C, H, W) -> (F, H, W, 3) uint8; in grey where the colours are not known."""
    return grey_glance(clean) if colours is None else glance(clean, colours.factors, colours.bias)
