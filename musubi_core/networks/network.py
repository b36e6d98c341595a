"""The trained network: adapters beside the layers of a base model, and their state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from musubi_core.networks.kind import AdapterSettings, Kind
from musubi_core.networks.layer import Layer
from musubi_core.networks.naming import underscored
from musubi_core.networks.targets import Choice, Targets

if TYPE_CHECKING:
    from musubi_core.networks.loading import LoadReport


@dataclass(slots=True, kw_only=True, eq=False)
class Adapter:
    """One adapter and what it belongs to. `weights` is a child of the network, never of the base model."""

    layer: Layer
    kind: Kind
    rank: int
    alpha: float
    module_dropout: float
    weights: nn.Module

    @property
    def scale(self) -> float:
        """Strength of the trained change; the multiplier of the network comes on top."""
        return self.alpha / self.rank


def make_adapter(layer: Layer, kind: Kind, settings: AdapterSettings, generator: torch.Generator) -> Adapter:
    """An adapter that changes nothing yet. Raises ConfigError for a layer that it cannot follow."""
    layer.check()
    return Adapter(
        layer=layer,
        kind=kind,
        rank=settings.rank,
        alpha=_as_stored(settings.alpha or settings.rank),
        module_dropout=settings.module_dropout,
        weights=kind.make(layer, settings, generator),
    )


class Network(nn.Module):
    """All adapters of one model. Its parameters are exactly what is trained.

    `apply_to` hangs a forward hook on each adapted layer, so the base model keeps its classes, its parameter
    names and its state dict; `remove` leaves no trace. Layers are found by name each time: after a layer has
    been replaced (quantised, say), call `apply_to` again. Call it before torch.compile.
    """

    def __init__(
        self,
        adapters: Sequence[Adapter],
        choices: Sequence[Choice],
        targets: Targets,
        *,
        loraplus_lr_ratio: float | None = None,
    ) -> None:
        super().__init__()
        self.adapters = {adapter.layer.name: adapter for adapter in adapters}  # in model order
        self.weights = nn.ModuleDict({underscored(name): a.weights for name, a in self.adapters.items()})
        self.choices = tuple(choices)
        self.targets = targets
        self.loraplus_lr_ratio = loraplus_lr_ratio
        self.loaded: LoadReport | None = None  # what network_weights brought
        self.multiplier = 1.0  # strength at run time, never saved
        self.enabled = True  # False: the base model, exactly
        self._hooks: list[RemovableHandle] = []

    def apply_to(self, *models: nn.Module) -> None:
        """Add every adapter's change to its layer's output from now on. Raises ValueError if one is gone.

        Several models of one layout may share the adapters.
        """
        self.remove()
        for model in models:
            modules = dict(model.named_modules())
            lost = [name for name in self.adapters if name not in modules]
            if lost:
                raise ValueError(
                    f"the model has no layer {lost[0]} (and {len(lost) - 1} more); was it rebuilt?"
                )
            for name, adapter in self.adapters.items():
                self._hooks.append(modules[name].register_forward_hook(_hook(self, adapter)))

    def remove(self) -> None:
        """Take all adapters off the base model."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """Optimizer groups with a "name" for logs: "unet", and with LoRA+ also "unet plus".

        The second holds the matrices that start at zero, at lr * ratio. Empty groups are left out.
        """
        plain: list[nn.Parameter] = []
        boosted: list[nn.Parameter] = []
        for adapter in self.adapters.values():
            for name, parameter in adapter.weights.named_parameters():
                plus = self.loraplus_lr_ratio is not None and name in adapter.kind.boosted
                (boosted if plus else plain).append(parameter)
        groups: list[dict[str, Any]] = [
            {"name": "unet", "params": plain, "lr": lr},
            {"name": "unet plus", "params": boosted, "lr": lr * (self.loraplus_lr_ratio or 1.0)},
        ]
        return [group for group in groups if group["params"]]

    def get_extra_state(self) -> Tensor:
        """The alphas, in order: part of `state_dict`, untouched by casts of the weights."""
        return torch.tensor([adapter.alpha for adapter in self.adapters.values()], dtype=torch.float32)

    def set_extra_state(self, state: Tensor) -> None:
        for adapter, alpha in zip(self.adapters.values(), state.tolist(), strict=True):
            adapter.alpha = alpha


def add_change(output: Tensor, change: Tensor, strength: float) -> Tensor:
    """output + strength * change, summed in the wider dtype and rounded once to the dtype of `output`."""
    return torch.add(output, change, alpha=strength).to(output.dtype)


def _hook(network: Network, adapter: Adapter) -> Any:
    weights, chance = adapter.weights, adapter.module_dropout

    def change_output(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if not network.enabled or (chance and weights.training and torch.rand(()).item() < chance):
            return output
        return add_change(output, weights(args[0]), adapter.scale * network.multiplier)

    return change_output


def _as_stored(alpha: float) -> float:
    """Alpha as a file holds it (float32), so that a reloaded adapter has the very same strength."""
    return torch.tensor(alpha, dtype=torch.float32).item()
