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
    *((start, "a Python pickle, as torch.save made before version 1.6") for start in PICKLES),
)


def foreign_kind(start: bytes) -> str | None:
    """What a file that begins with `start` (32 bytes or more) is, when that is known and not safetensors."""
    if not start:
        return "empty"
    if looks_like_safetensors(start):
        return None  # the length of a header may begin with any of the signatures
    for signature, words in _KINDS:
        if start.startswith(signature):
            return words
    return None


def looks_like_safetensors(start: bytes) -> bool:
    """Whether the first bytes are a header length below 4 GB and an opening brace."""
    return start[4:9] == b"\0\0\0\0{"
