"""Optional libraries, looked up when they are used and not before."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from musubi_core.errors import MissingLibraryError


def library(module: str, package: str, *, option: str) -> ModuleType:
    """The imported module. Raises MissingLibraryError that names the package to install.

    package: what pip calls it. option: what the user set to ask for it.
    """
    try:
        return import_module(module)
    except (ImportError, OSError) as error:  # OSError: a binary that does not fit this system
        raise MissingLibraryError(
            f"{option} needs {package}, which cannot be imported ({error}). Install {package}, or leave "
            f"{option} out."
        ) from error
