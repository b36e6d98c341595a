"""Every way in which a safetensors file can lie has a test, with the name of the lie."""

from __future__ import annotations

import json
import os
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch

from musubi_core.errors import BadFileError
from musubi_core.files import header as header_module
from musubi_core.files.header import (
    MAX_HEADER_BYTES,
    MAX_NAME,
    MAX_RANK,
    Defect,
    StoredTensor,
    TensorFileError,
    read_header,
)
from musubi_core.files.tensors import TensorFile

F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
EIGHT = bytes(8)


def packed(header: Any, data: bytes = EIGHT, *, length: int | None = None) -> bytes:
    """A file with that header: text as given, anything else as JSON."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(**changes: Any) -> dict[str, Any]:
    return {"a": {key: value for key, value in {**F32, **changes}.items() if value is not ...}}


def pair(first: list[int], second: list[int]) -> dict[str, Any]:
    return {
        name: {"dtype": "U8", "shape": [max(end - start, 0)], "data_offsets": [start, end]}
        for name, (start, end) in {"a": first, "b": second}.items()
    }


LIES: list[tuple[str, bytes, Defect]] = [
    ("empty file", b"", Defect.FOREIGN),
    ("web page", b"<!DOCTYPE html><html>not found</html>", Defect.FOREIGN),
    ("git lfs pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:0", Defect.FOREIGN),
    ("gguf", b"GGUF\x03\x00\x00\x00" + bytes(60), Defect.FOREIGN),
    ("zip", b"PK\x03\x04" + bytes(60), Defect.FOREIGN),
    ("pickle", b"\x80\x02}q\x00." + bytes(60), Defect.FOREIGN),
    ("seven bytes", b"\x02\x00\x00\x00\x00\x00\x00", Defect.TOO_SHORT),
    ("no header", EIGHT, Defect.TOO_SHORT),
    ("zeros", bytes(1000), Defect.TOO_SHORT),
    ("cut in the header", packed({"a": F32})[:30], Defect.TOO_SHORT),
    ("header longer than the file", packed({"a": F32}, length=5000), Defect.TOO_SHORT),
    ("oversized header", packed({"a": F32}, length=MAX_HEADER_BYTES + 1), Defect.HEADER_TOO_LARGE),
    ("header of 2**64 - 1 bytes", packed({"a": F32}, length=2**64 - 1), Defect.HEADER_TOO_LARGE),
    ("not utf-8", packed(b'{"a\xff": 1}'), Defect.NOT_UTF8),
    ("half a surrogate", packed(b'{"\xed\xa0\x80": 1}'), Defect.NOT_UTF8),
    ("no brace", packed(b"[1, 2, 3]    "), Defect.NOT_JSON),
    ("no end", packed(b'{"a": {"dtype": "F32"'), Defect.NOT_JSON),
    ("trailing comma", packed(b'{"__metadata__": {},}'), Defect.NOT_JSON),
    ("comment", packed(b'{/* */"__metadata__": {}}'), Defect.NOT_JSON),
    ("single quotes", packed(b"{'__metadata__': {}}"), Defect.NOT_JSON),
    ("unfinished text", packed(b'{"__metadata__": {"a": "b'), Defect.NOT_JSON),
    ("bad escape", packed(rb'{"\q": {}}'), Defect.NOT_JSON),
    ("control character", packed(b'{"a\x00": {}}'), Defect.NOT_JSON),
    ("text after the end", packed(b"{} {}", b""), Defect.NOT_JSON),
    ("deep nesting", packed(b"[" * 1_000_000), Defect.NOT_JSON),
    ("deep nesting in a tensor", packed(b'{"a": ' + b'{"a": ' * 500_000), Defect.BAD_FIELD),
    ("deep nesting in a shape", packed(b'{"a": {"shape": ' + b"[" * 500_000), Defect.BAD_FIELD),
    ("name twice", packed(b'{"a": %s, "a": %s}' % ((json.dumps(F32).encode(),) * 2)), Defect.DUPLICATE_NAME),
    (
        "name twice, one of them escaped",
        packed(rb'{"a": %s, "\u0061": %s}' % ((json.dumps(F32).encode(),) * 2)),
        Defect.DUPLICATE_NAME,
    ),
    ("metadata twice", packed(b'{"__metadata__": {}, "__metadata__": {}}', b""), Defect.DUPLICATE_NAME),
    ("metadata key twice", packed(b'{"__metadata__": {"a": "1", "a": "2"}}', b""), Defect.DUPLICATE_NAME),
    ("metadata is a list", packed({"__metadata__": []}), Defect.BAD_METADATA),
    ("metadata is null", packed({"__metadata__": None}), Defect.BAD_METADATA),
    ("metadata holds a number", packed({"__metadata__": {"a": 1}}), Defect.BAD_METADATA),
    ("metadata holds a table", packed({"__metadata__": {"a": {}}}), Defect.BAD_METADATA),
    ("metadata holds null", packed({"__metadata__": {"a": None}}), Defect.BAD_METADATA),
    ("tensor is a list", packed({"a": [1]}), Defect.BAD_FIELD),
    ("tensor is null", packed({"a": None}), Defect.BAD_FIELD),
    ("no dtype", packed(entry(dtype=...)), Defect.BAD_FIELD),
    ("no shape", packed(entry(shape=...)), Defect.BAD_FIELD),
    ("no offsets", packed(entry(data_offsets=...)), Defect.BAD_FIELD),
    ("unknown field", packed(entry(strides=[1])), Defect.BAD_FIELD),
    ("field twice", packed(b'{"a": {"shape": [2], "shape": [2]}}'), Defect.BAD_FIELD),
    ("dtype is a number", packed(entry(dtype=32)), Defect.BAD_FIELD),
    ("shape is a number", packed(entry(shape=2)), Defect.BAD_FIELD),
    ("shape is null", packed(entry(shape=None)), Defect.BAD_FIELD),
    ("shape holds a truth value", packed(entry(shape=[True, 2])), Defect.BAD_FIELD),
    ("shape holds a float", packed(entry(shape=[2.0])), Defect.BAD_FIELD),
    ("shape holds an exponent", packed(b'{"a": {"dtype": "F32", "shape": [2e0]}}'), Defect.BAD_FIELD),
    ("shape holds null", packed(entry(shape=[None])), Defect.BAD_FIELD),
    ("shape holds a text", packed(entry(shape=["2"])), Defect.BAD_FIELD),
    ("negative axis", packed(entry(shape=[-1, -2])), Defect.BAD_FIELD),
    ("leading zero", packed(b'{"a": {"dtype": "F32", "shape": [02]}}'), Defect.BAD_FIELD),
    (
        "number of a million digits",
        packed(b'{"a": {"shape": [%s]}}' % (b"9" * 10**6)),
        Defect.BAD_FIELD,
    ),
    ("one offset", packed(entry(data_offsets=[8])), Defect.BAD_FIELD),
    ("three offsets", packed(entry(data_offsets=[0, 4, 8])), Defect.BAD_FIELD),
    ("offsets backwards", packed(entry(data_offsets=[8, 0])), Defect.BAD_FIELD),
    ("negative offset", packed(entry(data_offsets=[-8, 0])), Defect.BAD_FIELD),
    ("offset is a float", packed(entry(data_offsets=[0.0, 8])), Defect.BAD_FIELD),
    ("unknown dtype", packed(entry(dtype="F31")), Defect.UNKNOWN_DTYPE),
    ("dtype in lower case", packed(entry(dtype="f32")), Defect.UNKNOWN_DTYPE),
    ("too many axes", packed(entry(shape=[1] * (MAX_RANK + 1))), Defect.RANK_TOO_LARGE),
    ("product overflows", packed(entry(shape=[2**32, 2**32])), Defect.SHAPE_TOO_LARGE),
    ("product wraps to the right size", packed(entry(shape=[2**62 + 1, 2])), Defect.SHAPE_TOO_LARGE),
    (
        "overflow hidden by a zero",
        packed(entry(shape=[0, 2**62, 8], data_offsets=[0, 0]), b""),
        Defect.SHAPE_TOO_LARGE,
    ),
    ("more bytes than the shape", packed(entry(data_offsets=[0, 12]), bytes(12)), Defect.SIZE_MISMATCH),
    ("fewer bytes than the shape", packed(entry(data_offsets=[0, 4]), bytes(4)), Defect.SIZE_MISMATCH),
    ("bytes of another dtype", packed(entry(dtype="BF16")), Defect.SIZE_MISMATCH),
    ("overlap", packed(pair([0, 6], [4, 8])), Defect.OVERLAP),
    ("same bytes", packed(pair([0, 8], [0, 8])), Defect.OVERLAP),
    ("hole at the start", packed(pair([2, 4], [4, 8])), Defect.HOLE),
    ("hole in the middle", packed(pair([0, 2], [6, 8])), Defect.HOLE),
    ("data cut off", packed({"a": F32}, bytes(7)), Defect.TRUNCATED),
    ("no data", packed({"a": F32}, b""), Defect.TRUNCATED),
    ("bytes after the data", packed({"a": F32}, bytes(9)), Defect.TRAILING_BYTES),
    ("bytes but no tensors", packed({}, bytes(1)), Defect.TRAILING_BYTES),
]


@pytest.mark.parametrize(("content", "defect"), [lie[1:] for lie in LIES], ids=[lie[0] for lie in LIES])
def test_a_lie_is_named(tmp_path: Path, content: bytes, defect: Defect):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(TensorFileError) as caught:
        read_header(path)
    assert caught.value.defect is defect
    assert str(path) in str(caught.value) and len(str(caught.value)) < 1000
    with pytest.raises(TensorFileError):
        TensorFile(path)
    path.rename(tmp_path / "moved")  # and the file is not kept open


def test_the_list_of_lies_leaves_no_defect_out():
    elsewhere = {Defect.NAME_TOO_LONG, Defect.TOO_MANY_TENSORS, Defect.TOO_MUCH_METADATA, Defect.BAD_BOOL}
    assert {defect for _, _, defect in LIES} | elsewhere == set(Defect)


def test_a_very_long_name_is_refused(tmp_path: Path):
    path = tmp_path / "x"
    path.write_bytes(packed({"n" * MAX_NAME: F32}))
    assert len(read_header(path).tensors) == 1
    path.write_bytes(packed({"n" * (MAX_NAME + 1): F32}))
    with pytest.raises(TensorFileError) as caught:
        read_header(path)
    assert caught.value.defect is Defect.NAME_TOO_LONG


def test_more_tensors_or_metadata_than_the_limit_are_refused(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(header_module, "MAX_TENSORS", 3)
    monkeypatch.setattr(header_module, "MAX_METADATA", 3)
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    path = tmp_path / "x"
    for count, fine in ((3, True), (4, False)):
        for content, defect in (
            ({str(n): empty for n in range(count)}, Defect.TOO_MANY_TENSORS),
            ({"__metadata__": {str(n): "" for n in range(count)}}, Defect.TOO_MUCH_METADATA),
        ):
            path.write_bytes(packed(content, b""))
            if fine:
                read_header(path)
                continue
            with pytest.raises(TensorFileError) as caught:
                read_header(path)
            assert caught.value.defect is defect


def test_time_and_memory_are_bounded_by_the_header(tmp_path: Path):
    """Five megabytes of the densest nonsense of each kind."""
    size = 5_000_000
    many = b",".join(b'"%07x":{}' % n for n in range(size // 12))
    floods = {
        "metadata": b'{"__metadata__":{' + b",".join(b'"%06x":""' % n for n in range(size // 12)) + b"}}",
        "tensors": b"{" + many + b"}",
        "brackets": b"{" + b'"a":[' * (size // 5),
        "escapes": b'{"' + rb"\n" * (size // 2),
        "spaces": b"{" + b" " * size,
        "shape": b'{"a":{"shape":[' + b"1," * (size // 2),
    }
    for name, text in floods.items():
        (tmp_path / name).write_bytes(packed(text))
        tracemalloc.start()
        start = time.perf_counter()
        with pytest.raises(TensorFileError):
            read_header(tmp_path / name)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert time.perf_counter() - start < 10, name
        assert peak < 12 * size, (name, peak)


def test_a_header_may_claim_terabytes_without_anything_being_reserved(tmp_path: Path):
    path = tmp_path / "x"
    path.write_bytes(packed(entry(shape=[2**40], data_offsets=[0, 2**42])))
    tracemalloc.start()
    with pytest.raises(TensorFileError) as caught:
        TensorFile(path)
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()
    assert caught.value.defect is Defect.TRUNCATED


@pytest.mark.parametrize(
    ("header", "data"),
    [
        ({}, b""),
        ({"__metadata__": {}}, b""),
        ({"__metadata__": {"": "", 'é\n"\\': "日本"}, "a": F32}, EIGHT),
        ({"": F32}, EIGHT),
        (entry(shape=[], data_offsets=[0, 4]), bytes(4)),
        (entry(shape=[0, 5], data_offsets=[0, 0]), b""),
        (pair([4, 8], [0, 4]), EIGHT),
        (b' \n{ "a" :{"data_offsets":[ 0,8 ], "shape":[2\t],"dtype":"F32"}\r\n}   ', EIGHT),
        (rb'{"\u00e9\ud83d\ude00": {"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', EIGHT),
    ],
)
def test_an_unusual_but_honest_header_is_read_as_the_library_reads_it(
    tmp_path: Path, header: Any, data: bytes
):
    path = tmp_path / "x"
    path.write_bytes(packed(header, data))
    found = read_header(path)
    if isinstance(header, bytes) and header.startswith(b" "):  # the library insists on the brace
        path.write_bytes(packed(header.strip(), data))
    with safetensors.safe_open(path, "pt") as oracle:
        assert set(oracle.keys()) == set(found.tensors)
        assert (oracle.metadata() or {}) == found.metadata
        for name, tensor in found.tensors.items():
            assert tuple(oracle.get_slice(name).get_shape()) == tensor.shape


def test_the_header_of_a_real_file_gives_torchs_names_and_places(tmp_path: Path):
    tensors = {"w": torch.ones(2, 3, dtype=torch.bfloat16), "b": torch.ones(1, dtype=torch.float64)}
    path = tmp_path / "x.safetensors"
    safetensors.torch.save_file(tensors, path, {"k": "v"})
    found = read_header(path)
    assert found.tensors == {
        "b": StoredTensor(shape=(1,), dtype="float64", start=0, end=8),
        "w": StoredTensor(shape=(2, 3), dtype="bfloat16", start=8, end=20),
    }
    assert found.metadata == {"k": "v"}
    assert found.data_start == path.stat().st_size - 20


def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path):
    for path, words in (
        (tmp_path / "no such.safetensors", "does not exist"),
        (tmp_path, "is a folder"),
        (tmp_path / ("n" * 300), "longer than the disk allows|does not exist"),  # Windows: the latter
        (Path(os.devnull), "is not a safetensors file: it is empty"),
    ):
        with pytest.raises(BadFileError, match=words):
            read_header(path)
