"""Max-norm regularisation (`--scale_weight_norms`): no adapter's change may grow beyond a limit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from musubi_core.networks.network import Network


@dataclass(frozen=True, slots=True, kw_only=True)
class NormReport:
    """How many adapters were shrunk; mean and largest Frobenius norm of alpha / rank * delta afterwards."""

    scaled: int
    mean: float
    largest: float


@torch.no_grad()
def scale_weight_norms(networks: Sequence[Network], limit: float) -> NormReport:
    """Shrink each adapter whose norm exceeds `limit`, in place, to `limit`. Call after the optimizer step.

    The multipliers of the networks and dropout play no part. Waits for the device once, not once per layer.
    """
    adapters = [adapter for network in networks for adapter in network.adapters.values()]
    norms = torch.stack([a.kind.norm(a.weights) * abs(a.scale) for a in adapters])
    bounded = norms.clamp(min=limit / 2)  # keeps a new adapter of norm 0 out of the division
    ratios = bounded.clamp(max=limit) / bounded  # exactly 1 below the limit, and x * 1 is exactly x
    for adapter, ratio in zip(adapters, ratios, strict=True):
        adapter.kind.shrink(adapter.weights, ratio)
    after = norms * ratios
    scaled, mean, largest = torch.stack([(ratios != 1).sum().float(), after.mean(), after.max()]).tolist()
    return NormReport(scaled=int(scaled), mean=mean, largest=largest)
