"""Every error that the core raises on purpose. A leaf: imports nothing.

A message says what was found, where, what was expected and what to do. Edges show it as it is and exit
with code 2; anything else that escapes is a bug.
"""


class MusubiError(Exception):
    """Something the user can mend. The text is meant for the user."""


class ConfigError(MusubiError):
    """An option, a dataset file or a combination of options is wrong."""


class BadFileError(MusubiError):
    """A file is damaged, foreign, unsafe, or cannot be read or written."""


class MissingLibraryError(MusubiError):
    """An optional library was asked for by an option and is not installed."""


class TrainingError(MusubiError):
    """A run cannot go on: non-finite loss, out of memory, a broken state."""


class Stopped(Exception):
    """The user stopped the job where it cannot simply return. The job catches it; nobody is shown it."""
