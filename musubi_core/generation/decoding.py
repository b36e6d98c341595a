"""`--latent_path`: latents from files to pictures and clips, without any network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from musubi_core.config import build, options_of
from musubi_core.device.precision import pick_device
from musubi_core.errors import BadFileError, ConfigError
from musubi_core.events import FileWritten, Listener, Preview, Progress, ShouldStop
from musubi_core.files.replace import check_writable
from musubi_core.generation.config import GenerateConfig
from musubi_core.generation.memory import DECODING, enough_memory
from musubi_core.generation.opening import parts_of, vae_of
from musubi_core.generation.outputs import (
    LATENT_ENDING,
    StoredLatent,
    read_latent,
    unused,
    write_frames,
)
from musubi_core.generation.results import what_is
from musubi_core.models.detection import architecture_of
from musubi_core.models.registry import architecture
from musubi_core.models.spec import ArchSpec, LatentCodec


def decode_files(
    config: GenerateConfig, spec: ArchSpec | None, emit: Listener, should_stop: ShouldStop
) -> tuple[Path, ...]:
    """Decode every file of config.output.latent_path. Returns the files and folders written."""
    folder = config.output.save_path
    assert folder is not None  # by GenerateConfig.check
    paths = config.output.latent_path
    stored = [read_latent(path) for path in paths]
    spec = spec or _architecture(config, paths, stored)
    options = _options(config, spec, stored)
    for path, one in zip(paths, stored, strict=True):
        _check_shape(path, one, spec, options)
    check_writable(folder)
    device = pick_device(config.model.device)
    encoding = vae_of(
        spec,
        options,
        device,
        weights=config.model.vae,
        dtype=config.model.vae_dtype,
        decodes_only=True,
    )
    codec: LatentCodec | None = None
    written: list[Path] = []
    for path, one in zip(paths, stored, strict=True):
        if should_stop():
            break
        emit(Progress(stage="decode", done=len(written), total=len(paths), text=path.name))
        codec = codec or encoding.open()
        with enough_memory("decoding", DECODING):
            frames = codec.decode(one.latent[None].to(device))[0].cpu().numpy()
        fps = config.output.fps or float(one.facts.get("fps") or spec.latent_with(options).fps)
        target = write_frames(
            folder,
            unused(folder, path.stem.removesuffix(LATENT_ENDING)),
            frames,
            fps=fps,
            as_images=config.output.as_images,
            facts={} if config.output.no_metadata else one.facts,
        )
        written.append(target)
        emit(FileWritten(path=target, what=what_is(target)))
        emit(Preview(step=0, title=target.name, frames=frames, fps=fps))
    emit(Progress(stage="decode", done=len(written), total=len(paths)))
    return tuple(written)


def _architecture(config: GenerateConfig, paths: Sequence[Path], stored: Sequence[StoredLatent]) -> ArchSpec:
    """The one that was named; else the one of --dit; else the one that all files say they are of."""
    if config.model.architecture:
        return architecture(config.model.architecture)
    if config.model.dit is not None:
        return architecture_of(config.model.dit)
    named = {str(one.facts.get("architecture", "")): path for one, path in zip(stored, paths, strict=True)}
    if len(named) > 1:
        told = ", ".join(f"{path.name} for {name or 'an unknown model'}" for name, path in named.items())
        raise ConfigError(f"These latents are for different models: {told}. Decode them one by one.")
    name = next(iter(named))
    if not name:
        raise ConfigError(
            f"{paths[0]} does not tell which model it is for. Give --architecture (or --dit, which tells)."
        )
    return architecture(name)


def _options(config: GenerateConfig, spec: ArchSpec, stored: Sequence[StoredLatent]) -> Any:
    """The VAE's options: as given, and where nothing was given, as the first file says."""
    given = parts_of(config, spec).latent
    told = stored[0].facts.get("options", {})
    usual = spec.latent_options()
    names = {info.name for info in options_of(spec.latent_options)}
    missing = {
        name: value
        for name, value in (told if isinstance(told, dict) else {}).items()
        if name in names and getattr(given, name) == getattr(usual, name)
    }
    if not missing:
        return given
    own = {name: getattr(given, name) for name in names}
    return build(spec.latent_options, {**own, **missing}, where="the metadata of the latent")


def _check_shape(path: Path, stored: StoredLatent, spec: ArchSpec, options: Any) -> None:
    shape = spec.latent_with(options)
    axes = 4 if shape.temporal else 3
    found = tuple(stored.latent.shape)
    if len(found) != axes or found[0] != shape.channels:
        wanted = "channels, frames, height, width" if shape.temporal else "channels, height, width"
        raise BadFileError(
            f"{path} holds a latent of shape {list(found)}, but those of {spec.name} are ({wanted}) with "
            f"{shape.channels} channels. Give the --architecture and the options it was drawn with."
        )
