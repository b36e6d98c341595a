"""Pictures and clips drawn while the LoRA is trained."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from musubi_core.config import option
from musubi_core.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleOptions:
    """What is drawn, and when. Drawing needs VAE and text encoders, and never changes the training."""

    sample_prompts: Path | None = option(
        None,
        help="File of prompts (.txt, .toml or .json) that are drawn while training, with the LoRA as it is "
        "then. Needs --vae and the text encoders, and one of the three options below that say when. In "
        "ComfyUI they are also drawn on request.",
    )
    sample_at_first: bool = option(False, help="Draw the prompts once before the first step.")
    sample_every_n_steps: int | None = option(None, help="Draw the prompts after every so many steps.", ge=1)
    sample_every_n_epochs: int | None = option(
        None, help="Draw the prompts after every so many epochs.", ge=1
    )
    vae_dtype: str | None = option(
        None,
        help="Number format the VAE computes in. Default: the architecture's own choice.",
        choices=("float16", "bfloat16", "float32", "fp16", "bf16", "fp32"),
        advanced=True,
    )

    @property
    def asked(self) -> bool:
        """Whether anything says when to draw."""
        return bool(self.sample_at_first or self.sample_every_n_steps or self.sample_every_n_epochs)

    def due(self, *, step: int, epoch: int, ends_epoch: bool) -> bool:
        """Whether to draw now. step: finished steps; epoch: from 1, the one of the last step."""
        by_step = self.sample_every_n_steps and step % self.sample_every_n_steps == 0
        by_epoch = self.sample_every_n_epochs and ends_epoch and epoch % self.sample_every_n_epochs == 0
        return bool(by_step or by_epoch)

    def check(self, vae: Path | None) -> None:
        """Raises ConfigError for a time without prompts, prompts that are not there, and a missing VAE."""
        if self.sample_prompts is None:
            if self.asked:
                raise ConfigError(
                    "sample_at_first, sample_every_n_steps or sample_every_n_epochs is given, but there is "
                    "nothing to draw. Set --sample_prompts to a file of prompts."
                )
            return
        if not self.sample_prompts.is_file():
            raise ConfigError(f"--sample_prompts: {self.sample_prompts} does not exist.")
        if vae is None:
            raise ConfigError("--sample_prompts needs the VAE that decodes what is drawn. Give --vae.")
        if not vae.exists():
            raise ConfigError(f"--vae: {vae} does not exist. Give the path of an existing file.")
