"""The size of a picture costs no decoding of its pixels."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageFile

from musubi_core.data.picture_file import picture_size


@pytest.mark.parametrize("ending", ["png", "jpg"])
def test_the_size_is_read_without_decoding_pixels(tmp_path, monkeypatch, ending):
    path = tmp_path / f"a.{ending}"
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(path)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("the pixels were decoded"))
    assert picture_size(path) == (30, 20)


@pytest.mark.parametrize("behind", [False, True])
def test_a_png_that_is_turned_by_its_exif_is_seen_turned(tmp_path, behind):
    path = tmp_path / "a.png"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(path, exif=exif)
    if behind:  # the chunk may also stand after the pixels
        data = path.read_bytes()
        at = data.index(b"eXIf") - 4
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        path.write_bytes(data[:at] + data[end:-12] + data[at:end] + data[-12:])
    assert picture_size(path) == (20, 30)
