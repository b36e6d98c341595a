"""Loss on held-out items, with noise and noise levels that are the same every time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from musubi_core.data.batches import load_batch
from musubi_core.data.order import BatchPlan, PlannedSample
from musubi_core.data.training_set import TrainingSet
from musubi_core.offload.experts import Experts
from musubi_core.training.inputs import Prepared, Recipe, training_pair
from musubi_core.training.loss import sample_losses
from musubi_core.training.options.validation import ValidationOptions
from musubi_core.training.processes import Processes


def held_out_samples(validation: TrainingSet, limit: int | None) -> tuple[PlannedSample, ...]:
    """Each held-out item once; of more than `limit`, items spread evenly over all."""
    samples = [
        PlannedSample(dataset=number, index=index, repeat=0, item=item)
        for number, dataset in enumerate(validation.datasets)
        for index, item in enumerate(dataset.items)
    ]
    if limit is None or len(samples) <= limit:
        return tuple(samples)
    return tuple(samples[at * len(samples) // limit] for at in range(limit))


def middle_quantiles(count: int) -> tuple[float, ...]:
    """The middles of `count` equal slices of 0..1."""
    return tuple((2 * at + 1) / (2 * count) for at in range(count))


@torch.no_grad()
def validation_losses(
    experts: Experts,
    recipe: Recipe,
    samples: Sequence[PlannedSample],
    options: ValidationOptions,
    processes: Processes,
) -> dict[str, float]:
    """loss/validation, and the mean at each quantile of the noise levels: loss/validation_q0.125, ...

    Every expert is called for all of its noise levels at a stretch. Preparing a pair again for the next one
    costs little beside a network that has to come from host memory.
    """
    quantiles = middle_quantiles(options.validation_quantiles)
    sums = torch.zeros(len(quantiles), dtype=torch.float64)
    for side in experts.order():
        for sample in samples[processes.index :: processes.count]:
            batch = load_batch(BatchPlan(dataset=sample.dataset, samples=(sample,)))
            for at, quantile in enumerate(quantiles):
                name = f"validation/{options.validation_seed}/{sample.identity}/{at}"
                pair = _pair(recipe, batch, quantile, name)
                if pair.side == side:
                    sums[at] += _loss(experts, recipe, pair, processes).item()
    sums = sums.to(processes.device, torch.float32 if processes.device.type == "mps" else torch.float64)
    processes.add_up(sums)
    means = (sums / len(samples)).tolist()
    values = {f"loss/validation_q{q:.3f}": mean for q, mean in zip(quantiles, means, strict=True)}
    return {"loss/validation": sum(means) / len(means), **values}


def _pair(recipe: Recipe, batch: Mapping[str, Any], quantile: float, name: str) -> Prepared:
    """One item at one noise level."""
    quantiles = torch.tensor([quantile], dtype=torch.float64)
    return training_pair(recipe, batch, quantiles=quantiles, noise_names=[name])


def _loss(experts: Experts, recipe: Recipe, pair: Prepared, processes: Processes) -> Tensor:
    """The loss of a pair, (B,)."""
    here, model = pair.on(processes.device), experts.at_work(pair.side)
    with processes.autocast():
        prediction = recipe.spec.predict(model, here.noisy, here.t, here.conditioning, recipe.arch_options)
    return sample_losses(prediction, here.target, here.weights)
