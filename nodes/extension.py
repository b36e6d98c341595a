"""What the pack adds to ComfyUI."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io


class MusubiExtension(ComfyExtension):
    """All nodes, group by group."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return []
