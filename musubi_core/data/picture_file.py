"""Picture files: which there are, how large they are, and their pixels.

A picture is turned the way its EXIF orientation says, so that it is trained on as people see it
(musubi-tuner ignores the orientation). Of an animated file the first frame is read.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from musubi_core.errors import BadFileError

if TYPE_CHECKING:
    from PIL.Image import Image

PICTURES = frozenset((".png", ".jpg", ".jpeg", ".webp", ".bmp", ".avif"))
FOREIGN_PICTURES = frozenset((".gif", ".tif", ".tiff", ".heic", ".heif", ".jxl", ".psd", ".svg", ".exr"))
SIDEWAYS = frozenset((5, 6, 7, 8))  # EXIF orientations that swap width and height
EXIF_ORIENTATION = 0x0112
TAIL = 65536
# What each format ends with; a file without it is decoded once to learn whether it is whole.
ENDINGS = {"PNG": b"IEND", "JPEG": b"\xff\xd9"}


@cache
def picture_endings() -> frozenset[str]:
    """Lower-case extensions that can be read here; .jxl only with a plug-in for it."""
    plugin = find_spec("pillow_jxl") or find_spec("jxlpy")
    return PICTURES | {".jxl"} if plugin else PICTURES


def is_picture(path: Path) -> bool:
    return path.suffix.lower() in picture_endings()


def picture_size(path: Path) -> tuple[int, int]:
    """(width, height) as shown, from the header alone where the file's end tells that it is whole.

    Raises BadFileError for a missing, foreign, empty or cut-off file.
    """
    from PIL import Image

    _register_plugins()
    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = _may_have_exif(path, image) and image.getexif().get(EXIF_ORIENTATION, 1) in SIDEWAYS
            if not _looks_whole(path, image.format or ""):
                image.load()
    except FileNotFoundError:
        raise BadFileError(f"{path} does not exist.") from None
    except _unreadable() as error:
        raise BadFileError(f"{path} {_reason(path, error)}") from None
    return (height, width) if turned else (width, height)


def read_picture(path: Path, *, alpha: bool = False) -> NDArray[np.uint8]:
    """(H, W, 3) uint8, or (H, W, 4) where `alpha` is asked for and the file has transparency.

    Raises BadFileError naming the file.
    """
    from PIL import Image, ImageOps

    _register_plugins()
    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened)
            return np.array(_as_rgb(image, alpha))
    except FileNotFoundError:
        raise BadFileError(f"{path} does not exist.") from None
    except _unreadable() as error:
        raise BadFileError(f"{path} {_reason(path, error)}") from None


def _as_rgb(image: Image, alpha: bool) -> Image:
    """RGB or RGBA. 16-bit grey, e.g. a depth map, is scaled to 8 bits instead of being clipped at 255."""
    if image.mode.startswith("I"):
        from PIL import Image as pil

        image = pil.fromarray((np.clip(np.asarray(image), 0, 65535) / 257 + 0.5).astype(np.uint8))
    transparent = image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info
    if alpha and transparent:
        return image.convert("RGBA")
    if image.mode == "RGBA":  # the colours below transparent pixels stay as they are
        return image.convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _may_have_exif(path: Path, image: Image) -> bool:
    """False only when it is certain. Of a PNG without, PIL would decode all pixels to look behind them."""
    if image.format != "PNG" or image.info.keys() & {"exif", "XML:com.adobe.xmp"}:
        return True
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL))
        tail = file.read()
    return b"eXIf" in tail or b"iTXt" in tail


def _looks_whole(path: Path, kind: str) -> bool:
    """Whether the end of the file is the end of its format. False means "not sure"."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if kind == "WEBP":
            return int.from_bytes(file.read(8)[4:], "little") + 8 <= size
        if kind not in ENDINGS:
            return False
        file.seek(max(0, size - TAIL))
        return ENDINGS[kind] in file.read()


def _unreadable() -> tuple[type[Exception], ...]:
    """What PIL raises for damaged files: its decoders let many kinds of error through."""
    from PIL import Image

    return (
        *(OSError, ValueError, SyntaxError, EOFError, IndexError, TypeError, KeyError, OverflowError),
        *(MemoryError, Image.DecompressionBombError),
    )


def _reason(path: Path, error: Exception) -> str:
    from PIL import Image, UnidentifiedImageError

    if path.is_dir():
        return "is a folder, not a picture."
    if isinstance(error, PermissionError):
        return "cannot be read: no permission."
    if path.is_file() and path.stat().st_size == 0:
        return "is empty (0 bytes)."
    if isinstance(error, UnidentifiedImageError):
        return "is no picture that can be read, whatever its name says."
    if isinstance(error, Image.DecompressionBombError):
        return f"is too large: {error}"
    return f"is damaged or cut off: {error}."


@cache
def _register_plugins() -> None:
    """Make PIL read .jxl where a plug-in is installed; importing it is what registers it."""
    if ".jxl" in picture_endings():
        import_module("pillow_jxl" if find_spec("pillow_jxl") else "jxlpy.JXLImagePlugin")
