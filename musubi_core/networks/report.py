"""What a network trains, layer by layer, as data and as text."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from musubi_core.networks.network import Network


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerReport:
    """One linear map or convolution of the base model. rank 0: no adapter, `excluded` says why."""

    name: str
    kind: str
    shape: tuple[int, ...]
    rank: int = 0
    alpha: float = 0.0
    scale: float = 0.0
    excluded: str = ""

    def __str__(self) -> str:
        text = f"{self.name}  {self.kind} {'x'.join(map(str, self.shape))}  "
        if self.excluded:
            return text + self.excluded
        return text + f"rank {self.rank}, alpha {self.alpha:g}, strength {self.scale:g}"


def layer_reports(network: Network) -> tuple[LayerReport, ...]:
    """Every layer that could have an adapter, in the model's order."""
    reports = []
    for choice in network.choices:
        layer, adapter = choice.layer, network.adapters.get(choice.layer.name)
        reports.append(
            LayerReport(
                name=layer.name,
                kind=layer.kind,
                shape=layer.shape,
                rank=adapter.rank if adapter else 0,
                alpha=adapter.alpha if adapter else 0.0,
                scale=adapter.scale if adapter else 0.0,
                excluded=choice.excluded,
            )
        )
    return tuple(reports)


def summary(network: Network) -> str:
    """One line: how many layers are trained, how large, and at which strength."""
    settings = Counter((adapter.rank, adapter.alpha) for adapter in network.adapters.values())
    (rank, alpha), count = settings.most_common(1)[0]
    millions = sum(parameter.numel() for parameter in network.parameters()) / 1e6
    text = (
        f"Adapters on {len(network.adapters)} of {len(network.choices)} layers, {millions:.2f} M numbers; "
        f"rank {rank}, alpha {alpha:g}: strength {alpha / rank:g} (alpha / rank)"
    )
    if count < len(network.adapters):
        text += f" on {count} of them, the others differ"
    elif alpha < rank:
        text += "; network_alpha = 0 would make it 1"
    return text + "."


def table(network: Network) -> str:
    """One line per layer, for network_args verbose=True."""
    return "\n".join(map(str, layer_reports(network)))


def notes(network: Network, *, verbose: bool) -> tuple[str, ...]:
    """What the user should read first: every layer if `verbose`, the summary, what was loaded."""
    loaded = [network.loaded.note()] if network.loaded else []
    return (*([table(network)] if verbose else []), summary(network), *loaded)
