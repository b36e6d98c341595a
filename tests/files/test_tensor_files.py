"""Reading and writing safetensors, with the safetensors library as the oracle."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from musubi_core.errors import BadFileError
from musubi_core.files import tensors as tensors_module
from musubi_core.files.dtypes import CODES
from musubi_core.files.header import Defect, TensorFileError
from musubi_core.files.tensors import TensorFile, read_tensors, write_tensors

DTYPES = [getattr(torch, name) for name in CODES if hasattr(torch, name)]


def random_tensor(dtype: torch.dtype, *shape: int, seed: int = 0) -> Tensor:
    """Random bits, so that NaN, subnormal and negative numbers occur."""
    generator = torch.Generator().manual_seed(seed)
    if dtype == torch.bool:
        return torch.randint(0, 2, shape, generator=generator).bool()
    count = torch.Size(shape).numel() * torch.empty(0, dtype=dtype).element_size()
    return torch.randint(0, 256, (count,), dtype=torch.uint8, generator=generator).view(dtype).reshape(shape)


def same(first: Tensor, second: Tensor) -> bool:
    """Equal to the bit, NaN included."""
    if first.dtype != second.dtype or first.shape != second.shape:
        return False
    rows = [
        torch.cat([tensor.reshape(-1), tensor.reshape(-1)]).view(torch.uint8) for tensor in (first, second)
    ]
    return torch.equal(*rows)


def assert_same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert not [name for name in found if not same(found[name], expected[name])]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_number_type_is_written_and_read_as_by_the_library(tmp_path: Path, dtype: torch.dtype):
    tensors = {
        "matrix": random_tensor(dtype, 3, 5),
        "scalar": random_tensor(dtype),
        "none": random_tensor(dtype, 0, 4),
    }
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    write_tensors(ours, tensors, {"key": 'välue \n"\\\x01\u2028'})
    safetensors.torch.save_file(tensors, theirs, {"key": 'välue \n"\\\x01\u2028'})
    assert ours.read_bytes() == theirs.read_bytes()
    assert_same(read_tensors(theirs), tensors)
    assert_same(safetensors.torch.load_file(ours), tensors)


def test_a_mixed_file_equals_the_librarys_byte_for_byte(tmp_path: Path):
    tensors = {
        f"{letter}.{str(dtype)[6:]}": random_tensor(dtype, 2, number + 1)
        for number, letter in enumerate(("é", "a", "\U0001f600", "B", "\uffff", ""))
        for dtype in DTYPES
    }
    for metadata in (None, {}, {"k": "v"}):
        write_tensors(tmp_path / "x", tensors, metadata)
        assert (tmp_path / "x").read_bytes() == safetensors.torch.save(tensors, metadata)


def test_metadata_stands_in_the_order_given(tmp_path: Path):
    metadata = {name: name.upper() for name in ("ss_b", "modelspec.z", "a")}
    write_tensors(tmp_path / "x", {}, metadata)
    with TensorFile(tmp_path / "x") as file:
        assert list(file.metadata.items()) == list(metadata.items())
        assert file.names == []
    with safetensors.safe_open(tmp_path / "x", "pt") as oracle:
        assert oracle.metadata() == metadata


def test_views_expanded_shared_and_trainable_tensors_are_written_by_value(tmp_path: Path):
    base = random_tensor(torch.float32, 6, 4)
    tensors = {
        "transposed": base.T,
        "strided": base[::2, 1:3],
        "expanded": base[:, :1].expand(6, 9),
        "shared": base,
        "again": base,
        "parameter": torch.nn.Parameter(torch.ones(3)),
        "conjugate": torch.tensor([1 + 2j], dtype=torch.complex64).conj(),
        "negative": torch.tensor([1 + 2j], dtype=torch.complex64).conj().imag,
    }
    write_tensors(tmp_path / "x", tensors)
    expected = {name: tensor.detach().resolve_conj().resolve_neg() for name, tensor in tensors.items()}
    assert_same(read_tensors(tmp_path / "x"), expected)


@pytest.mark.parametrize(
    "tensor",
    [torch.zeros(2, device="meta"), torch.zeros(2, 2).to_sparse(), torch.zeros(2, dtype=torch.complex128)],
)
def test_what_has_no_safetensors_form_is_refused_with_its_name(tmp_path: Path, tensor: Tensor):
    with pytest.raises(TypeError, match="the name"):
        write_tensors(tmp_path / "x", {"the name": tensor})
    assert list(tmp_path.iterdir()) == []


def test_metadata_must_be_text_and_survives_undecodable_paths(tmp_path: Path):
    with pytest.raises(TypeError, match="ss_epoch is a int"):
        write_tensors(tmp_path / "x", {}, {"ss_epoch": 1})  # type: ignore[dict-item]
    write_tensors(tmp_path / "x", {}, {"path": os.fsdecode(b"caf\xe9")})
    with safetensors.safe_open(tmp_path / "x", "pt") as oracle:
        assert oracle.metadata()["path"].startswith("caf")
    with pytest.raises(ValueError):
        write_tensors(tmp_path / "x", {"__metadata__": torch.zeros(1)})


def sshs_by_the_book(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, str]:
    """lora-and-fp8.md 4.4, on the library's serialisation."""
    content = safetensors.torch.save(
        dict(tensors), {k: v for k, v in metadata.items() if k.startswith("ss_")}
    )
    start = 8 + int.from_bytes(content[:8], "little")
    return {
        "sshs_model_hash": hashlib.sha256(content[start:]).hexdigest(),
        "sshs_legacy_hash": hashlib.sha256(content[0x100000:0x110000]).hexdigest()[:8],
    }


