"""The ComfyUI nodes: tables of inputs and calls into the core. No mathematics here.

Importing this package does nothing, so that parts of it can be tested without ComfyUI; ComfyUI calls
`comfy_entrypoint`. Imports between nodes are relative, because ComfyUI loads the pack under a name of its own
and has a module called `nodes` itself.
"""

from __future__ import annotations

from typing import Any

from .core_link import bind_core


def comfy_entrypoint() -> Any:
    """What ComfyUI asks for its nodes, before it opens its port."""
    bind_core()
    from .extension import MusubiExtension
    from .routes import add_routes

    add_routes()
    return MusubiExtension()
