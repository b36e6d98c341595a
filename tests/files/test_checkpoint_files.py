from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from musubi_core.errors import BadFileError
from musubi_core.files.checkpoint import open_checkpoint
from musubi_core.files.tensor_info import TensorInfo
from musubi_core.files.tensors import write_tensors

WEIGHTS = {
    "img_in.weight": torch.arange(12, dtype=torch.float32).reshape(3, 4),
    "scale": torch.tensor(2.0, dtype=torch.bfloat16),
    "fp8": torch.ones(5, dtype=torch.float8_e4m3fn),
}


class RunsOnLoading:
    """What an attacker puts into a pickle."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.proof),)


def read_all(path: Path) -> dict[str, Tensor]:
    with open_checkpoint(path) as checkpoint:
        return {name: checkpoint.read(name, own_memory=True) for name in checkpoint.header}


def assert_weights(found: dict[str, Tensor], *, fp8: bool = True) -> None:
    assert found.keys() == WEIGHTS.keys() - (set() if fp8 else {"fp8"})
    for name, tensor in found.items():
        assert tensor.dtype == WEIGHTS[name].dtype and not tensor.requires_grad
        assert torch.equal(tensor.float(), WEIGHTS[name].float())


@pytest.mark.parametrize("name", ["a.safetensors", 'it\'s "quoted" ü 日本.safetensors', "no ending"])
def test_a_safetensors_file_of_any_name_is_opened(tmp_path: Path, name: str):
    write_tensors(tmp_path / name, WEIGHTS, {"k": "v"})
    assert_weights(read_all(tmp_path / name))
    with open_checkpoint(tmp_path / name) as checkpoint:
        assert checkpoint.metadata == {"k": "v"}
        assert checkpoint.path == tmp_path / name
        info = checkpoint.header["img_in.weight"]
        assert (info.shape, info.dtype) == ((3, 4), "float32")


@pytest.mark.parametrize("name", ["w.pt", "w.pth", "w.bin", "w.ckpt"])
@pytest.mark.parametrize("zipped", [True, False], ids=["since 1.6", "before 1.6"])
@pytest.mark.parametrize("wrappers", [(), ("module",), ("state_dict",), ("model", "module")], ids=str)
def test_a_torch_file_is_opened_whatever_it_is_nested_in(
    tmp_path: Path, name: str, zipped: bool, wrappers: tuple
):
    # the old form does not know fp8
    content: Any = {key: value for key, value in WEIGHTS.items() if zipped or key != "fp8"}
    for wrapper in wrappers:
        content = {wrapper: content, "step": 7}
    torch.save(content, tmp_path / name, _use_new_zipfile_serialization=zipped)
    assert_weights(read_all(tmp_path / name), fp8=zipped)
    with open_checkpoint(tmp_path / name) as checkpoint:
        assert checkpoint.header["scale"] == TensorInfo(shape=(), dtype="bfloat16")
        assert checkpoint.metadata == {}
        assert set(checkpoint.ignored) == ({"step"} if wrappers else set())


def test_entries_that_are_no_tensors_are_listed_and_parameters_are_tensors(tmp_path: Path):
    content = {
        **WEIGHTS,
        "scale": torch.nn.Parameter(WEIGHTS["scale"]),
        "config": {"a": 1},
        "epoch": 3,
        5: "x",
    }
    torch.save(content, tmp_path / "w.pt")
    assert_weights(read_all(tmp_path / "w.pt"))
    with open_checkpoint(tmp_path / "w.pt") as checkpoint:
        assert checkpoint.ignored == ("config", "epoch", "5")


def test_a_weight_named_model_is_not_taken_for_a_wrapper(tmp_path: Path):
    torch.save({"model": torch.ones(2), "module": {"x": torch.ones(1)}}, tmp_path / "w.pt")
    assert list(read_all(tmp_path / "w.pt")) == ["model"]


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_torch_file_is_named_and_does_not_run(tmp_path: Path, zipped: bool):
    proof = tmp_path / "it ran"
    torch.save(
        {"w": torch.ones(1), "x": RunsOnLoading(proof)},
        tmp_path / "w.pt",
        _use_new_zipfile_serialization=zipped,
    )
    with pytest.raises(BadFileError, match=r"w\.pt contains code \(.*mkdir\).*not executed.*safetensors"):
        open_checkpoint(tmp_path / "w.pt")
    assert not proof.exists()
    torch.load(tmp_path / "w.pt", weights_only=False)
    assert proof.exists(), "the attack itself works"


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_code_in_a_plain_pickle_does_not_run(tmp_path: Path):
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        path = tmp_path / f"w{protocol}.ckpt"
        path.write_bytes(pickle.dumps({"w": RunsOnLoading(tmp_path / "it ran")}, protocol=protocol))
        with pytest.raises(BadFileError, match=path.name):
            open_checkpoint(path)
    assert not (tmp_path / "it ran").exists()


def test_a_pickled_module_is_refused_like_code(tmp_path: Path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "w.pt")
    with pytest.raises(BadFileError, match=r"contains code \(torch\.nn\.modules\.linear\.Linear\)"):
        open_checkpoint(tmp_path / "w.pt")


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kept", [3, 40, 0.5, 0.99])
def test_a_torch_file_that_is_cut_off_is_refused(tmp_path: Path, zipped: bool, kept: float):
    path = tmp_path / "w.pt"
    torch.save({"w": torch.arange(5000.0)}, path, _use_new_zipfile_serialization=zipped)
    os.truncate(path, int(kept * path.stat().st_size) if kept < 1 else int(kept))
    with pytest.raises(BadFileError, match=r"w\.pt"):
        open_checkpoint(path)


def test_what_is_no_checkpoint_is_refused_and_says_what_it_is(tmp_path: Path):
    path = tmp_path / "w.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(BadFileError, match="not a whole torch file"):
        open_checkpoint(path)
    path.write_bytes(b"hello world, this is text")
    with pytest.raises(BadFileError, match=r"w\.pt"):
        open_checkpoint(path)
    path.write_bytes(b"<!DOCTYPE html><html>")
    with pytest.raises(BadFileError, match="a web page"):
        open_checkpoint(path)
    path.write_bytes(b"")
    with pytest.raises(BadFileError, match="it is empty"):
        open_checkpoint(path)
    torch.save([torch.ones(1)], path)
    with pytest.raises(BadFileError, match="holds no tensors"):
        open_checkpoint(path)
    torch.save({"step": 1}, path)
    with pytest.raises(BadFileError, match=r"holds no tensors .*'step'"):
        open_checkpoint(path)
    path.unlink()
    with pytest.raises(BadFileError, match="does not exist"):
        open_checkpoint(path)


def test_the_content_decides_and_not_the_ending(tmp_path: Path):
    write_tensors(tmp_path / "w.pt", WEIGHTS)
    assert_weights(read_all(tmp_path / "w.pt"))
    torch.save(WEIGHTS, tmp_path / "w.safetensors")
    assert_weights(read_all(tmp_path / "w.safetensors"))


def test_a_header_that_begins_like_a_pickle_is_still_safetensors(tmp_path: Path):
    """A header of 0x0280 bytes: its length is stored as the start of a pickle of protocol 2."""
    path = tmp_path / "w.safetensors"
    write_tensors(path, {"a": torch.ones(1)}, {"pad": ""})
    missing = 0x280 - int.from_bytes(path.read_bytes()[:8], "little")
    write_tensors(path, {"a": torch.ones(1)}, {"pad": "x" * missing})
    assert path.read_bytes().startswith(b"\x80\x02")
    assert read_all(path)["a"].item() == 1


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_missing_tensor_is_named_with_its_nearest(tmp_path: Path, suffix: str):
    path = tmp_path / f"w{suffix}"
    write_tensors(path, WEIGHTS) if suffix == ".safetensors" else torch.save(WEIGHTS, path)
    with (
        open_checkpoint(path) as checkpoint,
        pytest.raises(BadFileError, match=r"'img_in\.bias'.*'img_in\.weight'"),
    ):
        checkpoint.read("img_in.bias")


def test_tensors_of_a_torch_file_are_mapped_until_asked_for_their_own_memory(tmp_path: Path):
    path = tmp_path / "w.pt"
    torch.save({"w": torch.zeros(1000)}, path)
    with open_checkpoint(path) as checkpoint:
        window, copy = checkpoint.read("w"), checkpoint.read("w", own_memory=True)
        assert window.data_ptr() == checkpoint.read("w").data_ptr()
        assert copy.data_ptr() != window.data_ptr()
        window[0] = 1  # a private page: the file does not change
    assert read_all(path)["w"].sum() == 0


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")
def test_a_large_torch_file_is_not_read_on_opening(tmp_path: Path):
    """64 MB of weights, and opening takes less than 16 MB more than before."""
    code = """
        import sys
        from pathlib import Path
        from musubi_core.files.checkpoint import open_checkpoint

        def pages_in_memory():
            return int(Path("/proc/self/statm").read_text().split()[1])

        before = pages_in_memory()
        with open_checkpoint(Path(sys.argv[1])) as checkpoint:
            assert checkpoint.header["w"].shape == (16_000_000,)
            print((pages_in_memory() - before) * 4096)
    """
    torch.save({"w": torch.zeros(16_000_000)}, tmp_path / "w.pt")
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "w.pt")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert int(done.stdout) < 16_000_000


def write_shards(folder: Path, *, index: bool = True, suffix: str = "safetensors") -> list[Path]:
    folder.mkdir(exist_ok=True)
    files = []
    for number, (name, tensor) in enumerate(WEIGHTS.items(), 1):
        files.append(folder / f"model-{number:05d}-of-{len(WEIGHTS):05d}.{suffix}")
        if suffix == "safetensors":
            safetensors.torch.save_file({name: tensor}, files[-1], {"format": "pt"})
        else:
            torch.save({name: tensor}, files[-1])
    if index:
        table = {name: file.name for name, file in zip(WEIGHTS, files, strict=True)}
        (folder / f"model.{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": table}))
    return files


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
@pytest.mark.parametrize("index", [True, False])
def test_shards_are_one_checkpoint_from_folder_index_or_any_shard(tmp_path: Path, suffix: str, index: bool):
    files = write_shards(tmp_path / "a model", index=index, suffix=suffix)
    (tmp_path / "a model" / "config.json").write_text("{}")
    (tmp_path / "a model" / ".hidden.safetensors").write_bytes(b"")
    for path in (tmp_path / "a model", files[0], files[2]):
        assert_weights(read_all(path))
    if index:
        assert_weights(read_all(tmp_path / "a model" / f"model.{suffix}.index.json"))


def test_a_missing_shard_is_named(tmp_path: Path):
    files = write_shards(tmp_path)
    files[1].unlink()
    for path in (tmp_path, files[0]):
        with pytest.raises(BadFileError, match=r"needs 3 files, and 1 .* model-00002-of-00003\.safetensors"):
            open_checkpoint(path)


def test_shards_that_do_not_belong_together_are_refused(tmp_path: Path):
    files = write_shards(tmp_path)
    safetensors.torch.save_file({"other": torch.ones(1)}, files[1])
    with pytest.raises(BadFileError, match=r"lists 1 tensors that its files lack .*'scale'"):
        open_checkpoint(tmp_path)
    safetensors.torch.save_file({"img_in.weight": torch.ones(1)}, files[1])
    with pytest.raises(BadFileError, match=r"'img_in\.weight' is in model-00001.* and in model-00002"):
        open_checkpoint(files[0])
    files[1].write_bytes(b"short")
    with pytest.raises(BadFileError, match=r"model-00002-of-00003\.safetensors"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "content",
    [b"{", b"[]", b"{}", b'{"weight_map": {}}', b'{"weight_map": {"a": 1}}', b"\xff", b"[" * 100_000],
)
def test_a_malformed_index_is_refused(tmp_path: Path, content: bytes):
    (tmp_path / "model.safetensors.index.json").write_bytes(content)
    with pytest.raises(BadFileError, match=r"index\.json"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "a\\b", "C:x", "..", ""])
def test_an_index_cannot_point_out_of_its_folder(tmp_path: Path, name: str):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(BadFileError, match="outside its folder"):
        open_checkpoint(tmp_path)


def test_a_folder_with_a_choice_or_nothing_is_refused(tmp_path: Path):
    with pytest.raises(BadFileError, match="has no weights"):
        open_checkpoint(tmp_path)
    torch.save({"a": torch.zeros(1)}, tmp_path / "old.bin")
    write_tensors(tmp_path / "one.safetensors", WEIGHTS)
    assert_weights(read_all(tmp_path))  # safetensors before pickles
    write_tensors(tmp_path / "two.safetensors", WEIGHTS)
    with pytest.raises(
        BadFileError, match=r"has 2 \.safetensors files \(one\.safetensors, two\.safetensors\)"
    ):
        open_checkpoint(tmp_path)


def test_closing_a_checkpoint_frees_its_files(tmp_path: Path):
    write_shards(tmp_path)
    handles = Path("/proc/self/fd")
    before = len(list(handles.iterdir())) if handles.exists() else 0
    with open_checkpoint(tmp_path):
        pass
    (tmp_path / "model-00003-of-00003.safetensors").write_bytes(b"broken")
    with pytest.raises(BadFileError):
        open_checkpoint(tmp_path)
    if handles.exists():
        assert len(list(handles.iterdir())) == before