@pytest.mark.parametrize("elements", [10, 262_000, 270_000, 400_000])
@pytest.mark.parametrize(
    "metadata",
    [None, {"modelspec.title": "x"}, {"ss_one": "1", "modelspec.title": "x"}, {"ss_big": "y" * 2_000_000}],
)
def test_sshs_hashes_are_those_of_the_librarys_file(
    tmp_path: Path, elements: int, metadata: dict[str, str] | None
):
    """Files below, across and beyond the stretch that the legacy hash covers."""
    tensors = {
        "b": random_tensor(torch.float32, elements),
        "a": random_tensor(torch.bfloat16, 7, 3),
        "c": torch.ones(()),
    }
    write_tensors(tmp_path / "x", tensors, metadata, sshs_hashes=True)
    with TensorFile(tmp_path / "x") as file:
        assert file.metadata == {**(metadata or {}), **sshs_by_the_book(tensors, metadata or {})}
    assert_same(safetensors.torch.load_file(tmp_path / "x"), tensors)
    if elements == 10 and "ss_big" not in (metadata or {}):
        assert file.metadata["sshs_legacy_hash"] == "e3b0c442"


def test_one_tensor_at_a_time_is_in_memory_while_writing(tmp_path: Path, monkeypatch):
    """Tensors that must be copied are copied when their turn comes, and let go."""
    import weakref

    from musubi_core.files import tensor_writer

    alive: list[weakref.ref] = []
    bytes_of = tensor_writer._bytes_of

    def watched(tensor: Tensor) -> memoryview:
        assert not [ref for ref in alive if ref() is not None]
        data = bytes_of(tensor)
        alive.append(weakref.ref(data.obj))
        return data

    monkeypatch.setattr(tensor_writer, "_bytes_of", watched)
    write_tensors(tmp_path / "x", {str(n): torch.ones(50, 50).T for n in range(4)}, sshs_hashes=True)
    assert len(alive) == 4


def test_what_was_read_survives_the_file(tmp_path: Path):
    path = tmp_path / "x"
    write_tensors(path, {"a": torch.arange(1000)})
    with TensorFile(path) as file:
        tensor = file.read("a")
    write_tensors(path, {"a": torch.zeros(1000)})
    path.unlink()
    tensor[0] = 5
    assert tensor[1:].tolist() == list(range(1, 1000))


def test_only_the_named_tensors_are_read_and_a_missing_one_is_named(tmp_path: Path):
    write_tensors(tmp_path / "x", {"lora_up": torch.ones(1), "lora_down": torch.zeros(1)})
    assert list(read_tensors(tmp_path / "x", ["lora_down"])) == ["lora_down"]
    with pytest.raises(BadFileError, match=r"it has 2 others. The nearest is 'lora_up'"):
        read_tensors(tmp_path / "x", ["lora_upp"])


def test_a_short_read_is_continued(tmp_path: Path, monkeypatch):
    """Linux reads at most 2 GB in one call."""
    tensors = {"a": random_tensor(torch.float32, 1000), "b": random_tensor(torch.int8, 13)}
    write_tensors(tmp_path / "x", tensors)
    with TensorFile(tmp_path / "x") as file:
        real = file._file

        class Slow:
            seek, close = real.seek, real.close

            def readinto(self, buffer: memoryview) -> int:
                return real.readinto(buffer[:17])

        file._file = Slow()  # type: ignore[assignment]
        assert_same({name: file.read(name) for name in tensors}, tensors)


