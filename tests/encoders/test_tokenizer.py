"""Token ids: where tokenizers are found, that they fit, and what happens without a network."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from musubi_core.encoders.tiny_tokenizers import write_clip_tokenizer, write_t5_tokenizer
from musubi_core.encoders.tokenizer import find_tokenizer, open_tokenizer, token_ids
from musubi_core.errors import BadFileError, ConfigError
from musubi_core.models.hunyuan_video.tiny_tokenizers import write_llama_tokenizer

CAPTIONS = ["a photo of a cat", "", "naïve café 東京 🚀 <|eot_id|>", "a dog " * 60]
HUB = "nobody/nothing"


def find(encoder: Path, given: str | None = None):
    return find_tokenizer(option="tokenizer1", given=given, encoder=encoder, sibling="tokenizer", hub=HUB)


@pytest.fixture
def llama_folder(tmp_path) -> tuple[Path, int]:
    return tmp_path / "llama", write_llama_tokenizer(tmp_path / "llama")


@pytest.mark.parametrize("write", [write_llama_tokenizer, write_clip_tokenizer, write_t5_tokenizer])
def test_ids_and_masks_equal_those_of_transformers(tmp_path, write):
    from transformers import AutoTokenizer

    rows = write(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    wanted = theirs(CAPTIONS, padding="max_length", truncation=True, max_length=40, return_tensors="pt")
    tokenizer = open_tokenizer(find(tmp_path), rows=rows)
    ids, mask = token_ids(tokenizer, CAPTIONS, length=40, pad=(theirs.pad_token,))
    assert torch.equal(ids, wanted["input_ids"])
    assert torch.equal(mask, wanted["attention_mask"])
    assert ids.dtype == mask.dtype == torch.int64


def test_the_users_choice_comes_first_then_the_encoders_folder_then_the_hub(tmp_path, llama_folder):
    folder, _ = llama_folder
    assert find(tmp_path / "llava_llama3_fp16.safetensors").folder is None
    assert find(tmp_path / "llava_llama3_fp16.safetensors").hub == HUB
    assert find(folder).folder == folder
    assert find(tmp_path / "model.safetensors", str(folder)).folder == folder
    assert find(tmp_path / "model.safetensors", str(folder / "tokenizer.json")).folder == folder
    other = find(folder, "someone/else")
    assert (other.folder, other.hub) == (None, "someone/else")


def test_the_layout_of_diffusers_folders_is_known(tmp_path):
    (tmp_path / "text_encoder").mkdir()
    write_llama_tokenizer(tmp_path / "tokenizer")
    assert find(tmp_path / "text_encoder").folder == tmp_path / "tokenizer"


def test_the_identity_follows_the_content_not_the_place(tmp_path, llama_folder):
    folder, _ = llama_folder
    write_llama_tokenizer(tmp_path / "copy")
    write_clip_tokenizer(tmp_path / "clip")
    assert find(folder).identity() == find(tmp_path / "copy").identity()
    assert find(folder).identity() != find(tmp_path / "clip").identity()


@pytest.mark.parametrize("given", ["/no/such/folder", "C:\\no\\such", "empty"])
def test_a_path_without_a_tokenizer_is_refused(tmp_path, monkeypatch, given):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"--tokenizer1: .*tokenizer\.json"):
        find(tmp_path, given)


@pytest.mark.parametrize("rows", [700, 1000, 128320])
def test_a_tokenizer_of_another_model_is_refused_with_both_sizes(llama_folder, rows):
    folder, tokens = llama_folder
    with pytest.raises(BadFileError, match=rf"has {tokens} tokens, but the text encoder has {rows}"):
        open_tokenizer(find(folder), rows=rows)


def test_an_embedding_table_may_be_padded_a_little(llama_folder):
    folder, tokens = llama_folder
    assert open_tokenizer(find(folder), rows=tokens + 9)


def test_a_damaged_tokenizer_is_named(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(BadFileError, match=r"tokenizer\.json is not a tokenizer"):
        open_tokenizer(find(tmp_path), rows=100)


def test_clips_older_form_of_two_files_is_read(tmp_path):
    pieces = ["a", "b", "c", "a</w>", "b</w>", "c</w>", "ab", "abc</w>", "<|startoftext|>", "<|endoftext|>"]
    (tmp_path / "vocab.json").write_text(json.dumps({piece: number for number, piece in enumerate(pieces)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\nab c</w>\n")
    tokenizer = open_tokenizer(find(tmp_path), rows=len(pieces))
    ids, mask = token_ids(tokenizer, ["abc B"], length=6, pad=("<|endoftext|>",))
    assert ids.tolist() == [[8, 7, 4, 9, 9, 9]]
    assert mask.tolist() == [[1, 1, 1, 1, 0, 0]]


def test_comfyuis_own_clip_tokenizer_gives_the_known_ids():
    homes = [*filter(None, os.environ.get("COMFYUI_PATH", "").split(os.pathsep)), Path.home() / "ComfyUI"]
    folder = next((f for home in homes if (f := Path(home, "comfy", "sd1_tokenizer")).is_dir()), None)
    if folder is None:
        pytest.skip("needs ComfyUI in COMFYUI_PATH or ~/ComfyUI")
    tokenizer = open_tokenizer(find(folder), rows=49408)
    ids, mask = token_ids(tokenizer, ["A photo of a cat"], length=77, pad=("<|endoftext|>",))
    assert ids[0, :7].tolist() == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert set(ids[0, 7:].tolist()) == {49407}
    assert mask.sum() == 7


def test_without_a_network_the_answer_is_quick_and_names_the_file_to_get(tmp_path, monkeypatch):
    """The hub's address is one where nobody listens."""
    import huggingface_hub.constants as constants

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}"
        monkeypatch.setattr(constants, "ENDPOINT", nobody)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", nobody + "/{repo_id}/resolve/{revision}/{filename}"
        )
        start = time.monotonic()
        with pytest.raises(BadFileError, match=r"nobody/nothing/resolve/main/tokenizer\.json.*--tokenizer1"):
            open_tokenizer(find(tmp_path / "llava.safetensors"), rows=100)
    assert time.monotonic() - start < 15


def test_offline_mode_is_respected():
    """The hub's library reads its setting once, so this needs a process of its own."""
    code = "from musubi_core.encoders.hub import fetch_file; fetch_file('a/b', 'c.json', remedy='x')"
    ended = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert "BadFileError: c.json of a/b" in ended.stderr
    assert "OfflineModeIsEnabled" in ended.stderr
