"""`convert-lora`: the same LoRA under the names and in the form of another program."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor

from musubi_core.errors import BadFileError, ConfigError
from musubi_core.events import FileWritten, Listener, Note, Progress, ShouldStop, Warned, ignore, never
from musubi_core.files.replace import replace_folder, write_json
from musubi_core.files.tensors import write_made
from musubi_core.lora_tools.convert_config import ConvertConfig
from musubi_core.lora_tools.convert_layers import by_layer
from musubi_core.lora_tools.convert_plan import Conversion, Maker, Plan, Stopped, make_plan
from musubi_core.lora_tools.lora_formats import folder_settings, format_for, header_settings
from musubi_core.lora_tools.module_names import (
    Model,
    canonical,
    model_named,
    model_of,
    related_views,
    unknown_text,
)
from musubi_core.lora_tools.peft_settings import CONFIG_FILE, HEADER_KEY, WEIGHT_FILES
from musubi_core.lora_tools.records import LoraSource, open_lora
from musubi_core.networks.reading import listed


def convert_lora(
    config: ConvertConfig, emit: Listener = ignore, should_stop: ShouldStop = never
) -> Path | None:
    """Write `config.input` for another program. Returns the new file or folder; None when stopped or dry.

    Every tensor of the input is in the result, or named in an error (with allow_drop: in a warning). Raises
    ConfigError or BadFileError before anything is written.
    """
    config.check()
    with open_lora(config.input) as source:
        model, target = _models(config, source)
        form = format_for(config.target, key_format=config.lora_key_format, prefix=config.diffusers_prefix)
        naming = form.naming(target)
        if naming is None:
            raise ConfigError(
                f"diffusers has no names for the layers of {target.name}. Choose another target."
            )
        groups, strangers = by_layer(source, model)
        conversion = Conversion(source=source, model=target, naming=naming, format=form)
        try:
            plan = make_plan(conversion, groups, emit, should_stop)
            homeless = [*source.unknown, *(record.base for record in strangers)]
            _judge(config, model, homeless, plan, emit)
            _report(config, source, target, plan, emit)
            if config.dry_run:
                return None
            _write(config, conversion, plan, _metadata(config, source, model, target), emit, should_stop)
        except Stopped:
            return None
    emit(FileWritten(path=config.output, what=f"LoRA for {config.target}"))
    return config.output


def _models(config: ConvertConfig, source: LoraSource) -> tuple[Model, Model]:
    """The model of the file, and the one it is written for, in terms of the same layers."""
    if config.architecture is not None:
        model = model_named(config.architecture, "--architecture")
    else:
        model = model_of([record.base for record in source.records], source.metadata, source.path)
    if config.target_architecture in (None, model.name):
        return model, model
    return related_views(model, str(config.target_architecture))


def _judge(config: ConvertConfig, model: Model, homeless: list[str], plan: Plan, emit: Listener) -> None:
    """Raises BadFileError when something would be lost and that was not allowed, or nothing would be left."""
    problems = []
    if homeless:
        text = unknown_text(homeless, {name: place.layer for name, place in model.table.items()})
        problems.append(f"{len(homeless)} names belong to no layer of {model.name}: {text}")
    if plan.faults:
        problems.append(f"{len(plan.faults)} have no form in the new file: {listed(plan.faults)}")
    if config.target in ("diffusers", "peft") and plan.dora not in (0, len(plan.strengths)):
        raise BadFileError(
            f"{config.input}: {plan.dora} of {len(plan.strengths)} layers use DoRA, but PEFT knows all or "
            "none. Choose another target."
        )
    if not problems:
        return
    text = "; ".join(problems)
    if not plan.infos:
        raise BadFileError(f"{config.input}: nothing of it can be converted: {text}.")
    if not config.allow_drop:
        raise BadFileError(
            f"{config.input} cannot be converted completely: {text}. Set allow_drop to leave them out."
        )
    emit(Warned(text=f"Left out, as allow_drop is set: {text}."))


def _report(config: ConvertConfig, source: LoraSource, target: Model, plan: Plan, emit: Listener) -> None:
    alphas = Counter(record.alpha_source for record in source.records if record.alpha_source)
    origin = ", ".join(f"{count} from the {place}" for place, count in alphas.items())
    emit(
        Note(
            text=f"{config.input.name}: LoRA for {target.name}, {len(source.records)} layers"
            + (f"; alpha: {origin}." if origin else ".")
        )
    )
    if config.dry_run:
        emit(Note(text="\n".join([f"{config.output} would hold:", *_lines(plan.lines)])))
    for text in _doubts(config, target, plan):
        emit(Warned(text=text))


def _lines(lines: Iterable[tuple[tuple[str, ...], tuple[str, ...]]]) -> list[str]:
    """The renaming of each layer, those that differ in the block's number together."""
    counted = Counter(
        tuple(
            " + ".join(dict.fromkeys(re.sub(r"\d+", "N", name, count=1) for name in names)) for names in line
        )
        for line in lines
    )
    return [f"  {count:>4} x {before}  ->  {after}" for (before, after), count in counted.items()]


