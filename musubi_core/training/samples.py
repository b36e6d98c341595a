"""Samples: prompts drawn while the LoRA is trained, exactly as `generate` would draw them.

Text and pictures of the prompts are encoded before the networks are loaded. Drawing uses random numbers of
its own and leaves every part of the run as it was, so the training goes where it would have gone without.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import musubi_core
from musubi_core.device.memory import empty_cache
from musubi_core.errors import MusubiError
from musubi_core.events import FileWritten, Listener, Preview, Progress, ShouldStop, Warned
from musubi_core.files.replace import check_writable
from musubi_core.generation.conditions import Conditions, has_pictures, prepare
from musubi_core.generation.draw import OnStep, draw
from musubi_core.generation.facts import settings_facts
from musubi_core.generation.networks import Networks
from musubi_core.generation.opening import vae_of, with_shared
from musubi_core.generation.outputs import write_frames
from musubi_core.generation.prompt_files import read_prompts
from musubi_core.generation.prompt_options import check_pictures
from musubi_core.generation.settings import DrawSettings, settle_prompt
from musubi_core.generation.text import encode_prompts
from musubi_core.models.spec import ArchSpec, EncoderRequest, LatentCodec, LatentEncoding
from musubi_core.sampling.solving import Step
from musubi_core.training.config import TrainConfig
from musubi_core.training.opening import Opened
from musubi_core.training.options.samples import SampleOptions
from musubi_core.training.outputs import step_name

FOLDER = "samples"  # in the output folder
SEEDS = 2**32
FRAMES, STEPS = 1, 20  # where a prompt says nothing, as in musubi-tuner


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompts:
    """What a run draws, ready for the networks. codec: the VAE, not yet opened."""

    conditions: tuple[Conditions, ...] = ()
    codec: LatentEncoding | None = None


def prepare_prompts(opened: Opened, should_stop: ShouldStop) -> Prompts:
    """Read, settle and encode the prompts of a run; empty when there are none, or when stopped.

    Raises ConfigError, BadFileError for prompts, encoders and a VAE that do not fit.
    """
    config, spec, here = opened.config, opened.spec, opened.here
    if config.samples.sample_prompts is None:
        return Prompts()
    if here.main:
        check_writable(config.saving.output_dir / FOLDER)
    drawings = settled_prompts(opened)
    _, text = encoder_options(config, spec)
    codec = _vae(config, spec, here.device, decodes_only=True)  # refuses a foreign VAE now
    request = EncoderRequest(device=here.device, dtype=None, options=text)
    texts = encode_prompts(spec, drawings, request, emit=opened.emit, should_stop=should_stop)
    if texts is None:
        return Prompts()
    encoder: LatentCodec | None = None
    if any(map(has_pictures, drawings)):
        encoder = _vae(config, spec, here.device, decodes_only=False).open()
    options = config.arch_options
    conditions = tuple(prepare(spec, one, texts, codec=encoder, options=options) for one in drawings)
    empty_cache(here.device)
    return Prompts(conditions=conditions, codec=codec)


def settled_prompts(opened: Opened) -> list[DrawSettings]:
    """The prompts of the file with every gap filled in.

    One without a seed keeps the same one all the run. Without --f or --s it is a picture made in few steps,
    because training waits for it.
    """
    config, path = opened.config, opened.config.samples.sample_prompts
    assert path is not None  # asked only with prompts
    drawings = []
    for number, prompt in enumerate(read_prompts(path)):
        check_pictures(prompt)
        settings, lines = settle_prompt(
            replace(prompt, frames=prompt.frames or FRAMES, steps=prompt.steps or STEPS),
            opened.spec,
            config.arch_options,
            experts=opened.experts,
            seed=(opened.fresh.seed + number) % SEEDS,
        )
        for line in lines:
            opened.emit(Warned(text=f"{path.name}, prompt {number + 1}: {line}"))
        drawings.append(settings)
    return drawings


def encoder_options(config: TrainConfig, spec: ArchSpec) -> tuple[Any, Any]:
    """The architecture's options for its VAE and for its text encoders, in agreement with the run."""
    given: Any = config.encoders
    latent = spec.latent_options() if given is None else given.latent
    text = spec.text_options() if given is None else given.text
    return with_shared(latent, config.arch_options), with_shared(text, config.arch_options)


def _vae(config: TrainConfig, spec: ArchSpec, device: torch.device, *, decodes_only: bool) -> LatentEncoding:
    """The VAE of a run, not yet opened. Raises ConfigError, BadFileError."""
    latent, _ = encoder_options(config, spec)
    return vae_of(
        spec,
        latent,
        device,
        weights=config.model.vae,
        dtype=config.samples.vae_dtype,
        decodes_only=decodes_only,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """Draws the prompts of a run with its networks as they are at the moment."""

    options: SampleOptions
    prompts: Prompts
    networks: Networks
    folder: Path
    name: str  # of the run's LoRA
    emit: Listener
    should_stop: ShouldStop
    share: tuple[int, int] = (0, 1)  # this process and how many there are: they share the prompts out

    def __bool__(self) -> bool:
        return bool(self.prompts.conditions)

    def draw(self, step: int) -> None:
        """Draw, decode and write every prompt. A failure costs the samples, never the training."""
        try:
            self._draw(step)
        except (MusubiError, torch.OutOfMemoryError) as error:
            self.emit(Warned(text=f"The samples of step {step} were not made, training goes on: {error}"))
        finally:
            empty_cache(self.networks.device)

    def _draw(self, step: int) -> None:
        numbered = list(enumerate(self.prompts.conditions))[self.share[0] :: self.share[1]]
        latents = []
        for number, one in numbered:
            stage = f"sample {number + 1} of {len(self.prompts.conditions)}"
            latent = draw(
                self.networks, one, on_step=self._progress(stage, one), should_stop=self.should_stop
            )
            if latent is None:
                return
            latents.append(latent.cpu())
        assert self.prompts.codec is not None  # there are prompts
        codec = self.prompts.codec.open()
        for (number, one), latent in zip(numbered, latents, strict=True):
            self._write(codec, number, one, latent, step)

    def _progress(self, stage: str, one: Conditions) -> OnStep:
        steps = one.settings.steps

        def tell(step: Step) -> None:
            self.emit(Progress(stage=stage, done=step.index + 1, total=steps))

        return tell

    def _write(
        self, codec: LatentCodec, number: int, one: Conditions, latent: torch.Tensor, step: int
    ) -> None:
        settings, spec = one.settings, self.networks.spec
        frames = codec.decode(latent.to(self.networks.device))[0].cpu().numpy()
        fps = spec.sampling_with(self.networks.options).fps
        facts = {
            "program": f"musubi_core {musubi_core.__version__}",
            "architecture": spec.name,
            **settings_facts(settings),
            "fps": fps,
            "lora": self.name,
            "step": step,
        }
        stem = f"{step_name(self.name, step)}_{number:02d}_{settings.seed}"
        path = write_frames(self.folder, stem, frames, fps=fps, as_images=False, facts=facts)
        self.emit(FileWritten(path=path, what="sample"))
        details = {"prompt": settings.text, "seed": settings.seed, "number": number, "file": path.name}
        self.emit(Preview(step=step, title=f"sample {number + 1}", frames=frames, fps=fps, details=details))
