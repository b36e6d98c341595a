"""Picture files: sizes from headers, pixels, and every way of being damaged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from made_media import write_picture
from PIL import Image

from musubi_core.data.picture_file import is_picture, picture_endings, picture_size, read_picture
from musubi_core.errors import BadFileError

FORMATS = [".png", ".jpg", ".jpeg", ".webp", ".bmp"]


@pytest.mark.parametrize("ending", [*FORMATS, ".PNG", ".Jpg"])
def test_each_format_is_read_whatever_its_case(tmp_path: Path, ending: str):
    path = write_picture(tmp_path / f"a{ending}", (50, 30))
    assert is_picture(path)
    assert picture_size(path) == (50, 30)
    assert read_picture(path).shape == (30, 50, 3)


def test_jxl_counts_only_with_a_plugin(monkeypatch: pytest.MonkeyPatch):
    import musubi_core.data.picture_file as module

    picture_endings.cache_clear()
    monkeypatch.setattr(module, "find_spec", lambda name: object() if name == "pillow_jxl" else None)
    assert ".jxl" in picture_endings()
    picture_endings.cache_clear()
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    assert ".jxl" not in picture_endings()
    picture_endings.cache_clear()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_seen_the_way_its_exif_says(tmp_path: Path, orientation: int):
    upright = Image.fromarray(np.arange(20 * 12 * 3, dtype=np.uint8).reshape(12, 20, 3))
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(undo[orientation]) if orientation in undo else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "a.png", exif=exif)
    assert picture_size(tmp_path / "a.png") == (20, 12)
    assert np.array_equal(read_picture(tmp_path / "a.png"), np.asarray(upright))


def test_transparency_is_kept_only_where_it_is_wanted(tmp_path: Path):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 9, 4), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert np.array_equal(read_picture(tmp_path / "a.png", alpha=True), pixels)
    assert np.array_equal(read_picture(tmp_path / "a.png"), pixels[..., :3])
    assert read_picture(write_picture(tmp_path / "b.png"), alpha=True).shape[2] == 3


@pytest.mark.parametrize("mode", ["L", "P", "1", "LA", "CMYK"])
def test_every_kind_of_picture_becomes_rgb(tmp_path: Path, mode: str):
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    Image.new("RGB", (9, 8), (200, 200, 200)).convert(mode).save(path)
    found = read_picture(path)
    assert found.shape == (8, 9, 3) and abs(int(found.mean()) - (255 if mode == "1" else 200)) <= 60


def test_a_palette_with_a_transparent_colour_has_alpha(tmp_path: Path):
    picture = Image.new("P", (4, 4), 0)
    picture.putpalette([10, 20, 30, 40, 50, 60])
    picture.save(tmp_path / "a.png", transparency=0)
    assert (read_picture(tmp_path / "a.png", alpha=True)[..., 3] == 0).all()


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path: Path):
    values = np.array([[0, 257, 32896, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / "depth.png")
    assert read_picture(tmp_path / "depth.png")[0, :, 0].tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize("share", [0.3, 0.6, 0.97])
def test_a_truncated_picture_is_named_by_its_header_check(tmp_path: Path, ending: str, share: float):
    whole = write_picture(tmp_path / f"whole{ending}", (300, 200)).read_bytes()
    path = tmp_path / f"cut{ending}"
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(BadFileError, match=f"cut{ending} is"):
        picture_size(path)
    with pytest.raises(BadFileError, match=f"cut{ending} is"):
        read_picture(path)


def test_padding_after_the_end_is_no_damage(tmp_path: Path):
    path = write_picture(tmp_path / "a.jpg", (64, 48))
    path.write_bytes(path.read_bytes() + bytes(200_000))
    assert picture_size(path) == (64, 48)


@pytest.mark.parametrize(
    ("content", "reason"), [(b"", r"is empty \(0 bytes\)"), (b"not a picture", "no picture that can be read")]
)
def test_what_is_no_picture_is_named(tmp_path: Path, content: bytes, reason: str):
    (tmp_path / "a.png").write_bytes(content)
    for read in (picture_size, read_picture):
        with pytest.raises(BadFileError, match=reason):
            read(tmp_path / "a.png")


def test_missing_files_and_folders_are_named(tmp_path: Path):
    with pytest.raises(BadFileError, match=r"gone\.png does not exist"):
        picture_size(tmp_path / "gone.png")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(BadFileError, match="is a folder"):
        picture_size(tmp_path / "folder.png")


def test_mutated_pictures_raise_only_our_error(tmp_path: Path):
    random = np.random.default_rng(7)
    for ending in (".png", ".jpg", ".webp", ".bmp"):
        whole = bytearray(write_picture(tmp_path / f"a{ending}", (40, 30)).read_bytes())
        for number in range(40):
            broken = bytearray(whole)
            for place in random.integers(0, len(whole), 4):
                broken[place] = random.integers(0, 256)
            path = tmp_path / f"{number}{ending}"
            path.write_bytes(broken)
            for read in (picture_size, read_picture):
                try:
                    read(path)
                except BadFileError as error:
                    assert path.name in str(error)
