"""The few things that a running job needs from ComfyUI's server."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol


class Link(Protocol):
    """What a job asks of the program that it runs in. Tests put something else in its place."""

    def send(self, event: str, data: dict[str, Any]) -> None:
        """Tell every open page."""

    def progress(self, node: str, prompt: str, done: int, total: int, picture: Any) -> None:
        """The bar on the node. picture: a PIL image to show there, or None."""

    def later(self, seconds: float, call: Callable[[], None]) -> None:
        """Call once after a while, in another thread."""

    def cancelled(self) -> bool:
        """Whether the user pressed Cancel. The answer stays the same until `raise_if_cancelled`."""

    def raise_if_cancelled(self) -> None:
        """Leave the node as ComfyUI expects it after Cancel."""

    def is_cancel(self, error: BaseException) -> bool:
        """Whether an exception is ComfyUI's way of saying Cancel."""

    def temp_folder(self) -> Path:
        """Emptied when the server starts."""

    def shown(self, path: Path) -> str:
        """A path as pages may show it: below a folder of ComfyUI, without what lies above."""


class ComfyLink:
    """The real one. Its imports wait, so that this file can be imported without ComfyUI."""

    def send(self, event: str, data: dict[str, Any]) -> None:
        from server import PromptServer

        server = getattr(PromptServer, "instance", None)
        if server is not None:
            # To all pages: one that was reloaded, or opened later, shows the job too.
            server.send_sync(event, data)

    def progress(self, node: str, prompt: str, done: int, total: int, picture: Any) -> None:
        # Not through comfy.utils.ProgressBar: it raises on Cancel, in the middle of whatever reports. A job
        # looks at `cancelled` between its steps instead, and can save first.
        from comfy_execution.progress import get_progress_state
        from server import PromptServer

        preview = None if picture is None else ("JPEG", picture, None)
        get_progress_state().update_progress(node, done, total, preview)
        server = getattr(PromptServer, "instance", None)
        if server is not None:
            data = {"value": done, "max": total, "prompt_id": prompt, "node": node}
            server.send_sync("progress", data, server.client_id)

    def later(self, seconds: float, call: Callable[[], None]) -> None:
        from server import PromptServer

        server = getattr(PromptServer, "instance", None)
        if server is not None:
            server.loop.call_soon_threadsafe(server.loop.call_later, seconds, call)

    def cancelled(self) -> bool:
        from comfy.model_management import processing_interrupted

        return bool(processing_interrupted())

    def raise_if_cancelled(self) -> None:
        from comfy.model_management import throw_exception_if_processing_interrupted

        throw_exception_if_processing_interrupted()

    def is_cancel(self, error: BaseException) -> bool:
        from comfy.model_management import InterruptProcessingException

        return isinstance(error, InterruptProcessingException)

    def temp_folder(self) -> Path:
        import folder_paths

        return Path(folder_paths.get_temp_directory())

    def shown(self, path: Path) -> str:
        import folder_paths

        roots = [Path(folder_paths.get_output_directory()), Path(folder_paths.models_dir)]
        roots += [Path(one) for one in folder_paths.get_folder_paths("loras")]
        for root in roots:
            if path.resolve().is_relative_to(root.resolve()):
                return (root.name / path.resolve().relative_to(root.resolve())).as_posix()
        return path.name
