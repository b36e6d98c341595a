"""What a run trains: one LoRA that all of a model's networks share, or one for each, by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from musubi_core.errors import BadFileError
from musubi_core.models.spec import Expert
from musubi_core.networks.network import Network


class Loras:
    """The trained networks by `Expert.lora`, which their files bear; "" where there is nothing to tell apart.

    sides: for each expert, the place of its LoRA in `names`.
    """

    def __init__(self, networks: Mapping[str, Network], experts: Sequence[Expert]) -> None:
        self.networks = dict(networks)
        self.names = tuple(self.networks)
        self.sides = tuple(self.names.index(expert.lora) for expert in experts)

    def parts(self) -> list[list[nn.Parameter]]:
        """The parameters, LoRA by LoRA."""
        return [list(network.parameters()) for network in self.networks.values()]

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """Optimizer groups of all of them; the names are for logs."""
        return [
            {**group, "name": f"{group['name']} {name}".rstrip()}
            for name, network in self.networks.items()
            for group in network.parameter_groups(lr)
        ]

    def state_dict(self) -> dict[str, Tensor]:
        """The weights; where LoRAs have names, behind the name of the LoRA."""
        return {
            _before(name) + key: tensor
            for name, network in self.networks.items()
            for key, tensor in network.state_dict().items()
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        for name, network in self.networks.items():
            start = _before(name)
            network.load_state_dict(
                {key.removeprefix(start): one for key, one in state.items() if key.startswith(start)}
            )

    def to(self, device: torch.device) -> None:
        for network in self.networks.values():
            network.to(device)

    def train(self, mode: bool = True) -> None:
        for network in self.networks.values():
            network.train(mode)

    def apply_to(self, models: Sequence[nn.Module]) -> None:
        """Hang each LoRA on its experts' networks. models: one for each side."""
        for at, network in enumerate(self.networks.values()):
            network.apply_to(*(model for model, own in zip(models, self.sides, strict=True) if own == at))

    def remove(self) -> None:
        for network in self.networks.values():
            network.remove()


def named(base: str, lora: str) -> str:
    """The name of a LoRA's file without its ending: of `base`, the LoRA called `lora`."""
    return f"{base}-{lora}" if lora else base


def start_file(given: Path | None, lora: str, names: Sequence[str]) -> Path | None:
    """The file of --network_weights that the LoRA `lora`, one of `names`, starts from.

    One file may start all of them. When it is named like a file of a pair, its companions start the others.
    Raises BadFileError when such a companion is missing.
    """
    if given is None:
        return None
    endings = [named("", name) for name in names if name and given.stem.endswith(named("", name))]
    if not endings:
        return given
    path = given.with_name(named(given.stem.removesuffix(endings[0]), lora) + given.suffix)
    if not path.is_file():
        raise BadFileError(
            f"network_weights {given} is one LoRA of a set, but {path} does not exist. Put it there, or give "
            "the file another name to start all LoRAs from it."
        )
    return path


def _before(name: str) -> str:
    return f"{name}/" if name else ""