def _doubts(config: ConvertConfig, target: Model, plan: Plan) -> list[str]:
    """What another program will make of the new file, where that is not what it should."""
    doubts = []
    in_settings = config.target in ("diffusers", "peft")
    if in_settings and any(one.alpha != one.rank for one in plan.strengths.values()):
        doubts.append(
            "Alpha differs from the rank and stands in PEFT's settings, which programs other than diffusers "
            "and PEFT ignore: ComfyUI would use the wrong strength. Use target comfyui for it."
        )
    if config.target == "default" and config.lora_key_format == "musubi":
        known = {canonical(name) for names in target.comfyui.names.values() for name in names}
        lost = [name for _, names in plan.lines for name in names if canonical(name) not in known]
        if lost:
            doubts.append(
                f"ComfyUI ignores {len(lost)} of these names (first: {min(lost)}). Use target comfyui, or "
                "lora_key_format comfyui, for it."
            )
    if plan.dora and not in_settings:
        doubts.append("ComfyUI computes DoRA with magnitudes by rows slightly differently.")
    return doubts


def _metadata(config: ConvertConfig, source: LoraSource, model: Model, target: Model) -> dict[str, str]:
    """That of the input, without what no longer holds, and where the file comes from."""
    kept = {
        name: text
        for name, text in source.metadata.items()
        if not name.startswith("sshs_") and name != HEADER_KEY
    }
    if model.name != target.name:
        kept.pop("modelspec.architecture", None)
        kept |= {"modelspec.architecture": f"{target.card}/lora"} if target.card else {}
        kept["ss_base_model_version"] = target.version
    kept.setdefault("ss_base_model_version", target.version)
    kept.setdefault("format", "pt")
    return kept | {
        "musubi_core.converted_from": config.input.name,
        "musubi_core.converted_to": config.target,
    }


def _write(
    config: ConvertConfig,
    conversion: Conversion,
    plan: Plan,
    metadata: Mapping[str, str],
    emit: Listener,
    should_stop: ShouldStop,
) -> None:
    maker = Maker(conversion, plan)
    done = 0

    def make(name: str) -> Tensor:
        nonlocal done
        if should_stop():
            raise Stopped
        done += 1
        emit(Progress(stage="write", done=done, total=len(plan.infos), text=name))
        return maker.make(name)

    if config.target != "peft":
        more = header_settings(plan.strengths, dora=plan.dora > 0) if config.target == "diffusers" else {}
        write_made(config.output, plan.infos, make, {**metadata, **more}, sshs_hashes=True)
        return
    _refuse_full_folder(config.output)
    with replace_folder(config.output) as folder:
        write_made(folder / WEIGHT_FILES[0], plan.infos, make, metadata, sshs_hashes=True)
        write_json(folder / CONFIG_FILE, folder_settings(plan.strengths, dora=plan.dora > 0))


def _refuse_full_folder(folder: Path) -> None:
    """A folder with anything but an older result in it is not ours to replace."""
    others = {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()
    others -= {CONFIG_FILE, WEIGHT_FILES[0]}
    if others or folder.is_file():
        what = f"holds {', '.join(sorted(others)[:3])}" if others else "is a file"
        raise ConfigError(f"{folder} {what}. For target peft name a new folder.")
