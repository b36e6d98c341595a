"""The options of a single frame as a prompt writes them. No torch here."""

from __future__ import annotations

from musubi_core.errors import ConfigError
from musubi_core.models.spec import OneFrame

PARTS = ("no_2x", "no_4x", "no_post")
TARGET, CONTROLS = "target_index", "control_index"
WANTED = f"a list of {TARGET}=N, {CONTROLS}=N;N and {', '.join(PARTS)}, with commas between them"


def parse_one_frame(text: str) -> OneFrame:
    """ "target_index=9,control_index=0;4,no_post" as numbers. Raises ConfigError for anything else."""
    target: int | None = None
    controls: tuple[int, ...] = (0,)
    without: set[str] = set()
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = (word.strip() for word in part.partition("="))
        try:
            if name in PARTS and not value:
                without.add(name)
            elif name == TARGET:
                target = int(value)
            elif name == CONTROLS:
                controls = tuple(int(number) for number in value.split(";"))
            else:
                raise ValueError
        except ValueError:
            raise ConfigError(f"--of {text}: {part!r} is not understood; expected {WANTED}.") from None
    return OneFrame(target=target, controls=controls, without=frozenset(without))
