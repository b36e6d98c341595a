"""Ctrl-C and a polite kill end a job after it has saved."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequest:
    """`should_stop` of a command line: false until the first signal."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self.interrupts = False  # while waiting for a person, a signal must end the waiting too

    def __call__(self) -> bool:
        return self.signal is not None

    def ask(self, text: str) -> str | None:
        """The next line that a person types; None at the end of the input and on a signal."""
        self.interrupts = True
        try:
            return input(text)
        except (EOFError, KeyboardInterrupt):
            return None
        finally:
            self.interrupts = False

    @property
    def exit_code(self) -> int:
        """What shells expect of a program ended by this signal: 130 for Ctrl-C."""
        return 128 + (self.signal or 0)


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """While open, SIGINT and SIGTERM (on Windows also Ctrl-Break) ask for a stop.

    The second signal raises KeyboardInterrupt wherever the program is, the third ends it at once. Elsewhere
    than in the main thread signals cannot be caught, and nothing is changed.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def on_signal(number: int, frame: FrameType | None) -> None:
        if request.signal is None:
            request.signal = number
            if request.interrupts:
                raise KeyboardInterrupt
            return
        signal.signal(number, signal.SIG_DFL)
        raise KeyboardInterrupt

    names = [name for name in ("SIGINT", "SIGTERM", "SIGBREAK") if hasattr(signal, name)]
    before = {
        number: signal.signal(number, on_signal) for number in (getattr(signal, name) for name in names)
    }
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
