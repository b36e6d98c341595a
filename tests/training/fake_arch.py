"""An architecture from outside the core: a plain nn.Module of Linears, and caches to train it on.

Nothing here is registered, so a trainer that asked for one of our own model classes would fail.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from musubi_core.config import LatentShape, build, option
from musubi_core.models.spec import (
    ArchSpec,
    Expert,
    LoadRequest,
    LoraNames,
    ModelSpecCard,
    SamplingDefaults,
    TrainingInput,
)
from musubi_core.training.config import TrainConfig
from musubi_core.training.run import train

CHANNELS, TEXT, HIDDEN = 4, 6, 16


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeOptions:
    guidance_scale: float = option(1.0, help="Added to every token.")
    explode_at: float = option(2.0, help="Predict NaN for samples with t above this.")


@dataclass(frozen=True, slots=True, kw_only=True)
class PairOptions(FakeOptions):
    """Of a model with two networks; --dit is the one for low noise."""

    second: Path | None = option(None, help="The network for high noise.")
    boundary: float = option(0.6, help="Where it begins.")
    apart: bool = option(False, help="Train a LoRA for each.")
    wait: bool = option(False, help="The idle network waits in host memory.")


class FakeBlock(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.up = nn.Linear(hidden, 2 * hidden)
        self.down = nn.Linear(2 * hidden, hidden)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.tanh(self.up(x)))


class FakeNet(nn.Module):
    """(B, C, F, H, W) -> the same; every latent cell is a token."""

    def __init__(self, hidden: int = HIDDEN, blocks: int = 2) -> None:
        super().__init__()
        self.inward = nn.Linear(CHANNELS + TEXT + 1, hidden)
        self.blocks = nn.ModuleList(FakeBlock(hidden) for _ in range(blocks))
        self.outward = nn.Linear(hidden, CHANNELS)
        self.source = ""  # stem of the file that it was loaded from

    def forward(self, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        extra = torch.cat([text, t[:, None]], 1)[:, None].expand(-1, tokens.shape[1], -1)
        h = self.inward(torch.cat([tokens, extra], -1).to(self.inward.weight.dtype))
        for block in self.blocks:
            h = block(h)
        return self.outward(h).transpose(1, 2).reshape(x.shape)


def _load(request: LoadRequest) -> nn.Module:
    tensors = load_file(request.path)
    hidden = tensors["inward.weight"].shape[0]
    net = FakeNet(hidden, sum(name.endswith("up.weight") for name in tensors))
    if request.transform is not None:
        tensors = {name: request.transform(name, tensor) for name, tensor in tensors.items()}
    net.load_state_dict(tensors)
    net.source = request.path.stem
    return net.to(request.device, request.dtype)


def _training_input(batch: Mapping[str, Any], options: FakeOptions) -> TrainingInput:
    return TrainingInput(latents=batch["latents"] * 0.5, conditioning={"text": batch["llm"]})


def _predict(net: Any, x: Tensor, t: Tensor, conditioning: Mapping[str, Any], options: FakeOptions) -> Tensor:
    predicted = net(x, t, conditioning["text"].float() * options.guidance_scale)
    bad = (t > options.explode_at).reshape(-1, 1, 1, 1, 1)
    return predicted + torch.where(bad, float("nan"), 0.0)


def _unused(*args: Any) -> Any:
    raise AssertionError("training must not call this")


FAKE = ArchSpec(
    name="fake",
    latent=LatentShape(
        architecture="fake", short="fake", channels=CHANNELS, spatial=8, temporal=4, pixel_step=16, fps=24.0
    ),
    card=ModelSpecCard(architecture="fake", implementation="tests", resolution="32x32"),
    detect=lambda header: None,
    load=_load,
    write_tiny=_unused,
    latent_options=FakeOptions,
    text_options=FakeOptions,
    latents=_unused,
    texts=_unused,
    train_options=FakeOptions,
    training_input=_training_input,
    predict=_predict,
    blocks=lambda net: list(net.blocks),
    required_tensors=("latents", "llm"),
    adapt_classes=("FakeBlock",),
    adapt_exclude=(),
    keep_precise=(),
    lora_names=LoraNames(),
    network_modules=("networks.lora",),
    sampling=SamplingDefaults(steps=1, shift=1.0, guidance=1.0, fps=1.0),
    sample_conditioning=_unused,
)


def _experts(dit: Path, options: PairOptions) -> tuple[Expert, ...]:
    assert options.second is not None
    low, high = ("low", "high") if options.apart else ("", "")
    return (
        Expert(name="low", path=dit, t_max=options.boundary, lora=low, offload=options.wait),
        Expert(name="high", path=options.second, t_min=options.boundary, lora=high, offload=options.wait),
    )


FAKE_PAIR = replace(FAKE, train_options=PairOptions, experts=_experts, harmless=("wait",))


def write_caches(
    folder: Path, grids: Sequence[tuple[int, int, int]], *, seed: int = 0, nan: int = -1
) -> None:
    """One item per (F, H, W), in musubi-tuner's names and keys."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    for at, (frames, height, width) in enumerate(grids):
        latents = torch.randn(CHANNELS, frames, height, width, generator=generator)
        if at == nan:
            latents[0, 0, 0, 0] = float("nan")
        save_file(
            {f"latents_{frames}x{height}x{width}_float32": latents},
            folder / f"item{at:02d}_{width * 8:04d}x{height * 8:04d}_fake.safetensors",
            {
                "architecture": "fake",
                "width": str(width * 8),
                "height": str(height * 8),
                "format_version": "1.0.1",
            },
        )
        save_file(
            {"llm_float32": torch.randn(TEXT, generator=generator)},
            folder / f"item{at:02d}_fake_te.safetensors",
            {"architecture": "fake", "caption1": f"item {at}", "format_version": "1.0.1"},
        )


