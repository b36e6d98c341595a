"""What a job tells, as a few lines on its node."""

from __future__ import annotations

from musubi_core.events import Event, Listener, Note, Warned


def collecting(lines: list[str], also: Listener) -> Listener:
    """A listener that keeps notes and warnings in `lines` and passes everything on."""

    def listen(event: Event) -> None:
        if isinstance(event, Note | Warned):
            lines.append(event.text)
        also(event)

    return listen
