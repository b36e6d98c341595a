"""Which architecture a command line means."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from musubi_core.cli.flags import Flag
from musubi_core.cli.settings import Settings
from musubi_core.config import unknown_key
from musubi_core.errors import ConfigError


def choose(
    settings: Settings,
    flags: Mapping[str, Flag],
    names: tuple[str, ...],
    *,
    checkpoint: str,
    told: Callable[[], str] = str,
) -> str:
    """The architecture that was named; else the one that the checkpoint is of; else the one that other files
    tell; else the only one that knows all the given options.

    checkpoint: the option that holds a model file, "" when the job has none. told: reads the name from other
    files, "" when they do not have it. Raises ConfigError when nothing settles it.
    """
    if "architecture" in settings and settings["architecture"].value is not None:
        setting = settings["architecture"]
        if setting.value not in names:
            raise unknown_key(str(setting.value), names, where=setting.where, kind="architecture")
        return str(setting.value)
    if checkpoint in settings:
        return _of_checkpoint(Path(settings[checkpoint].value))
    if found := told():
        if found not in names:
            raise unknown_key(found, names, where="the metadata of the given file", kind="architecture")
        return found
    fitting = [name for name in names if _knows_all(name, settings, flags)]
    if len(fitting) == 1:
        return fitting[0]
    raise ConfigError(
        f"The options do not tell which model this is for: it could be {' or '.join(fitting or names)}. "
        "Give --architecture."
    )


def _knows_all(architecture: str, settings: Settings, flags: Mapping[str, Flag]) -> bool:
    limits = (flags[name].architectures for name in settings)
    return all(not known_to or architecture in known_to for known_to in limits)


def _of_checkpoint(path: Path) -> str:
    from musubi_core.models.detection import architecture_of

    return architecture_of(path).name