def test_a_file_that_shrinks_while_open_is_reported(tmp_path: Path):
    path = tmp_path / "x"
    write_tensors(path, {"a": torch.ones(1000)})
    with TensorFile(path) as file:
        os.truncate(path, 2000)
        with pytest.raises(TensorFileError, match="bytes of 'a' are missing") as caught:
            file.read("a")
    assert caught.value.defect is Defect.TRUNCATED


def test_a_truth_value_that_is_neither_is_refused(tmp_path: Path):
    path = tmp_path / "x"
    write_tensors(path, {"mask": torch.tensor([True, False, True])})
    path.write_bytes(path.read_bytes()[:-1] + b"\x02")
    with pytest.raises(TensorFileError) as caught:
        read_tensors(path)
    assert caught.value.defect is Defect.BAD_BOOL


def test_a_number_type_that_this_torch_lacks_is_named(tmp_path: Path, monkeypatch):
    path = tmp_path / "x"
    write_tensors(path, {"a": torch.ones(1, dtype=torch.float8_e5m2)})
    monkeypatch.delattr(torch, "float8_e5m2")
    with pytest.raises(BadFileError, match=r"float8_e5m2, which torch .* does not know"):
        read_tensors(path)


def test_a_tensor_larger_than_memory_is_told(tmp_path: Path, monkeypatch):
    path = tmp_path / "x"
    write_tensors(path, {"a": torch.ones(3)})

    def refuse(*args, **kwargs):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(tensors_module.torch, "empty", refuse)
    with pytest.raises(BadFileError, match="needs 12 bytes of memory"):
        read_tensors(path)


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch):
    path = tmp_path / "lora.safetensors"
    write_tensors(path, {"a": torch.ones(3)})

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BadFileError, match="disk is full"):
        write_tensors(path, {"a": torch.zeros(4)})
    monkeypatch.undo()
    assert read_tensors(path)["a"].tolist() == [1, 1, 1]
    assert [file.name for file in tmp_path.iterdir()] == ["lora.safetensors"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card")
def test_tensors_go_from_and_to_a_card(tmp_path: Path):
    tensor = torch.arange(10, device="cuda").reshape(2, 5).T
    write_tensors(tmp_path / "x", {"a": tensor})
    with TensorFile(tmp_path / "x") as file:
        assert torch.equal(file.read("a", "cuda"), tensor)


@pytest.mark.parametrize(("start", "stop"), [(0, 5), (0, 0), (2, 4), (4, 5), (5, 5)])
def test_rows_of_a_tensor_are_its_slices(tmp_path, start, stop):
    tensors = {
        "first": torch.arange(7, dtype=torch.int64),
        "rows": torch.randn(5, 3, 2).bfloat16(),
        "empty": torch.zeros(5, 0),
        "flags": torch.tensor([True, False, True, True, False]),
    }
    write_tensors(tmp_path / "a.safetensors", tensors)
    with TensorFile(tmp_path / "a.safetensors") as file:
        for name, tensor in tensors.items():
            assert torch.equal(file.read_rows(name, start, stop), tensor[start:stop])
        for name, wrong in (("rows", (0, 6)), ("rows", (3, 2)), ("rows", (-1, 2))):
            with pytest.raises(ValueError, match=f"has no rows {wrong[0]} to {wrong[1]}"):
                file.read_rows(name, *wrong)
        with pytest.raises(BadFileError, match="has no tensor 'absent'"):
            file.read_rows("absent", 0, 1)


def test_threads_may_share_a_file(tmp_path):
    tensors = {f"t{number}": torch.full((1000, 50), float(number)) for number in range(20)}
    write_tensors(tmp_path / "a.safetensors", tensors)
    with TensorFile(tmp_path / "a.safetensors") as file, ThreadPoolExecutor(8) as pool:

        def read(name: str) -> bool:
            return all(torch.equal(file.read_rows(name, at, at + 1), tensors[name][:1]) for at in range(200))

        assert all(pool.map(read, tensors))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_tensor_may_be_read_into_memory_that_is_there(tmp_path: Path, dtype: torch.dtype):
    tensors = {"matrix": random_tensor(dtype, 3, 5), "none": random_tensor(dtype, 0, 4)}
    write_tensors(tmp_path / "file", tensors)
    memory = torch.zeros(512, dtype=torch.uint8)
    with TensorFile(tmp_path / "file") as file:
        for name, expected in tensors.items():
            found = file.read(name, memory=memory)
            assert same(found, expected)
            assert not expected.numel() or found.data_ptr() == memory.data_ptr()
