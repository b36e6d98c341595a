"""Loss on items that are never trained on."""

from __future__ import annotations

from dataclasses import dataclass

from musubi_core.config import option
from musubi_core.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationOptions:
    """Which items are held out, and when their loss is measured."""

    validation_split: float = option(
        0.0,
        help="Share of the media files that is held out to measure the loss on, e.g. 0.1. 0 is off.",
        ge=0.0,
        le=0.9,
    )
    validate_every_n_steps: int | None = option(
        None, help="Measure the validation loss after every so many steps.", ge=1
    )
    validate_every_n_epochs: int | None = option(
        None, help="Measure the validation loss after every so many epochs. 1 when neither is given.", ge=1
    )
    validation_seed: int = option(
        42,
        help="Chooses the held-out files and their noise, so that runs can be compared.",
        ge=0,
        advanced=True,
    )
    validation_quantiles: int = option(
        4, help="Fixed noise levels at which each held-out item is measured.", ge=1, le=32, advanced=True
    )
    max_validation_items: int | None = option(
        None, help="Measure at most this many held-out items, to save time.", ge=1, advanced=True
    )

    @property
    def every_epochs(self) -> int:
        """Epochs between two measurements; 0 when only steps count."""
        if self.validate_every_n_epochs is None:
            return 0 if self.validate_every_n_steps else 1
        return self.validate_every_n_epochs

    def check(self) -> None:
        """Raises ConfigError when a measurement is asked for and nothing is held out."""
        asked = self.validate_every_n_steps or self.validate_every_n_epochs
        if asked and not self.validation_split:
            raise ConfigError(
                "validate_every_n_steps or validate_every_n_epochs is given, but validation_split is 0. "
                "Set validation_split, e.g. 0.1, to hold files out."
            )