def write_workplace(
    folder: Path,
    *,
    grids: Sequence[tuple[int, int, int]] = ((1, 4, 4),) * 5 + ((1, 4, 6),) * 2,
    batch_size: int = 2,
    repeats: int = 1,
    hidden: int = HIDDEN,
    blocks: int = 2,
    nan: int = -1,
) -> dict[str, Any]:
    """A base model, caches and a dataset file. Returns the options that name them."""
    media = folder / "media"
    media.mkdir(parents=True, exist_ok=True)
    write_caches(folder / "cache", grids, nan=nan)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        save_file(FakeNet(hidden, blocks).state_dict(), folder / "fake.safetensors")
    dataset = folder / "dataset.toml"
    dataset.write_text(
        f"[general]\nresolution = [32, 32]\nbatch_size = {batch_size}\nnum_repeats = {repeats}\n"
        f"enable_bucket = true\n[[datasets]]\nimage_directory = '{media.as_posix()}'\n"
        f"cache_directory = '{(folder / 'cache').as_posix()}'\n",
        encoding="utf-8",
    )
    return {
        "dit": folder / "fake.safetensors",
        "dataset_config": dataset,
        "output_dir": folder / "out",
        "output_name": "lora",
    }


def options_for(workplace: Mapping[str, Any], **options: Any) -> dict[str, Any]:
    """The options of a short run, with everything that a test does not mind."""
    return {
        "max_train_steps": 8,
        "seed": 7,
        "learning_rate": 1e-2,
        "network_dim": 2,
        "network_alpha": 2.0,
        "max_data_loader_n_workers": 1,
        "timestep_sampling": "sigmoid",
        **workplace,
        **options,
    }


def config_for(workplace: Mapping[str, Any], **options: Any) -> TrainConfig:
    return build(TrainConfig, options_for(workplace, **options), where="the test")


def write_second(place: Mapping[str, Any]) -> Path:
    """The network for high noise, beside the one for low noise."""
    path = place["dit"].with_name("high.safetensors")
    tensors = load_file(place["dit"])
    generator = torch.Generator().manual_seed(5)
    save_file({k: v + 0.1 * torch.randn(v.shape, generator=generator) for k, v in tensors.items()}, path)
    return path


def pair_config(place: Mapping[str, Any], pair: Mapping[str, Any], **options: Any) -> TrainConfig:
    """A run on both networks. pair: values of PairOptions."""
    chosen = PairOptions(second=place["dit"].with_name("high.safetensors"), **pair)
    return replace(config_for(place, **options), arch_options=chosen)


def run_fake(options: Mapping[str, Any], pair: Mapping[str, Any] | None = None) -> None:
    """A whole run in a process of its own, which a test may kill. pair: on two networks, with PairOptions."""
    torch.set_num_threads(1)
    config = build(TrainConfig, options, where="the test")
    if pair is None:
        train(config, spec=FAKE)
    else:
        train(
            replace(config, arch_options=PairOptions(**{**pair, "second": Path(pair["second"])})),
            spec=FAKE_PAIR,
        )
