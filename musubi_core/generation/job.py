"""`generate`: from a GenerateConfig to pictures and clips. Only this file and `opening` see all options."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

import torch

from musubi_core.device.memory import empty_cache
from musubi_core.errors import ConfigError, Stopped
from musubi_core.events import Listener, Note, ShouldStop, Warned, ignore, never
from musubi_core.files.replace import check_writable
from musubi_core.generation.conditions import Conditions, has_pictures, prepare
from musubi_core.generation.config import GenerateConfig
from musubi_core.generation.decoding import decode_files
from musubi_core.generation.magcache import ratio_tables
from musubi_core.generation.memory import TEXT, enough_memory
from musubi_core.generation.merged import save_merged
from musubi_core.generation.opening import OpenedModel, open_model
from musubi_core.generation.prompt import Prompt
from musubi_core.generation.prompt_files import parse_line, read_prompts
from musubi_core.generation.prompt_options import check_pictures
from musubi_core.generation.results import Drawing, Results
from musubi_core.generation.session import Session
from musubi_core.generation.settings import DrawSettings, settle_prompt
from musubi_core.generation.text import Encoded, encode_prompts
from musubi_core.models.spec import ArchSpec, LatentCodec

RANDOM_SEEDS = 2**32
# Asks a person for the next prompt with its flags; None or an empty line ends.
AskLine: TypeAlias = Callable[[], "str | None"]


def generate(
    config: GenerateConfig,
    emit: Listener = ignore,
    should_stop: ShouldStop = never,
    *,
    spec: ArchSpec | None = None,
    ask: AskLine | None = None,
) -> tuple[Path, ...]:
    """Draw, decode latents, or save a merged model. Returns what was written: files, folders of pictures.

    When `should_stop()` becomes true, the drawing at work is given up; those that are finished are kept as
    latents. spec: the architecture, when it is none of the registered ones. ask: for --interactive.
    Raises MusubiError with a message for the user; no file is ever written in part.
    """
    config.check()
    with torch.no_grad():
        if config.decodes:
            return decode_files(config, spec, emit, should_stop)
        opened = open_model(config, spec, emit)
        try:
            if config.loras.save_merged_model is not None:
                return save_merged(opened, config.loras.save_merged_model, emit, should_stop)
            return _draw_all(opened, emit, should_stop, ask)
        except Stopped:
            emit(Note(text="Stopped. The model was still being loaded, and nothing was written."))
            return ()
        finally:
            empty_cache(opened.device)


def _draw_all(
    opened: OpenedModel, emit: Listener, should_stop: ShouldStop, ask: AskLine | None
) -> tuple[Path, ...]:
    config = opened.config
    folder = config.output.save_path
    assert folder is not None  # by GenerateConfig.check
    check_writable(folder)
    ratio_tables(config.magcache)  # refuses an unreadable file now
    if config.output.decodes:
        opened.latents(decodes_only=True)  # refuses a foreign VAE now
    results = Results(opened, folder, emit)
    work = _Work(opened, results, emit, should_stop)
    if config.prompts.interactive:
        if ask is None:
            raise ConfigError("--interactive needs someone to ask, and this caller gave nobody.")
        work.one_by_one(ask)
    else:
        work.at_once(_given_prompts(config))
    if should_stop():
        emit(Note(text="Stopped. A drawing that was at work is given up."))
    return tuple(results.written)


def _given_prompts(config: GenerateConfig) -> list[Prompt]:
    """Those of the command line or of the file, the options in their gaps."""
    prompts = config.prompts
    if prompts.from_file is None:
        return [prompts.usual]
    return [prompts.filled(prompt) for prompt in read_prompts(prompts.from_file)]


class _Work:
    """One call of `generate` that draws. `_texts` grows: prompts that were encoded already."""

    def __init__(
        self, opened: OpenedModel, results: Results, emit: Listener, should_stop: ShouldStop
    ) -> None:
        self._opened = opened
        self._results = results
        self._emit = emit
        self._should_stop = should_stop
        self._texts: dict[str, Encoded] = {}

    def at_once(self, prompts: Sequence[Prompt]) -> None:
        """All prompts, with one part of the model in memory after the other."""
        conditions = self._prepare(self._settle(prompts))
        if conditions is None:
            return
        finished: list[Drawing] = []
        with (
            self._results.kept_if_failing(finished),
            Session(self._opened, self._emit, self._should_stop) as session,
        ):
            for number, one in enumerate(conditions, start=1):
                latent = session.draw(one, f"draw {number} of {len(conditions)}", self._results.folder)
                if latent is None:
                    break
                finished.append(self._results.keep(one.settings, latent))
        if self._should_stop():
            self._results.keep_undecoded(finished)
        elif self._opened.config.output.decodes:
            codec = self._opened.latents(decodes_only=True).open()
            self._results.decode(finished, codec, self._should_stop)

    def one_by_one(self, ask: AskLine) -> None:
        """Prompt after prompt as a person types them, with the networks and the VAE kept."""
        codec: LatentCodec | None = None
        session: Session | None = None
        with contextlib.ExitStack() as stack:
            for prompt in self._typed(ask):
                try:
                    conditions = self._prepare(self._settle([prompt]))
                except ConfigError as error:  # a slip of the typist does not unload the model
                    self._emit(Warned(text=str(error)))
                    continue
                if conditions is None:
                    return
                session = session or stack.enter_context(Session(self._opened, self._emit, self._should_stop))
                latent = session.draw(conditions[0], "draw", self._results.folder)
                if latent is None:
                    return
                drawing = self._results.keep(conditions[0].settings, latent)
                if self._opened.config.output.decodes:
                    codec = codec or self._opened.latents(decodes_only=True).open()
                    self._results.decode([drawing], codec, self._should_stop)

    def _typed(self, ask: AskLine) -> Iterator[Prompt]:
        while not self._should_stop():
            line = ask()
            if line is None or not line.strip():
                return
            try:
                prompt = parse_line(line, where="the prompt")
            except ConfigError as error:
                self._emit(Warned(text=str(error)))
                continue
            yield self._opened.config.prompts.filled(prompt)

    def _settle(self, prompts: Sequence[Prompt]) -> list[DrawSettings]:
        """All gaps filled in; what was corrected is told. Raises ConfigError."""
        settled = []
        for number, prompt in enumerate(prompts, start=1):
            check_pictures(prompt)
            settings, lines = settle_prompt(
                prompt,
                self._opened.spec,
                self._opened.arch.train,
                experts=self._opened.experts,
                seed=secrets.randbelow(RANDOM_SEEDS),
                split_uncond=self._opened.config.prompts.split_uncond,
            )
            before = f"Prompt {number}: " if len(prompts) > 1 else ""
            for line in lines:
                self._emit(Warned(text=before + line))
            if prompt.seed is None:
                self._emit(Note(text=f"{before}The seed is {settings.seed}."))
            settled.append(settings)
        return settled

    def _prepare(self, drawings: Sequence[DrawSettings]) -> list[Conditions] | None:
        """Prompts and pictures as tensors; None when stopped."""
        opened = self._opened
        encoding = None
        if any(map(has_pictures, drawings)):
            encoding = opened.latents(decodes_only=False)  # refuses a foreign VAE before text is encoded
        known = {None, *self._texts}
        fresh = [one for one in drawings if not {one.text, one.negative_prompt} <= known]
        if fresh:
            with enough_memory("reading the prompts", TEXT):
                texts = encode_prompts(
                    opened.spec, fresh, opened.text_request(), emit=self._emit, should_stop=self._should_stop
                )
            if texts is None:
                return None
            self._texts |= texts
        codec = None if encoding is None else encoding.open()
        conditions = []
        for one in drawings:
            if self._should_stop():
                return None
            conditions.append(prepare(opened.spec, one, self._texts, codec=codec, options=opened.arch.train))
        return conditions
