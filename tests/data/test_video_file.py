"""Video files: what headers and packets tell, and which files are refused."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from made_media import grey_of, write_picture, write_video

import musubi_core.data.video_file as module
from musubi_core.data.video_file import decode, frame_pixels, video_header
from musubi_core.errors import BadFileError

CODECS = [
    ("a.mp4", "libx264"),
    ("a.webm", "libvpx-vp9"),
    ("a.mkv", "ffv1"),
    ("a.avi", "mpeg4"),
    ("a.mov", "mpeg4"),
]


@pytest.mark.parametrize(("name", "codec"), CODECS)
def test_headers_tell_what_decoding_confirms(tmp_path: Path, name: str, codec: str):
    path = write_video(tmp_path / name, 13, fps=Fraction(30000, 1001), codec=codec)
    header = video_header(path)
    assert (header.size, header.frames, header.variable) == ((64, 48), 13, False)
    assert header.fps == pytest.approx(30000 / 1001, rel=1e-3)
    frames = [frame_pixels(frame) for frame in decode(path)]
    assert len(frames) == 13 and frames[0].shape == (48, 64, 3)
    assert all(abs(int(frame.mean()) - grey_of(index)) <= 4 for index, frame in enumerate(frames))


def test_a_file_without_an_index_is_counted_by_its_packets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import av

    path = tmp_path / "fragmented.mp4"
    with av.open(str(path), "w", options={"movflags": "frag_keyframe+empty_moov"}) as container:
        stream = container.add_stream("libx264", rate=24)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(20):
            frame = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert video_header(path).frames == 20


def test_counting_reads_no_media_data_of_an_indexed_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The media data of an MP4 may be anything: planning looks at its index alone."""
    import av

    path = write_video(tmp_path / "a.mp4", 48, codec="libx264")
    with av.open(str(path)) as container:
        entries = list(container.streams.video[0].index_entries)
    data = bytearray(path.read_bytes())
    for entry in entries[24:]:  # the beginning stays: its first frame tells the display rotation
        data[entry.pos : entry.pos + entry.size] = bytes(entry.size)
    path.write_bytes(data)
    monkeypatch.setattr(module, "_shows_a_frame", None)  # what counting packets would call
    assert video_header(path).frames == 48


@pytest.mark.parametrize(("codec", "shown"), [("vp8", [True, False]), ("vp9", [True, True])])
def test_reference_frames_that_vp8_never_shows_are_not_counted(codec: str, shown: list[bool]):
    class Packet(bytearray):
        is_discard = False
        size = property(bytearray.__len__)

    stream = SimpleNamespace(codec_context=SimpleNamespace(name=codec))
    packets = [Packet([0b0001_0000, 1]), Packet([0b0000_0000, 1])]  # RFC 6386, 9.1: the show_frame bit
    assert [module._shows_a_frame(packet, stream) for packet in packets] == shown
    assert not module._shows_a_frame(Packet(), stream)


@pytest.mark.parametrize(("turn", "size"), [(90, (48, 64)), (-90, (48, 64)), (180, (64, 48)), (0, (64, 48))])
def test_a_turned_video_is_upright(tmp_path: Path, turn: int, size: tuple[int, int]):
    import av

    path = tmp_path / "turned.mp4"
    picture = np.zeros((48, 64, 3), np.uint8)
    picture[:24, :32] = 255  # bright corner at the top left as stored
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.set_display_rotation(turn)
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    assert video_header(path).size == size
    shown = frame_pixels(next(decode(path)))
    assert (shown.shape[1], shown.shape[0]) == size
    expected = np.rot90(picture, turn // 90)  # counter-clockwise, as FFmpeg's display rotation
    assert np.abs(shown.astype(int) - expected).mean() < 3


def test_a_varying_rate_is_noticed(tmp_path: Path):
    import av

    path = tmp_path / "phone.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=30)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        for time in np.cumsum([33, 33, 66, 33, 120, 33, 33, 33]):
            frame = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")
            frame.pts, frame.time_base = int(time), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    header = video_header(path)
    assert header.variable and header.frames == 8


def test_a_folder_of_pictures_is_a_video_in_the_order_of_names(tmp_path: Path):
    for index, name in enumerate(["002.png", "001.png", "003.JPG"]):
        write_picture(tmp_path / "clip" / name, (40 + index, 30), caption=None)
    (tmp_path / "clip" / "readme.txt").write_text("no frame")
    header = video_header(tmp_path / "clip")
    assert (header.size, header.frames, header.fps) == ((41, 30), 3, 0.0)
    assert [frame_pixels(frame).shape[1] for frame in decode(tmp_path / "clip")] == [41, 40, 42]


def cut_to(path: Path, share: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


@pytest.mark.parametrize("flags", ["", "faststart"])
@pytest.mark.parametrize("share", [0.02, 0.4, 0.9])
def test_a_truncated_mp4_is_named(tmp_path: Path, flags: str, share: float):
    import av

    path = tmp_path / "cut.mp4"
    random = np.random.default_rng(0)
    with av.open(str(path), "w", options={"movflags": flags} if flags else {}) as container:
        stream = container.add_stream("libx264", rate=24)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(24):
            picture = random.integers(0, 256, (48, 64, 3), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    cut_to(path, share)
    with pytest.raises(BadFileError, match=r"cut.mp4 (is cut off|cannot be read as a video)"):
        video_header(path)


@pytest.mark.parametrize(
    ("name", "codec"), [("cut.mkv", "ffv1"), ("cut.webm", "libvpx-vp9"), ("cut.avi", "mpeg4")]
)
def test_a_truncated_stream_is_named(tmp_path: Path, name: str, codec: str):
    random = np.random.default_rng(0)
    path = write_video(tmp_path / name, 48, codec=codec, grey=lambda index: int(random.integers(0, 256)))
    cut_to(path, 0.4)
    with pytest.raises(BadFileError, match=r"is cut off|cannot be read"):
        video_header(path)


def test_what_is_no_video_is_named(tmp_path: Path):
    import av

    sound = tmp_path / "sound.mp4"
    with av.open(str(sound), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("not a video " * 50)
    (tmp_path / "hollow").mkdir()
    for name, reason in (
        ("sound.mp4", "has no video in it, only audio"),
        ("empty.mp4", r"is empty \(0 bytes\)"),
        ("text.mp4", "cannot be read as a video"),
        ("gone.mp4", "does not exist"),
        ("hollow", "a folder without pictures"),
    ):
        with pytest.raises(BadFileError, match=f"{name} {reason}|{name} is {reason}"):
            video_header(tmp_path / name)


def test_mutated_videos_raise_only_our_error(tmp_path: Path):
    random = np.random.default_rng(3)
    whole = write_video(tmp_path / "a.mp4", 12, codec="libx264").read_bytes()
    for number in range(40):
        broken = bytearray(whole)
        for place in random.integers(0, len(whole), 6):
            broken[place] = random.integers(0, 256)
        path = tmp_path / f"{number}.mp4"
        path.write_bytes(broken)
        try:
            video_header(path)
            for frame in decode(path):
                frame_pixels(frame)
        except BadFileError as error:
            assert path.name in str(error)
