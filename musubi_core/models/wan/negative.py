"""What the official programs ask the network to stay away from, when nothing else is said."""

from __future__ import annotations

_USUAL = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，"
    "JPEG压缩残留，丑陋的，残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，"
    "形态畸形的肢体，手指融合，静止不动的画面，杂乱的背景，三条腿，背景人很多，倒着走"
)
_NO_CUTS = "镜头切换，"


def negative_prompt(*, last_frame: bool) -> str:
    """last_frame: of the network for clips between two frames, which must not jump to the last one."""
    return _NO_CUTS + _USUAL if last_frame else _USUAL
