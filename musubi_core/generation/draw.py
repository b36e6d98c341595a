"""Drawing: from noise to a latent, step by step.

What is drawn depends on the conditions and the networks alone. The noise comes from a generator of its own on
the CPU, seeded by the prompt, so a preview in training, `generate` and a test draw the same picture, and
nothing else that is random in the program is touched.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch
from torch import Tensor

from musubi_core.data.batches import map_tensors, stacked
from musubi_core.events import ShouldStop, never
from musubi_core.generation.conditions import Conditions
from musubi_core.generation.networks import Networks, sides, times_of
from musubi_core.generation.text import Encoded
from musubi_core.models.spec import Conditioning
from musubi_core.sampling.evaluation import COND, UNCOND, Evaluation, VelocityWrapper
from musubi_core.sampling.guidance import guided
from musubi_core.sampling.samplers import SAMPLERS
from musubi_core.sampling.solving import Step
from musubi_core.sampling.through import Through, straight

OnStep: TypeAlias = Callable[[Step], None]


def look_away(step: Step) -> None:
    """`on_step` of a caller who waits for the end."""


@torch.no_grad()
def draw(
    networks: Networks,
    conditions: Conditions,
    *,
    wrapper: VelocityWrapper | None = None,
    on_step: OnStep = look_away,
    should_stop: ShouldStop = never,
) -> Tensor | None:
    """The clean latent, (1, C, F, H, W) or (1, C, H, W) float32 on the device; None when stopped.

    wrapper: answers in the place of the networks, e.g. MagCache. on_step: is told after every step.
    """
    settings = conditions.settings
    sampler = SAMPLERS[settings.sampler]
    times = times_of(settings)
    velocity = _Velocity(networks, conditions, wrapper)
    step_at = {t: number for number, t in enumerate(times[:-1].tolist())}

    def denoise(x: Tensor, t: float) -> Tensor:
        return velocity(x, sampler.told(t), step_at[t])

    x = start_noise(networks, conditions).to(networks.device)
    if conditions.start is not None:
        x = torch.lerp(conditions.start.to(x)[None], x, float(times[0]))
    if should_stop():
        return None
    for step in sampler.solve(denoise, x, times):
        x = step.x
        on_step(step)
        if should_stop():
            return None
    return x if conditions.result is None else x[:, :, conditions.result : conditions.result + 1]


def start_noise(networks: Networks, conditions: Conditions) -> Tensor:
    """(1, ...) float32 on the CPU, from the seed of the prompt."""
    generator = torch.Generator().manual_seed(conditions.settings.seed)
    if networks.spec.noise is not None:
        return networks.spec.noise(conditions.size, generator)[None]
    return torch.randn(conditions.size, generator=generator)[None]


class _Velocity:
    """What the networks say of x, guided. Holds the conditioning on the device."""

    def __init__(self, networks: Networks, conditions: Conditions, wrapper: VelocityWrapper | None) -> None:
        self._networks = networks
        self._scales = conditions.settings.cfg_scales
        self._sides = sides(conditions.settings, networks.experts)
        self._wrapper = wrapper
        self._rescale = networks.spec.sampling_with(networks.options).rescale
        self._branches = {COND: self._conditioning(conditions, conditions.text)}
        self._both: Conditioning | None = None
        if conditions.negative is None:
            return
        if conditions.settings.split_uncond or wrapper is not None:
            self._branches[UNCOND] = self._conditioning(conditions, conditions.negative)
        else:
            self._both = self._conditioning(conditions, conditions.text, conditions.negative)

    def __call__(self, x: Tensor, t: float, step: int) -> Tensor:
        """x: (1, ...) -> the velocity, float32. t: as the network is told it."""
        scale = self._scales[self._sides[step]]
        if scale == 1:
            return self._branch(COND, x, t, step)
        if self._both is None:
            cond, uncond = (self._branch(branch, x, t, step) for branch in (COND, UNCOND))
        else:
            cond, uncond = self._ask(self._both, x.repeat(2, *[1] * (x.ndim - 1)), t, step).chunk(2)
        velocity = guided(cond, uncond, scale)
        return velocity if self._rescale is None else self._rescale(velocity, cond)

    def _branch(self, branch: str, x: Tensor, t: float, step: int) -> Tensor:
        conditioning = self._branches[branch]
        if self._wrapper is None:
            return self._ask(conditioning, x, t, step)

        def ask(through: Through) -> Tensor:
            told = conditioning if through is straight else {**conditioning, "through": through}
            return self._ask(told, x, t, step)

        evaluation = Evaluation(
            branch=branch,
            step=step,
            sides=self._sides,
            t=t,
            network=self._networks.at_work(self._sides[step]),
            x=x,
            conditioning=conditioning,
        )
        return self._wrapper(evaluation, ask)

    def _ask(self, conditioning: Conditioning, x: Tensor, t: float, step: int) -> Tensor:
        networks = self._networks
        network = networks.at_work(self._sides[step])
        times = torch.full((len(x),), t, device=x.device)
        with networks.precision():
            return networks.spec.predict(network, x, times, conditioning, networks.options).float()

    def _conditioning(self, conditions: Conditions, *texts: Encoded) -> Conditioning:
        """Of a batch with one item per text, each with all pictures."""
        spec, options, device = self._networks.spec, self._networks.options, self._networks.device
        batch = stacked([{**text, **conditions.pictures} for text in texts])
        found: Mapping[str, object] = spec.sample_conditioning(batch, conditions.settings.guidance, options)
        return map_tensors(found, lambda tensor: tensor.to(device))
