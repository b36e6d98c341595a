"""What musubi-tuner's users may type and this version does not do yet.

These options are read like the others, so that a whole command line can be checked; using one is an error
that names it. An entry moves out of here in the change that makes it work.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from musubi_core.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class LaterOption:
    """values: None for a switch, "" for one value, "*" and "+" for a list."""

    name: str
    values: str | None


def _options(*, switches: str = "", values: str = "", lists: str = "") -> tuple[LaterOption, ...]:
    kinds = ((switches, None), (values, ""), (lists, "*"))
    return tuple(LaterOption(name=name, values=kind) for names, kind in kinds for name in names.split())


LATER_OPTIONS: dict[str, tuple[LaterOption, ...]] = {
    "cache-latents": _options(
        switches="f1 one_frame_no_2x one_frame_no_4x",
        values="image_encoder model_version",
    ),
    "cache-text": _options(switches="fp8_vl", values="text_encoder model_version"),
    "train": _options(
        switches="""disable_numpy_memmap fp8_vl f1 bulk_decode
            remove_first_image_from_target save_state_to_huggingface resume_from_huggingface async_upload""",
        values="""text_encoder image_encoder model_version num_layers latent_window_size huggingface_repo_id
            huggingface_repo_type huggingface_path_in_repo huggingface_token huggingface_repo_visibility""",
    ),
    "generate": _options(
        switches="""bulk_decode cpu_noise exclude_single_blocks f1 img_in_txt_in_offloading lazy_loading
            lycoris one_frame_auto_resize fp8_vl disable_numpy_memmap""",
        values="""cfg_apply_ratio cfg_skip_mode ckpt_dir image_encoder latent_window_size model_version
            slg_end slg_layers slg_mode slg_scale slg_start text_encoder
            trim_tail_frames video_sections video_seconds""",
        lists="compile_args control_image_mask_path",
    ),
}


def refuse_later(names: Iterable[str], job: str, *, where: str) -> None:
    """Raises ConfigError when one of `names` is an option of `job` that a later version will bring."""
    later = {option.name for option in LATER_OPTIONS.get(job, ())}
    for name in names:
        if name in later:
            raise ConfigError(
                f"{where}: --{name} is known from musubi-tuner but not available in this version. "
                "Remove it to go on without."
            )
