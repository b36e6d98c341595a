from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import pytest
import torch

from musubi_core.errors import BadFileError
from musubi_core.files.digest import content_hash, weights_identity
from musubi_core.files.tensors import write_tensors

MB = 1 << 20


def test_the_content_hash_is_sha256_of_all_bytes(tmp_path: Path):
    for content in (b"", b"abc", os.urandom(3 * MB + 7)):
        (tmp_path / "é 'x'").write_bytes(content)
        assert content_hash(tmp_path / "é 'x'") == hashlib.sha256(content).hexdigest()


def test_the_identity_does_not_depend_on_name_place_or_date(tmp_path: Path):
    (tmp_path / "sub").mkdir()
    for path in (tmp_path / "a.safetensors", tmp_path / "sub" / "ü b.safetensors"):
        write_tensors(path, {"w": torch.arange(100)})
    os.utime(tmp_path / "a.safetensors", (0, 0))
    assert weights_identity(tmp_path / "a.safetensors") == weights_identity(
        tmp_path / "sub" / "ü b.safetensors"
    )


def test_any_change_of_a_file_below_12_mib_is_seen(tmp_path: Path):
    path = tmp_path / "x"
    content = bytearray(5 * MB)
    seen = set()
    for place in (0, 1, 4 * MB + 12345, 5 * MB - 1):
        content[place] ^= 1
        path.write_bytes(content)
        seen.add(weights_identity(path))
    assert len(seen) == 4


def sparse(path: Path, size: int, *marks: int, length: int = 1) -> str:
    """A file of zeros with `length` bytes set at each mark; the identity of it."""
    with path.open("wb") as file:
        file.truncate(size)
        for mark in marks:
            file.seek(mark)
            file.write(b"\1" * length)
    return weights_identity(path)


def test_a_change_of_size_start_end_or_of_all_weights_of_a_large_file_is_seen(tmp_path: Path):
    path, size = tmp_path / "x", 300 * MB
    base = sparse(path, size)
    assert sparse(path, size) == base
    assert sparse(path, size + 8) != base
    assert sparse(path, size, 0) != base
    assert sparse(path, size, 4 * MB - 1) != base  # within a long header
    assert sparse(path, size, size - 1) != base
    for place in range(5 * MB, size - 5 * MB, 37 * MB):  # a change of 1/100 of the file anywhere
        assert sparse(path, size, place, length=size // 100) != base


@pytest.mark.skipif(os.name == "nt", reason="Windows fills the hole with zeros")
def test_twenty_gigabytes_are_identified_in_a_moment(tmp_path: Path):
    start = time.perf_counter()
    sparse(tmp_path / "x", 20_000 * MB)
    assert time.perf_counter() - start < 2


def test_a_folder_counts_with_weights_configuration_and_tokenizer(tmp_path: Path):
    folder = tmp_path / "model"
    (folder / "tokenizer").mkdir(parents=True)
    write_tensors(folder / "model.safetensors", {"w": torch.ones(3)})
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer" / "vocab.txt").write_text("a")
    base = weights_identity(folder)

    for unrelated in ("README.md", "picture.png", ".cache/huggingface/download.json"):
        (folder / unrelated).parent.mkdir(parents=True, exist_ok=True)
        (folder / unrelated).write_text("x")
    assert weights_identity(folder) == base
    seen = {base}
    for name, content in (("config.json", "{ }"), ("tokenizer/vocab.txt", "b"), ("added_tokens.json", "{}")):
        (folder / name).write_text(content)
        seen.add(weights_identity(folder))
    (folder / "config.json").rename(folder / "other.json")
    seen.add(weights_identity(folder))
    assert len(seen) == 5


def test_what_is_not_there_is_named(tmp_path: Path):
    for function in (content_hash, weights_identity):
        with pytest.raises(BadFileError, match="no such does not exist"):
            function(tmp_path / "no such")
    with pytest.raises(BadFileError, match="holds no weights"):
        weights_identity(tmp_path)
    with pytest.raises(BadFileError, match="is a folder"):
        content_hash(tmp_path)
