"""What a file really is, from its first bytes, when it is not what its name says."""

from __future__ import annotations

ZIP = b"PK\x03\x04"  # torch.save since 1.6, also TorchScript
PICKLES = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")  # torch.save before 1.6, other programs

_KINDS = (
    (ZIP, "a zip archive, as torch.save makes (.pt, .pth, .bin, .ckpt)"),
    (b"GGUF", "a GGUF file, which this program does not read"),
    (b"version https://git-lfs", "a Git LFS pointer of a few lines: fetch the real file with 'git lfs pull'"),
    (b"<!DOCTYPE", "a web page, probably an error page saved by a failed download"),
    (b"<!doctype", "a web page, probably an error page saved by a failed download"),
    (b"<html", "a web page, probably an error page saved by a failed download"),
    (b"\x89HDF\r\n", "an HDF5 file, which this program does not read"),
    (b"\x1f\x8b", "a gzip archive: unpack it first"),
    (b"7z\xbc\xaf", "a 7-Zip archive: unpack it first"),
    (b"Rar!", "a RAR archive: unpack it first"),
)


def foreign_kind(start: bytes) -> str | None:
    """What a file that begins with `start` (32 bytes or more) is, when that is known and not safetensors."""
    if not start.strip(b"\0"):
        return "empty" if not start else None
    for signature, words in _KINDS:
        if start.startswith(signature):
            return words
    # A safetensors header of 0x0280 bytes starts like a pickle; only the rest tells them apart.
    if start.startswith(PICKLES) and start[8:9] != b"{":
        return "a Python pickle, as torch.save made before version 1.6"
    return None


def looks_like_safetensors(start: bytes) -> bool:
    """Whether the first bytes are a plausible length and an opening brace."""
    return len(start) > 8 and start[8:9] == b"{" and start[5:8] == b"\0\0\0"
