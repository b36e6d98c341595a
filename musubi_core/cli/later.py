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


@dataclass(frozen=True, slots=True, kw_only=True)
class LaterJob:
    """A job that has a name and options, and no work behind it yet."""

    name: str
    help: str
    options: tuple[LaterOption, ...] = ()
    positional: str = ""


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
        switches="""img_in_txt_in_offloading disable_numpy_memmap sample_at_first
            fp8_llm fp8_t5 fp8_vl vae_tiling vae_cache_cpu one_frame f1 bulk_decode
            remove_first_image_from_target
            save_state_to_huggingface resume_from_huggingface async_upload""",
        values="""sample_prompts sample_every_n_steps
            sample_every_n_epochs vae_dtype vae_chunk_size vae_spatial_tile_sample_min_size text_encoder
            text_encoder1 text_encoder2 text_encoder_dtype t5 clip image_encoder model_version num_layers
            latent_window_size huggingface_repo_id huggingface_repo_type
            huggingface_path_in_repo huggingface_token huggingface_repo_visibility""",
    ),
}

LATER_JOBS: dict[str, LaterJob] = {
    job.name: job
    for job in (
        LaterJob(
            name="generate",
            help="Make pictures or clips with a base model and LoRAs.",
            options=_options(
                switches="""fp8 fp8_fast fp8_scaled fp8_llm split_attn vae_tiling
                    magcache_calibration compile bulk_decode""",
                values="""config_file architecture dit vae text_encoder1 text_encoder2 prompt negative_prompt
                    from_file video_length infer_steps save_path output_type attn_mode vae_chunk_size
                    vae_spatial_tile_sample_min_size seed fps blocks_to_swap flow_shift guidance_scale
                    embedded_cfg_scale save_merged_model device magcache_mag_ratios magcache_retention_ratio
                    magcache_threshold magcache_k""",
                lists="video_size lora_weight lora_multiplier latent_path",
            ),
        ),
    )
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


def refuse_later_job(name: str) -> None:
    """Raises ConfigError when `name` is a job that a later version will bring."""
    if name in LATER_JOBS:
        raise ConfigError(f"musubi {name} is not available in this version. `musubi --help` lists what is.")
