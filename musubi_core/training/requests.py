"""What may be asked of a training while it runs: save now, make samples now. No torch here."""

from __future__ import annotations

import threading
from typing import Literal, TypeAlias

Request: TypeAlias = Literal["save", "sample"]


class Requests:
    """Wishes from any thread; the training grants them between two steps.

    Asking twice before the next step is asking once. Stopping is not a wish: that is `should_stop`.
    """

    def __init__(self) -> None:
        self._asked: set[Request] = set()
        self._lock = threading.Lock()

    def ask(self, what: Request) -> None:
        """Ask for it at the next step boundary."""
        with self._lock:
            self._asked.add(what)

    def take(self, what: Request) -> bool:
        """Whether it was asked for since the last `take`."""
        with self._lock:
            asked = what in self._asked
            self._asked.discard(what)
        return asked

    def waiting(self) -> frozenset[Request]:
        """What was asked for and not yet taken."""
        with self._lock:
            return frozenset(self._asked)
