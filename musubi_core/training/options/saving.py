"""What a run writes, when, and what the LoRA says of itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from musubi_core.config import option
from musubi_core.errors import ConfigError

PRECISIONS = ("float", "fp32", "fp16", "bf16")
FORBIDDEN = '<>:"/\\|?*'  # in file names on Windows


@dataclass(frozen=True, slots=True, kw_only=True)
class SavingOptions:
    """Files of the run. A state is a folder from which --resume goes on exactly."""

    output_dir: Path = option(help="Folder for the LoRA and everything else that the run writes.")
    output_name: str = option(help="Name of the LoRA file, without its ending.")
    save_precision: str | None = option(
        None,
        help="Number format of the saved LoRA: fp32 when not given; bf16 halves the file.",
        choices=PRECISIONS,
    )
    save_every_n_epochs: int | None = option(None, help="Save the LoRA after every so many epochs.", ge=1)
    save_every_n_steps: int | None = option(None, help="Save the LoRA after every so many steps.", ge=1)
    save_last_n_epochs: int | None = option(
        None, help="Keep only this many of the newest LoRA files saved by epoch.", ge=1, advanced=True
    )
    save_last_n_steps: int | None = option(
        None,
        help="Keep only this many of the newest LoRA files saved by step (files, not steps).",
        ge=1,
        advanced=True,
    )
    save_last_n_epochs_state: int | None = option(
        None,
        help="As save_last_n_epochs, for states. Follows save_last_n_epochs when not given.",
        ge=1,
        advanced=True,
    )
    save_last_n_steps_state: int | None = option(
        None,
        help="As save_last_n_steps, for states. Follows save_last_n_steps when not given.",
        ge=1,
        advanced=True,
    )
    save_state: bool = option(
        False,
        help="Keep a state with every saved LoRA. Without it only the newest state is kept, to restart from.",
    )
    save_state_on_train_end: bool = option(
        False, help="Keep a state of the last step, so that the run can be made longer.", advanced=True
    )
    ema_sigma_rel: tuple[float, ...] = option(
        (),
        help="Keep running averages of these relative widths, e.g. 0.05 0.10, and save them with every LoRA. "
        "ema-merge --weighting stored makes any width of them afterwards.",
        ge=1e-3,
        le=0.288,
        advanced=True,
    )
    resume: str | None = option(
        None,
        help="Go on from this state folder, or auto: the newest state of this output_name, if there is one.",
    )
    training_comment: str | None = option(None, help="A remark that is stored in the LoRA.", advanced=True)
    no_metadata: bool = option(
        False, help="Store only what is needed to load the LoRA, nothing about the run.", advanced=True
    )
    metadata_title: str | None = option(None, help="Title stored in the LoRA.", advanced=True)
    metadata_author: str | None = option(None, help="Author stored in the LoRA.", advanced=True)
    metadata_description: str | None = option(None, help="Description stored in the LoRA.", advanced=True)
    metadata_license: str | None = option(None, help="License stored in the LoRA.", advanced=True)
    metadata_tags: str | None = option(
        None, help="Tags stored in the LoRA, separated by commas.", advanced=True
    )
    metadata_reso: str | None = option(
        None,
        help="Resolution stored in the LoRA, as width,height. The model's own when not given.",
        advanced=True,
    )
    metadata_arch: str | None = option(
        None, help="Architecture stored in the LoRA instead of the model's own name.", advanced=True
    )

    @property
    def metrics_file(self) -> Path:
        """One line of numbers per step."""
        return self.output_dir / f"{self.output_name}.metrics.jsonl"

    def check(self) -> None:
        """Raises ConfigError for a name that no file can have, or keeping what is never saved."""
        bad = [letter for letter in self.output_name if letter in FORBIDDEN or ord(letter) < 32]
        if bad or not self.output_name.strip(" ."):
            raise ConfigError(
                f"output_name is {self.output_name!r}; give a plain file name without {' '.join(FORBIDDEN)}. "
                "The folder belongs in output_dir."
            )
        if len(set(self.ema_sigma_rel)) != len(self.ema_sigma_rel):
            raise ConfigError(f"ema_sigma_rel names a width twice: {self.ema_sigma_rel}.")
        for unit in ("epochs", "steps"):
            kept = getattr(self, f"save_last_n_{unit}") or getattr(self, f"save_last_n_{unit}_state")
            if kept and not getattr(self, f"save_every_n_{unit}"):
                raise ConfigError(
                    f"save_last_n_{unit} is given without save_every_n_{unit}, so nothing is saved."
                )
