"""One dataset: the keys of a `[[datasets]]` table, as musubi-tuner names them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from musubi_core.config import ConfigError, option

FRAME_EXTRACTIONS = ("head", "chunk", "slide", "uniform", "full")


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetConfig:
    """Which media belong to a dataset and how they become samples.

    Relative paths start at the current folder. `where` names the table in messages; `notes` are lines that
    its reader wants the user to see.
    """

    # any dataset, also in [general]
    resolution: tuple[int, int] = option(
        (960, 544),
        ge=1,
        help="Width and height that give the area of samples. One number means a square.",
    )
    caption_extension: str = option(
        ".txt", help="Ending of caption files: cat.png has its caption in cat.txt. Unused with JSONL."
    )
    batch_size: int = option(1, ge=1, help="Items per training batch on each device.")
    num_repeats: int = option(1, ge=1, help="How many times each item is seen per epoch.")
    enable_bucket: bool = option(
        False, help="Keep aspect ratios: sort items into buckets of equal area. Off means one size for all."
    )
    bucket_no_upscale: bool = option(
        False, help="Never enlarge: a small picture keeps its size, rounded down to the model's pixel step."
    )

    # any dataset, never in [general]
    cache_directory: Path | None = option(
        None,
        help="Folder for the caches. The media folder when not set; required with JSONL.",
    )
    control_directory: Path | None = option(
        None, help="Folder of control pictures or control videos, named like the media they belong to."
    )
    fp_latent_window_size: int = option(
        9, ge=1, advanced=True, help="Latent frames per section of architectures that generate in sections."
    )

    # pictures
    image_directory: Path | None = option(
        None, help="Folder of pictures, each with a caption file beside it."
    )
    image_jsonl_file: Path | None = option(
        None, help='File with one picture per line: {"image_path": "a.png", "caption": "..."}.'
    )
    multiple_target: bool = option(
        False, help="Several target pictures per item: the layers of a.png are a_0.png, a_1.png, ..."
    )
    no_resize_control: bool = option(
        False,
        help="Keep the size of control pictures, only rounded down to the model's pixel step.",
        aliases=("flux_kontext_no_resize_control", "qwen_image_edit_no_resize_control"),
    )
    control_resolution: tuple[int, int] | None = option(
        None,
        ge=1,
        help="Area of control pictures, as width and height. Without it they get the size of the target.",
        aliases=("qwen_image_edit_control_resolution",),
    )
    fp_1f_clean_indices: tuple[int, ...] | None = option(
        None, advanced=True, help="One-frame training: time index of each control picture."
    )
    fp_1f_target_index: int | None = option(
        None, advanced=True, help="One-frame training: time index of the target picture."
    )
    fp_1f_no_post: bool = option(
        False,
        advanced=True,
        help="One-frame training: do not append the empty latent that follows the target.",
    )

    # videos
    video_directory: Path | None = option(None, help="Folder of videos, each with a caption file beside it.")
    video_jsonl_file: Path | None = option(
        None, help='File with one video per line: {"video_path": "a.mp4", "caption": "..."}.'
    )
    target_frames: tuple[int, ...] = option(
        (1,),
        ge=1,
        help="Lengths of the clips to cut, in frames. Rounded down to what the model's VAE accepts.",
    )
    frame_extraction: str = option(
        "head",
        choices=FRAME_EXTRACTIONS,
        help="Which clips to cut: the head, chunks side by side, a sliding window, uniform samples, all.",
    )
    frame_stride: int = option(1, ge=1, help="Distance between the starts of clips; only for slide.")
    frame_sample: int = option(1, ge=1, help="Number of clips per video and length; only for uniform.")
    max_frames: int = option(129, ge=1, help="Longest clip; only for full.")
    source_fps: float | None = option(
        None, ge=0.001, help="Frame rate of the videos. Without it the rate that each file states is used."
    )

    where: str = "dataset"
    notes: tuple[str, ...] = ()

    @property
    def is_video(self) -> bool:
        return self.video_directory is not None or self.video_jsonl_file is not None

    @property
    def directory(self) -> Path | None:
        """The media folder, None with JSONL."""
        return self.image_directory or self.video_directory

    @property
    def jsonl_file(self) -> Path | None:
        return self.image_jsonl_file or self.video_jsonl_file

    @property
    def source(self) -> Path:
        """Where the media are listed: a folder or a JSONL file."""
        source = self.directory or self.jsonl_file
        assert source is not None, "check() has not been called"
        return source

    @property
    def cache_folder(self) -> Path:
        """Where the caches go."""
        folder = self.cache_directory or self.directory
        assert folder is not None, "check() has not been called"
        return folder

    @property
    def preview_folder(self) -> Path:
        """Where --debug_mode writes: apart, because the cache folder is often the media folder."""
        return self.cache_folder / "preview"

    @property
    def title(self) -> str:
        """How messages name this dataset."""
        return f'{self.where} "{self.source.name or self.source}"'

    def check(self) -> None:
        """Raise ConfigError for keys that contradict each other or paths that are not there."""
        sources = {
            key: path
            for key in ("image_directory", "image_jsonl_file", "video_directory", "video_jsonl_file")
            if (path := getattr(self, key)) is not None
        }
        if not sources:
            raise ConfigError(
                f"{self.where} names no media. Set one of image_directory, image_jsonl_file, video_directory "
                "or video_jsonl_file."
            )
        if len(sources) > 1:
            raise ConfigError(
                f"{self.where} sets {' and '.join(sources)}, but a dataset has one source. "
                "Keep one of them, and put the other in a [[datasets]] table of its own."
            )
        ((key, path),) = sources.items()
        _check_path(self.where, key, path, folder=key.endswith("_directory"))
        if self.control_directory is not None:
            _check_path(self.where, "control_directory", self.control_directory, folder=True)
        if self.jsonl_file is not None:
            self._check_jsonl()

    def _check_jsonl(self) -> None:
        if self.cache_directory is None:
            raise ConfigError(
                f"{self.where} reads {self.jsonl_file} and has no cache_directory. Set cache_directory: a "
                "JSONL file may name media of many folders, so there is no obvious place for the caches."
            )
        if self.control_directory is not None:
            raise ConfigError(
                f"{self.where} sets control_directory beside a JSONL file. Name each control in the JSONL "
                "line (control_path), or use a media folder instead of the JSONL file."
            )

    def remarks(self) -> tuple[str, ...]:
        """Keys that are set and change nothing, or not what their name says."""
        lines: list[str] = []
        mode = self.frame_extraction
        if self.bucket_no_upscale and not self.enable_bucket:
            lines.append("bucket_no_upscale has no effect without enable_bucket = true.")
        if self.is_video and mode == "uniform" and self.frame_sample == 1:
            lines.append('frame_extraction = "uniform" with frame_sample = 1 takes the head of each video.')
        for key, owner, default in (
            ("frame_stride", "slide", 1),
            ("frame_sample", "uniform", 1),
            ("max_frames", "full", 129),
        ):
            if mode != owner and getattr(self, key) != default:
                lines.append(f'{key} is only used by frame_extraction = "{owner}", which is "{mode}" here.')
        if mode == "full" and self.target_frames != (1,):
            lines.append(
                'target_frames is not used by frame_extraction = "full"; max_frames limits the length.'
            )
        return tuple(lines)

    def summary(self) -> dict[str, Any]:
        """The entry of this dataset in the LoRA's `ss_datasets`, under musubi-tuner's names.

        Paths are cut to their last part: a shared LoRA must not tell how its author's disk is laid out.
        """
        entry: dict[str, Any] = {
            "resolution": list(self.resolution),
            "caption_extension": self.caption_extension,
            "batch_size_per_device": self.batch_size,
            "num_repeats": self.num_repeats,
            "enable_bucket": self.enable_bucket,
            "bucket_no_upscale": self.enable_bucket and self.bucket_no_upscale,
        }
        for key in ("image_directory", "image_jsonl_file", "video_directory", "video_jsonl_file"):
            if (path := getattr(self, key)) is not None:
                entry[key] = path.name
        if self.control_directory is not None:
            entry["control_directory"] = self.control_directory.name
        entry["has_control"] = self.control_directory is not None
        if self.is_video:
            for key in ("frame_extraction", "frame_stride", "frame_sample"):
                entry[key] = getattr(self, key)
            entry["target_frames"] = list(self.target_frames)
            entry |= {"max_frames": self.max_frames, "source_fps": self.source_fps}
        return entry


def fingerprint_settings(dataset: DatasetConfig) -> dict[str, Any]:
    """What a `Sample` does not say and still changes its tensors. JSON values.

    Sizes, windows, rates and files are in the sample itself; batch size and repeats change nothing.
    """
    return {"multiple_target": dataset.multiple_target, **item_options(dataset)}


def item_options(dataset: DatasetConfig) -> dict[str, Any]:
    """Keys that only some architectures read while encoding (`Pixels.item_options`). JSON values."""
    indices = dataset.fp_1f_clean_indices
    return {
        "fp_latent_window_size": dataset.fp_latent_window_size,
        "fp_1f_clean_indices": None if indices is None else list(indices),
        "fp_1f_target_index": dataset.fp_1f_target_index,
        "fp_1f_no_post": dataset.fp_1f_no_post,
    }


def _check_path(where: str, key: str, path: Path, *, folder: bool) -> None:
    kind = "folder" if folder else "file"
    if not path.exists():
        start = "" if path.is_absolute() else f" Relative paths start at the current folder, {Path.cwd()}."
        raise ConfigError(f"{where}: {key} = {str(path)!r} does not exist.{start} Give an existing {kind}.")
    if path.is_dir() is not folder:
        raise ConfigError(f"{where}: {key} = {str(path)!r} is not a {kind}. Give an existing {kind}.")
