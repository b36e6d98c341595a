"""ComfyUI-Musubi, as ComfyUI finds it in custom_nodes."""

from .nodes import comfy_entrypoint

WEB_DIRECTORY = "./web"
__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
