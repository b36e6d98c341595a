"""Schemas and checks of nodes that work in every supported version of ComfyUI."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from comfy_api.latest import io

from musubi_core.errors import MusubiError

KNOWN = frozenset(inspect.signature(io.Schema).parameters)


def schema(**about: Any) -> io.Schema:
    """A Schema without the keywords that this version of ComfyUI does not know yet.

    One unknown keyword would keep the whole pack from loading.
    """
    return io.Schema(**{name: value for name, value in about.items() if name in KNOWN})


def validator(check: Callable[[dict[str, Any]], Any], *names: str) -> Any:
    """A `validate_inputs` that shows the user what `check` raises, before anything runs.

    check: gets the inputs by name; links are None. names: inputs that it looks at. ComfyUI leaves their
    limits to us and repeats the message for each of them. None at all means every input: needed where inputs
    are nested.
    """

    def validate_inputs(cls: type, **given: Any) -> bool | str:
        try:
            check(given)
        except MusubiError as error:
            return str(error)
        return True

    if names:  # ComfyUI reads the signature to know what to pass
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        parameters = [inspect.Parameter("cls", kind)]
        parameters += [inspect.Parameter(name, kind, default=None) for name in names]
        validate_inputs.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return classmethod(validate_inputs)


def aliases(*more: str) -> Sequence[str]:
    """What people type to find a node of this pack."""
    return ["musubi", *more]
