"""The tiny files are small, honest stand-ins for the published ones."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from musubi_core.encoders.tokenizer import find_tokenizer, open_tokenizer
from musubi_core.files.digest import content_hash
from musubi_core.files.tensors import read_header
from musubi_core.models.hunyuan_video.options import LatentOptions
from musubi_core.models.hunyuan_video.tiny import write_tiny
from musubi_core.models.hunyuan_video.vae import open_vae
from musubi_core.models.spec import TinyFiles

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> TinyFiles:
    return write_tiny(tmp_path_factory.mktemp("tiny"), 0)


def hashes(folder: Path) -> dict[str, str]:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {file.relative_to(folder).as_posix(): content_hash(file) for file in files}


def test_another_process_writes_the_same_bytes(tmp_path, tiny):
    """Learning the vocabularies must not depend on the order of a hash table."""
    code = "import sys, pathlib; from musubi_core.models.hunyuan_video.tiny import write_tiny as w; "
    subprocess.run([sys.executable, "-c", code + f"w(pathlib.Path({str(tmp_path)!r}), 0)"], check=True)
    assert hashes(tmp_path) == hashes(tiny.dit.parent)


def test_the_files_stay_small(tiny):
    files = [file for file in tiny.dit.parent.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 20_000_000


def test_names_and_number_types_are_those_of_the_published_files(tiny):
    dit = read_header(tiny.dit).tensors
    assert {info.dtype for info in dit.values()} == {"bfloat16"}
    assert dit["double_blocks.1.img_attn_qkv.weight"].shape == (384, 128)
    vae = read_header(tiny.vae).tensors
    assert {info.dtype for info in vae.values()} == {"float16"}
    assert vae["encoder.down_blocks.2.resnets.0.conv_shortcut.conv.weight"].shape == (64, 32, 1, 1, 1)


@pytest.mark.parametrize("number", [1, 2])
def test_every_row_of_the_embedding_is_a_token(tiny, number):
    folder = tiny.options[f"text_encoder{number}"]
    header = read_header(folder / "model.safetensors").tensors
    rows = next(info.shape[0] for name, info in header.items() if "token" in name and "embed" in name)
    place = find_tokenizer(
        option=f"tokenizer{number}", given=None, encoder=folder, sibling="tokenizer", hub="a/b"
    )
    tokenizer = open_tokenizer(place, rows=rows)
    assert tokenizer.get_vocab_size(with_added_tokens=True) == rows


def test_any_text_survives_the_language_models_tokenizer(tiny):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny.options["text_encoder1"], local_files_only=True)
    for text in ("A cat, on a mat.", "naïve café", "東京タワー", "🚀\t\n", "\x00"):
        ids = tokenizer(text).input_ids
        assert ids[0] == tokenizer.bos_token_id
        assert tokenizer.decode(ids[1:], clean_up_tokenization_spaces=False) == text


def test_the_end_token_of_clip_has_the_largest_id(tiny):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny.options["text_encoder2"], local_files_only=True)
    assert tokenizer.eos_token_id == len(tokenizer) - 1
    assert tokenizer("x").input_ids[-1] == tokenizer.eos_token_id


def photograph() -> Tensor:
    """(1, 3, 1, 128, 128) in -1..1, real."""
    data = pytest.importorskip("skimage.data")
    return torch.from_numpy(data.astronaut()[:128, :128].copy()).permute(2, 0, 1)[None, :, None] / 127.5 - 1


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_vae_lets_a_blurred_picture_through(tmp_path, seed):
    files = write_tiny(tmp_path, seed)
    vae = open_vae(files.vae, device=CPU, dtype=torch.float32, options=LatentOptions())
    picture = photograph()
    with torch.no_grad():
        latents = vae.encode(picture).latent_dist.mean
        again = vae.decode(latents).sample
    together = torch.corrcoef(torch.stack([picture.flatten(), again.flatten()]))[0, 1]
    assert together > 0.6
    assert 0.5 < latents.std() < 5  # the real one's are about 2


def test_activations_fit_float16(tiny):
    vae = open_vae(tiny.vae, device=CPU, dtype=torch.float32, options=LatentOptions())
    largest = []

    def look(module: torch.nn.Module, inputs: tuple[Tensor, ...], output: object) -> None:
        if isinstance(output, Tensor):
            largest.append(output.abs().max().item())

    for module in vae.modules():
        module.register_forward_hook(look)
    with torch.no_grad():
        vae.decode(vae.encode(photograph()).latent_dist.mean)
    assert 0 < max(largest) < 1000
