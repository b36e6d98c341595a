"""The memory that a piece of work needs at most."""

from __future__ import annotations

import threading
import time
from pathlib import Path


class Peak:
    """The largest growth of anonymous memory inside the `with`."""

    def __enter__(self) -> Peak:
        self._start, self._most, self._going = _anonymous(), 0, True
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._going = False
        self._thread.join()

    @property
    def grown(self) -> int:
        return self._most

    def _watch(self) -> None:
        while self._going:
            self._most = max(self._most, _anonymous() - self._start)
            time.sleep(0.002)


def _anonymous() -> int:
    """Bytes of this process that are its own, not mapped files."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    line = next(line for line in status.splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024
