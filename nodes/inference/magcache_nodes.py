"""Nodes of MagCache: skip steps, measure ratios, load measured ones."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from musubi_core.errors import ConfigError
from musubi_core.sampling.magcache_config import SkipRule
from musubi_core.sampling.magcache_tables import read_tables, shipped_tables

from ..schema import aliases, schema, validator
from .file_state import state_of
from .known_networks import known_network, network_class
from .measuring import MeasureSettings, Measuring
from .ratio_files import new_ratio_path, ratio_names, ratio_path
from .sampling_run import unwatched, watched
from .skipping import Skipping, SkipSettings

CATEGORY = "Musubi/Inference"
Ratios = io.Custom("MUSUBI_MAGCACHE_RATIOS")  # tuple[RatioTable, ...]
AUTO = "auto"
BY_AUTHORS = "as measured"
PRESETS = {"quality": SkipRule(threshold=0.04, k=2), "balanced": SkipRule(threshold=0.08, k=3)}
MODEL_TIP = (
    "Whose ratios fit. auto looks at the network, the size and the schedule; a 14B Wan network that samples "
    "only a part of the schedule is taken for one of Wan 2.2's two. Choose one when you know better."
)


class MagCache(io.ComfyNode):
    """MODEL in, MODEL out: the same, faster."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MusubiMagCache",
            display_name="MagCache",
            category=CATEGORY,
            description="Skips the blocks of the network at steps where they add almost what they added a "
            "step before. For HunyuanVideo, Wan, FLUX, Kontext, Qwen-Image and Chroma, with any sampler, "
            "before or behind LoRA loaders. Other models pass through unchanged.",
            search_aliases=aliases("teacache", "easycache", "speed up", "faster sampling", "skip steps"),
            inputs=[
                io.Model.Input("model", tooltip="What KSampler would be given."),
                io.Boolean.Input("enabled", default=True, tooltip="Off: the model as it came."),
                io.Combo.Input(
                    "preset",
                    options=[BY_AUTHORS, *PRESETS, "custom"],
                    default="balanced",
                    tooltip="as measured: the settings of whoever measured the ratios, mostly the fastest. "
                    "balanced and quality skip less. custom: threshold, k and retention below.",
                ),
                io.Float.Input(
                    "threshold",
                    default=0.08,
                    min=0.0,
                    max=1.0,
                    step=0.005,
                    tooltip="custom: the largest error that the ratios may predict for a row of skipped "
                    "steps. Lower is closer to the picture without MagCache, and slower; 0 skips nothing.",
                ),
                io.Int.Input(
                    "k", default=3, min=0, max=20, tooltip="custom: the most steps that are skipped in a row."
                ),
                io.Float.Input(
                    "retention",
                    default=0.2,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="custom: the first part of the steps, which is always computed. It decides what "
                    "the picture will be; too little changes it.",
                ),
                io.Combo.Input("model_type", options=[AUTO, *_models()], default=AUTO, tooltip=MODEL_TIP),
                Ratios.Input(
                    "ratios",
                    optional=True,
                    tooltip="Your own measurement instead of published ratios, from Load MagCache Ratios.",
                ),
                io.Float.Input(
                    "start_percent",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    tooltip="Before this part of the schedule nothing is skipped.",
                    extra_dict={"advanced": True},
                ),
                io.Float.Input(
                    "end_percent",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    tooltip="Behind this part of the schedule nothing is skipped.",
                    extra_dict={"advanced": True},
                ),
                io.Boolean.Input(
                    "keep_on_cpu",
                    default=False,
                    optional=True,
                    tooltip="Keep what the blocks added in main memory: saves up to 1.5 GB on the card for a "
                    "long clip, and costs a little time.",
                    extra_dict={"advanced": True},
                ),
            ],
            outputs=[
                io.Model.Output(
                    "cached", display_name="model", tooltip="For KSampler, or more nodes before it."
                )
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        enabled: bool,
        preset: str,
        threshold: float,
        k: int,
        retention: float,
        model_type: str,
        ratios: Any = None,
        start_percent: float = 0.0,
        end_percent: float = 1.0,
        keep_on_cpu: bool = False,
    ) -> io.NodeOutput:
        rule = _rule(preset, SkipRule(threshold=threshold, k=k, retention=retention))
        if not enabled or (rule is not None and (rule.threshold == 0 or rule.k == 0)):
            return _told(unwatched(model), "MagCache is off.")
        known = known_network(model)
        if known is None:
            return _told(unwatched(model), _unknown(model))
        settings = SkipSettings(
            node=str(cls.hidden.unique_id or ""),
            known=known,
            rule=rule,
            tables=tuple(ratios or shipped_tables()),
            model=_chosen(model_type, ratios),
            start=start_percent,
            end=end_percent,
            on_cpu=keep_on_cpu,
        )
        return _told(watched(model, Skipping(settings)), _intent(settings))


