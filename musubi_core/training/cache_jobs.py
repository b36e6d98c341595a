"""The two caching jobs: latents of pictures and clips, and text encoder outputs of captions.

Both plan first (what is there, does it still fit?), write the plan, make what is missing, and only then
delete what went stale. An encoder is opened only when something must be made.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from musubi_core.config import LatentShape, build
from musubi_core.data.cache_folder import CacheFolder
from musubi_core.data.cache_plan import PlannedLatent, PlannedText, State, latent_state, text_state
from musubi_core.data.cache_writes import Tensors
from musubi_core.data.caching import ItemWork, Ready, make_latents, make_texts
from musubi_core.data.dataset import DatasetConfig, item_options, read_datasets
from musubi_core.data.fingerprint import fingerprint, latent_facts, seed_of, text_facts
from musubi_core.data.items import Item, text_name
from musubi_core.data.manifest import LATENTS, TEXT, Entry
from musubi_core.data.media_hashes import MediaHashes
from musubi_core.data.pixels import load_item_samples
from musubi_core.data.preview import PreviewRequest, preview
from musubi_core.data.report import report_text
from musubi_core.data.scan import Scan, require_items, scan
from musubi_core.device.precision import dtype_of, empty_cache, pick_device
from musubi_core.errors import BadFileError, ConfigError
from musubi_core.events import Listener, Note, Progress, ShouldStop, ignore, never
from musubi_core.models.registry import architecture, architectures
from musubi_core.models.spec import ArchSpec, EncoderRequest, LatentCodec, LatentEncoding, Pixels, TextPass
from musubi_core.training.cache_config import CacheLatentsConfig, CacheTextConfig
from musubi_core.training.cache_report import CacheReport, CacheRun, Failure


def cache_latents(
    config: CacheLatentsConfig, emit: Listener = ignore, should_stop: ShouldStop = never
) -> CacheReport:
    """Encode the pictures and clips of a dataset file, except what is there and still fits.

    Raises ConfigError before anything is loaded when options are wrong or a dataset has no usable item, and
    BadFileError for a wrong VAE or a folder that cannot be written. One bad media file ends nothing: it is
    named in the report's `failed`. After a stop, the next run continues from the files that are there.
    """
    config.check()
    spec = _spec(config.architecture)
    options = _options(config.arch_options, spec.latent_options)
    shape = spec.latent_with(options)
    scans = _scan(config.dataset_config, shape, emit)
    if config.debug_mode is not None:
        return _preview(config, scans, emit, should_stop)
    request = EncoderRequest(
        device=pick_device(config.device),
        dtype=dtype_of(config.vae_dtype) if config.vae_dtype else None,
        options=options,
        weights=config.vae,
    )
    encoding = spec.latents(request)
    needed = (*(name for name in spec.required_tensors if name.startswith(LATENTS)), *encoding.tensors)
    workers = config.num_workers or max(1, (os.cpu_count() or 1) - 1)
    run = CacheRun(LATENTS, scans, emit)
    work: list[tuple[DatasetConfig, list[PlannedLatent]]] = []
    for one in scans:
        folder = CacheFolder(one.dataset, shape, LATENTS)
        hashes = MediaHashes(folder.media)
        _hash_media(one, hashes, workers, emit, should_stop)
        if should_stop():
            return run.report(stopped=True)
        work.append((one.dataset, _plan_latents(one, encoding, hashes, needed, folder=folder, run=run)))
    if any(plan for _, plan in work):
        with torch.backends.cudnn.flags(enabled=not config.disable_cudnn_backend):
            _make_latents(config, shape, encoding, work, run=run, workers=workers, should_stop=should_stop)
        empty_cache(request.device)
    if should_stop():
        return run.report(stopped=True)
    return run.finish(keep_stale=config.keep_cache, quiet=config.skip_existing)


def cache_text(
    config: CacheTextConfig, emit: Listener = ignore, should_stop: ShouldStop = never
) -> CacheReport:
    """Encode the captions of a dataset file, except what is there and still fits.

    The text encoders run one after another, each over all datasets, and add their part to the text files.
    Raises and reports as `cache_latents` does.
    """
    spec = _spec(config.architecture)
    options = _options(config.arch_options, spec.text_options)
    shape = spec.latent_with(options)
    scans = _scan(config.dataset_config, shape, emit)
    request = EncoderRequest(device=pick_device(config.device), dtype=None, options=options)
    passes = spec.texts(request)
    run = CacheRun(TEXT, scans, emit)
    work: dict[str, list[PlannedText]] = {each.name: [] for each in passes}
    for one in scans:
        for planned in _plan_texts(one, passes, folder=CacheFolder(one.dataset, shape, TEXT), run=run):
            work[planned.part].append(planned)
    for each in passes:
        if work[each.name] and not should_stop():
            _make_texts(each, work[each.name], shape, config.batch_size, run=run, should_stop=should_stop)
            empty_cache(request.device)
    if should_stop():
        return run.report(stopped=True)
    return run.finish(keep_stale=config.keep_cache, quiet=config.skip_existing)


def _spec(name: str | None) -> ArchSpec:
    """A VAE or text encoder does not tell the architecture, because several share theirs."""
    if name is not None:
        return architecture(name)
    known = architectures()
    if len(known) > 1:
        raise ConfigError(
            f"--architecture is missing. Choose one of {', '.join(spec.name for spec in known)}."
        )
    return known[0]


def _options(given: object, cls: type) -> Any:
    return given if given is not None else build(cls, {}, where="options")


def _scan(path: Path, shape: LatentShape, emit: Listener) -> list[Scan]:
    """What the datasets come to; the report tells each file that is not used, and why."""
    scans = [scan(dataset, shape) for dataset in read_datasets(path)]
    require_items(scans)
    emit(Note(text=report_text(scans, files=False)))
    return scans


def _preview(
    config: CacheLatentsConfig, scans: Sequence[Scan], emit: Listener, should_stop: ShouldStop
) -> CacheReport:
    request = PreviewRequest(
        mode=str(config.debug_mode),
        width=config.console_width,
        back=config.console_back,
        per_dataset=config.console_num_images,
    )
    lines = preview(scans, request, emit, should_stop)
    failed = tuple(Failure(source=config.dataset_config, reason=line) for line in lines)
    return CacheReport(failed=failed, stopped=should_stop())


def _hash_media(
    one: Scan, hashes: MediaHashes, workers: int, emit: Listener, should_stop: ShouldStop
) -> None:
    paths = [path for item in one.items for path in (item.path, *item.targets, *item.controls)]
    for done, path in enumerate(hashes.read(paths, workers=workers, should_stop=should_stop), start=1):
        emit(Progress(stage="checking media", done=done, total=len(paths), text=path.name))


def _plan_latents(
    one: Scan,
    encoding: LatentEncoding,
    hashes: MediaHashes,
    needed: Sequence[str],
    *,
    folder: CacheFolder,
    run: CacheRun,
) -> list[PlannedLatent]:
    """Look at every cache file of a dataset, write the plan, and give what must be made."""
    keys = item_options(one.dataset)
    encoder = {
        "encoder": encoding.identity,
        "settings": dict(encoding.settings),
        "layers": one.dataset.multiple_target,
        **{name: keys[name] for name in encoding.item_options},
    }
    entries: dict[str, Entry] = {}
    to_make = []
    for sample in one.samples:
        path = folder.path / sample.latent_name(one.shape.short)
        more = len(sample.item.targets) + (len(sample.item.controls) if encoding.controls_are_frames else 0)
        planned = PlannedLatent(sample=sample, path=path, mark="", facts={}, more_frames=more)
        try:
            facts = latent_facts(sample, one.shape, hashes, encoder)
            planned = replace(planned, mark=fingerprint(facts), facts=facts)
            state, error = latent_state(planned, one.shape, needed), ""
        except BadFileError as problem:
            state, error = State.FAILED, str(problem)
        run.looked_at(path, sample.item.path, state, error)
        entries[path.name] = planned.entry(failed=error, foreign=state is State.FOREIGN)
        if state is State.TO_MAKE:
            to_make.append(planned)
    run.begin(folder, entries, hashes.facts())
    return to_make


def _make_latents(
    config: CacheLatentsConfig,
    shape: LatentShape,
    encoding: LatentEncoding,
    work: Sequence[tuple[DatasetConfig, Sequence[PlannedLatent]]],
    *,
    run: CacheRun,
    workers: int,
    should_stop: ShouldStop,
) -> None:
    codec = encoding.open()
    total = sum(len(plan) for _, plan in work)
    done = 0
    for dataset, plan in work:
        outcomes = make_latents(
            plan,
            _loader(dataset, shape),
            _encoder(codec, dataset),
            shape=shape,
            batch_size=config.batch_size or dataset.batch_size,
            workers=workers,
            should_stop=should_stop,
        )
        with contextlib.closing(outcomes):
            for outcome in outcomes:
                done += 1
                run.took(outcome)
                run.progress("latents", done, total, outcome.source.name)


def _loader(dataset: DatasetConfig, shape: LatentShape) -> Callable[[ItemWork], Generator[Ready, None, None]]:
    def load(work: ItemWork) -> Generator[Ready, None, None]:
        planned = {id(one.sample): one for one in work}
        samples = [one.sample for one in work]
        with contextlib.closing(load_item_samples(samples[0].item, samples, dataset, shape)) as loaded:
            for each in loaded:
                yield planned[id(each.sample)], each

    return load


def _encoder(codec: LatentCodec, dataset: DatasetConfig) -> Callable[[Sequence[Ready]], Sequence[Tensors]]:
    keys = item_options(dataset)

    def encode(group: Sequence[Ready]) -> Sequence[Tensors]:
        frames = [loaded.frames for _, loaded in group]
        together = frames[0][None] if len(frames) == 1 else np.stack(frames)
        pixels = Pixels(
            frames=torch.from_numpy(together),
            seeds=[seed_of(planned.mark) for planned, _ in group],
            controls=[[torch.from_numpy(one) for one in loaded.controls] for _, loaded in group],
            item_options=keys,
        )
        return codec.encode(pixels)

    return encode


def _plan_texts(
    one: Scan, passes: Sequence[TextPass], *, folder: CacheFolder, run: CacheRun
) -> list[PlannedText]:
    """Look at every text file of a dataset, write the plan, and give the parts that must be made."""
    entries: dict[str, Entry] = {}
    to_make: list[PlannedText] = []
    for item in one.items:
        path = folder.path / text_name(item.stem, one.shape.short)
        marks: dict[str, str] = {}
        reason = ""
        for each in passes:
            planned = _planned_text(item, path, each, one.shape.architecture)
            try:
                state, error = text_state(planned, one.shape.architecture), ""
            except BadFileError as problem:
                state, error = State.FAILED, str(problem)
            run.looked_at(path, item.path, state, error)
            reason = reason or error
            if state is not State.FOREIGN:
                marks[each.name] = planned.mark
            if state is State.TO_MAKE:
                to_make.append(planned)
        entries[path.name] = Entry(
            stem=item.stem, source=str(item.path), is_video=item.is_video, fingerprints=marks, failed=reason
        )
    run.begin(folder, entries, {})
    return to_make


def _planned_text(item: Item, path: Path, each: TextPass, architecture: str) -> PlannedText:
    facts = text_facts(
        item.caption, architecture, part=each.name, identity=each.identity, settings=each.settings
    )
    return PlannedText(
        item=item, path=path, part=each.name, tensors=each.tensors, mark=fingerprint(facts), facts=facts
    )


def _make_texts(
    each: TextPass,
    plan: Sequence[PlannedText],
    shape: LatentShape,
    batch_size: int,
    *,
    run: CacheRun,
    should_stop: ShouldStop,
) -> None:
    outcomes = make_texts(
        plan,
        each.open(),
        architecture=shape.architecture,
        batch_size=batch_size,
        should_stop=should_stop,
    )
    with contextlib.closing(outcomes):
        for done, outcome in enumerate(outcomes, start=1):
            run.took(outcome)
            run.progress(f"text: {each.name}", done, len(plan), outcome.source.name)
