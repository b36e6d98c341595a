"""Every tiny network with a batch of its own encoders, and an oracle for memory."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from musubi_core.config import build, options_of
from musubi_core.data.order import PlannedSample
from musubi_core.data.training_set import CachedItem, TrainingSet
from musubi_core.events import ignore
from musubi_core.models.spec import ArchSpec, EncoderRequest, Pixels
from musubi_core.training.config import TrainConfig
from musubi_core.training.inputs import Prepared, Recipe, training_pair
from musubi_core.training.learning_rates import learning_rates
from musubi_core.training.loading import attach_loras, load_experts
from musubi_core.training.opening import Opened
from musubi_core.training.optimizers import build_optimizer
from musubi_core.training.processes import Processes
from musubi_core.training.state import RunState

CAPTIONS = ("a red ball", "two cats asleep on a very long sofa, seen from above", "rain", "a boat at sea")
CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One architecture with its tiny files, and cached items as caching would write them."""

    spec: ArchSpec
    options: dict[str, Any]
    items: list[dict[str, Tensor]]

    def opened(self, **options: Any) -> Opened:
        config = build(TrainConfig, {**self.options, **options}, where="the test")
        chosen = build(self.spec.train_options, {}, where="the test")
        chosen = self.spec.settle(config.model.dit, chosen)
        config = replace(config, arch_options=chosen)
        experts = self.spec.experts(config.model.dit, chosen)
        nothing = TrainingSet(datasets=())
        fresh = RunState(
            **dict.fromkeys(("step", "epoch", "position", "seed", "session_id", "total"), 0),
            output_name="",
            started_at=0.0,
            together=1,
            kept=False,
            options={},
            identities={},
        )
        return Opened(
            config=config,
            spec=self.spec,
            experts=experts,
            lora_names=tuple(expert.lora for expert in experts),
            here=Processes(device=CPU, precision=config.loop.mixed_precision or "no"),
            emit=ignore,
            training=nothing,
            held_out=nothing,
            plans=cast(Any, None),
            fresh=fresh,
            state=None,
        )

    def prepared(self, opened: Opened, count: int) -> Prepared:
        """The first `count` items as the training loop would be given them."""
        batch: dict[str, Any] = {}
        for name in self.items[0]:
            values = [item[name] for item in self.items[:count]]
            varied = name.startswith("varlen_")
            batch[name.removeprefix("varlen_")] = values if varied else torch.stack(values)
        recipe = Recipe(
            spec=self.spec,
            arch_options=opened.config.arch_options,
            timesteps=opened.config.timesteps,
            seed=0,
            epoch_samples=count,
            epoch_batches=1,
        )
        quantiles = torch.full((count,), 0.5, dtype=torch.float64)
        return training_pair(recipe, batch, quantiles=quantiles, noise_names=list("abcd")[:count])


def stage_of(spec: ArchSpec, folder: Path, *, clip: tuple[int, int, int] = (9, 64, 96)) -> Stage:
    """clip: frames, rows and columns in pixels."""
    files = spec.write_tiny(folder, 0)
    frames = clip[0] if spec.latent.temporal else 1

    def request(cls: type, weights: Path | None = None) -> EncoderRequest:
        known = {info.name for info in options_of(cls)}
        given = {name: value for name, value in files.options.items() if name in known}
        options = build(cls, given, where="the tiny files")
        return EncoderRequest(device=CPU, dtype=torch.float32, options=options, weights=weights)

    def noise(count: int) -> Tensor:
        return torch.randint(0, 256, (count, *clip[1:], 3), dtype=torch.uint8)

    pixels = torch.stack([noise(frames) for _ in CAPTIONS])
    controls = [[noise(frames) for _ in range(spec.latent.min_controls)] for _ in CAPTIONS]
    codec = spec.latents(request(spec.latent_options, files.vae)).open()
    items = codec.encode(Pixels(frames=pixels, seeds=range(len(CAPTIONS)), controls=controls))
    for text_pass in spec.texts(request(spec.text_options)):
        for item, tensors in zip(items, text_pass.open()(CAPTIONS), strict=True):
            item |= tensors
    dataset = folder / "dataset.toml"
    dataset.write_text("", encoding="utf-8")
    options = {
        "dit": files.dit,
        "dataset_config": dataset,
        "output_dir": folder / "out",
        "output_name": "lora",
        "network_dim": 4,
    }
    return Stage(spec=spec, options=options, items=items)


def counted_by_torch(opened: Opened, prepared: Prepared) -> int:
    """Peak bytes of two real steps: what is there before, and what torch's allocator reports on top.

    The first step makes the optimizer's state and whatever the network remembers.
    """
    experts = load_experts(opened)
    loras = attach_loras(opened, experts)
    try:
        stepper = _stepper(opened, experts, loras)
        sample = PlannedSample(dataset=0, index=0, repeat=0, item=cast(CachedItem, None))
        given = replace(prepared, samples=(sample,) * len(prepared.noisy))
        count = len(given.noisy)
        resident = _bytes(
            [
                *(one for model in experts.models for one in (*model.parameters(), *model.buffers())),
                *stepper.gradients.parameters,
                stepper.gradients.buffer,
                *(given.noisy, given.target, given.t),
                *(one for one in given.conditioning.values() if isinstance(one, Tensor)),
            ]
        )
        with torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
        ) as profile:
            for number in range(2):
                stepper.step(number, lambda: given, batches=1, samples=count)
        return resident + _peak(profile)
    finally:
        loras.remove()


def _stepper(opened: Opened, experts: Any, loras: Any) -> Any:
    from musubi_core.models.compiling import Compiled
    from musubi_core.training.gradients import FlatGradients
    from musubi_core.training.step import Stepper

    built = build_optimizer(opened.config.optimizer, loras.parameter_groups(1e-4))
    return Stepper(
        spec=opened.spec,
        arch_options=opened.config.arch_options,
        experts=experts,
        optimizer=built.optimizer,
        rates=learning_rates(opened.config.schedule, built, total=8, learning_rate=1e-4),
        gradients=FlatGradients(*loras.parts()),
        parts=loras.sides,
        processes=opened.here,
        loss_scale=None,
        max_grad_norm=1.0,
        compiled=Compiled([]),
    )


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum({one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in tensors}.values())


def _peak(profile: Any) -> int:
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda one: one.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most
