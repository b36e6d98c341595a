"""Whether a run is only planned, and whether it proves that it fits before it begins."""

from __future__ import annotations

from dataclasses import dataclass

from musubi_core.config import option


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOptions:
    """Prediction of memory, disk and steps."""

    plan: bool = option(
        False,
        help="Say how much memory and disk this run needs and how many steps it has, then stop. No weights "
        "are loaded.",
    )
    vram_limit: float | None = option(
        None,
        help="GPU memory in GB that the plan must keep to. It then names the cheapest settings that do.",
        ge=0.0,
    )
    check_fit: str = option(
        "auto",
        help="Begin with one forward and backward pass on the largest item, which changes nothing, and tell "
        "how much memory it took. auto: on a GPU.",
        choices=("auto", "always", "never"),
        advanced=True,
    )