class CalibrateMagCache(io.ComfyNode):
    """MODEL in, MODEL out: what samples it is measured."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MusubiCalibrateMagCache",
            display_name="Calibrate MagCache",
            category=CATEGORY,
            description="Measures MagCache's ratios while KSampler behind it runs, and saves them as a file "
            "for Load MagCache Ratios. One picture is enough, with the steps, size, scheduler and LoRAs of "
            "later use; nothing is skipped.",
            search_aliases=aliases("magcache calibration", "mag ratios", "measure"),
            inputs=[
                io.Model.Input("model", tooltip="With the LoRAs that will be used."),
                io.String.Input(
                    "name",
                    default="my ratios",
                    tooltip="Name of the file in output/musubi/magcache. A file of this name is replaced.",
                ),
                io.Combo.Input(
                    "model_type",
                    options=[AUTO, *_models()],
                    default=AUTO,
                    tooltip="What the measurement is filed under. " + MODEL_TIP,
                ),
            ],
            outputs=[
                io.Model.Output("measured", display_name="model", tooltip="For KSampler, to its last step.")
            ],
            hidden=[io.Hidden.unique_id],
        )

    validate_inputs = validator(lambda given: given["name"] is None or new_ratio_path(given["name"]), "name")

    @classmethod
    def execute(cls, model: Any, name: str, model_type: str) -> io.NodeOutput:
        known = known_network(model)
        if known is None:
            raise ConfigError(_unknown(model))
        settings = MeasureSettings(
            node=str(cls.hidden.unique_id or ""),
            known=known,
            file=new_ratio_path(name),
            model=_chosen(model_type, None),
        )
        return _told(watched(model, Measuring(settings)), "The next run is measured; nothing is skipped.")


class LoadMagCacheRatios(io.ComfyNode):
    """A file of measured ratios."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MusubiLoadMagCacheRatios",
            display_name="Load MagCache Ratios",
            category=CATEGORY,
            description="Reads ratios that Calibrate MagCache measured, here or elsewhere: from "
            "output/musubi/magcache or models/magcache.",
            search_aliases=aliases("magcache ratios", "mag ratios"),
            inputs=[
                io.Combo.Input(
                    "file",
                    options=ratio_names() or ["(no ratios measured yet)"],
                    tooltip="Press R after a calibration to see its file here.",
                )
            ],
            outputs=[Ratios.Output("ratios", tooltip="For MagCache.")],
        )

    validate_inputs = validator(
        lambda given: given["file"] is None or read_tables(ratio_path(given["file"])), "file"
    )

    @classmethod
    def fingerprint_inputs(cls, file: str) -> Any:
        return state_of(ratio_path(file))

    @classmethod
    def execute(cls, file: str) -> io.NodeOutput:
        tables = read_tables(ratio_path(file))
        return io.NodeOutput(tables, ui={"text": [table.name for table in tables]})


def _models() -> list[str]:
    """What published ratios are for."""
    return list(dict.fromkeys(f"{table.architecture} {table.variant}" for table in shipped_tables()))


def _chosen(model_type: str, ratios: Any) -> tuple[str, str] | None:
    """Architecture and variant that the user named; a file with one table is taken for what it is."""
    if model_type != AUTO:
        architecture, _, variant = model_type.partition(" ")
        return architecture, variant
    if ratios and len(ratios) == 1:
        return ratios[0].architecture, ratios[0].variant
    return None


def _rule(preset: str, custom: SkipRule) -> SkipRule | None:
    """None: as the measurement recommends."""
    return None if preset == BY_AUTHORS else PRESETS.get(preset, custom)


def _intent(settings: SkipSettings) -> str:
    names = {f"{table.architecture} {table.variant}" for table in settings.tables}
    which = " ".join(settings.model) if settings.model else "chosen when sampling begins"
    return f"MagCache is on; ratios: {which} (of {len(names)} known)."


def _unknown(model: Any) -> str:
    return f"MagCache does not know the network {network_class(model)}; every step is computed."


def _told(model: Any, text: str) -> io.NodeOutput:
    return io.NodeOutput(model, ui={"text": [text]})


NODES: tuple[type[io.ComfyNode], ...] = (MagCache, CalibrateMagCache, LoadMagCacheRatios)
