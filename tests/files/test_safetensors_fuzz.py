"""Mutated safetensors files: the answer is our error or correct data, in bounded time, nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from musubi_core.errors import BadFileError
from musubi_core.files.dtypes import CODES, DTYPES
from musubi_core.files.header import read_header
from musubi_core.files.tensors import TensorFile, read_tensors, write_tensors

fuzz = settings(
    max_examples=250,
    deadline=2000,  # milliseconds for one file
    database=None,  # leave nothing behind
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
names = st.text(st.characters(exclude_categories=("Cs",)), max_size=8).filter(
    lambda name: name != "__metadata__"
)
texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=8)


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    dtype = getattr(torch, draw(st.sampled_from([name for name in CODES if hasattr(torch, name)])))
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    return torch.arange(torch.Size(shape).numel(), dtype=torch.float32).reshape(shape).to(dtype)


def valid_file() -> bytes:
    values = {
        "blocks.0.weight": torch.arange(6, dtype=torch.bfloat16).reshape(2, 3),
        "blocks.0.bias": torch.arange(3, dtype=torch.float32),
        "mask": torch.tensor([True, False]),
        "none": torch.zeros(0, 2),
    }
    return safetensors.torch.save(values, {"format": "pt"})


VALID = valid_file()
HEADER_END = 8 + int.from_bytes(VALID[:8], "little")
ORIGINAL = json.loads(VALID[8:HEADER_END])


def check(content: bytes, folder: Path) -> None:
    """Read a file with ours; what we accept, the library must accept, with the same bytes."""
    path = folder / "x.safetensors"
    path.write_bytes(content)
    try:
        with TensorFile(path) as file:
            ours = {
                name: (tensor.dtype, tuple(tensor.shape), bytes(tensor.reshape(-1).view(torch.uint8).numpy()))
                for name in file.names
                for tensor in [file.read(name)]
            }
    except BadFileError as error:
        assert str(path) in str(error)
        return
    theirs = {
        name: (getattr(torch, DTYPES[info["dtype"]][0]), tuple(info["shape"]), bytes(info["data"]))
        for name, info in safetensors.deserialize(content)
    }
    assert ours == theirs


@fuzz
@given(
    edits=st.lists(st.tuples(st.integers(0, len(VALID) - 1), st.integers(0, 255)), min_size=1, max_size=4),
    cut=st.integers(0, len(VALID)) | st.none(),
    tail=st.binary(max_size=3),
)
def test_changed_bytes(tmp_path: Path, edits: list[tuple[int, int]], cut: int | None, tail: bytes):
    content = bytearray(VALID)
    for place, value in edits:
        content[place] = value
    assume(not content[8:9].isspace())
    check(bytes(content[:cut]) + tail, tmp_path)


@fuzz
@given(
    place=st.integers(8, HEADER_END),
    removed=st.integers(0, 20),
    inserted=st.binary(max_size=20)
    | st.sampled_from([b"{", b"[", b'"', b"-", b"1", b"\\u0000", b"null", b"1e9"]),
)
def test_changed_header_text_of_the_right_length(tmp_path: Path, place: int, removed: int, inserted: bytes):
    header = VALID[8:place] + inserted + VALID[min(place + removed, HEADER_END) : HEADER_END]
    assume(not header[:1].isspace())
    check(len(header).to_bytes(8, "little") + header + VALID[HEADER_END:], tmp_path)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.sampled_from(["F32", "BF16", "F4", "BOOL", ""])
    | st.lists(st.integers(-1, 20), max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)


@fuzz
@given(data=st.data())
def test_changed_values_of_the_header(tmp_path: Path, data: st.DataObject):
    header: dict[str, Any] = json.loads(VALID[8:HEADER_END])
    for _ in range(data.draw(st.integers(1, 3))):
        name = data.draw(st.sampled_from(sorted(header)))
        change = data.draw(st.sampled_from(["drop", "move", "replace", "field"]))
        if change == "drop":  # leaves a hole
            del header[name]
        elif change == "move" and name != "__metadata__":  # the size stays right: only the neighbours tell
            moved = data.draw(st.integers(-8, 8))
            offsets = [offset + moved for offset in ORIGINAL[name]["data_offsets"]]
            header[name] = {**ORIGINAL[name], "data_offsets": offsets}
        elif change == "field" and isinstance(header[name], dict):
            field = data.draw(st.sampled_from(["dtype", "shape", "data_offsets", "format", "more"]))
            header[name][field] = data.draw(json_values)
        else:
            header[name] = data.draw(json_values)
    text = json.dumps(header).encode()
    check(len(text).to_bytes(8, "little") + text + VALID[HEADER_END:], tmp_path)


@fuzz
@given(content=st.binary(max_size=200))
def test_random_bytes(tmp_path: Path, content: bytes):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(BadFileError):
        read_header(tmp_path / "x")


@fuzz
@given(
    values=st.dictionaries(names, tensors(), max_size=5), metadata=st.dictionaries(texts, texts, max_size=1)
)
def test_whatever_is_written_is_read_back_and_is_the_librarys_file(
    tmp_path: Path, values: dict, metadata: dict
):
    assume(values or metadata)  # safetensors 0.8 writes broken JSON when both are empty
    path = tmp_path / "x"
    write_tensors(path, values, metadata)
    assert path.read_bytes() == safetensors.torch.save(values, metadata)
    found = read_tensors(path)
    assert found.keys() == values.keys()
    for name, tensor in values.items():
        assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape
        assert (
            found[name].reshape(-1).view(torch.uint8).tolist()
            == tensor.reshape(-1).view(torch.uint8).tolist()
        )
