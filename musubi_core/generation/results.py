"""What was drawn: named, kept as latents, decoded to pictures and clips."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from musubi_core.events import FileWritten, Listener, Note, Preview, ShouldStop
from musubi_core.generation.facts import facts_of
from musubi_core.generation.memory import DECODING, enough_memory
from musubi_core.generation.opening import OpenedModel
from musubi_core.generation.outputs import free_stem, write_frames, write_latent
from musubi_core.generation.settings import DrawSettings
from musubi_core.models.spec import LatentCodec


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Drawing:
    """A drawn latent without a batch axis, on the CPU. stem: the name of its files."""

    settings: DrawSettings
    latent: Tensor
    stem: str


class Results:
    """The folder that drawings go to. `written`: what is complete there."""

    def __init__(self, opened: OpenedModel, folder: Path, emit: Listener) -> None:
        self.written: list[Path] = []
        self.folder = folder
        self._opened = opened
        self._output = opened.config.output
        self._emit = emit
        self._stems: set[str] = set()  # of drawings that have no file yet

    def keep(self, settings: DrawSettings, latent: Tensor) -> Drawing:
        """Name a drawing, (1, ...), and write its latent if that was asked for."""
        stem = free_stem(self.folder, settings.seed, self._stems)
        self._stems.add(stem)
        drawing = Drawing(settings=settings, latent=latent[0].cpu(), stem=stem)
        if self._output.keeps_latents:
            self._write_latent(drawing)
        return drawing

    def keep_undecoded(self, drawings: Sequence[Drawing]) -> None:
        """Nothing that was drawn is lost; decoding is for later."""
        if not drawings or not self._output.decodes:
            return
        for drawing in drawings:
            if not self._output.keeps_latents:
                self._write_latent(drawing)
        self._emit(Note(text="What was drawn is kept as latents. Decode them with --latent_path."))

    def decode(self, drawings: Sequence[Drawing], codec: LatentCodec, should_stop: ShouldStop) -> None:
        """From latents to files, one by one; after a stop or a failure the rest stays latents."""
        for number, drawing in enumerate(drawings):
            with self.kept_if_failing(drawings[number:]):
                if should_stop():
                    self.keep_undecoded(drawings[number:])
                    return
                self._decode(drawing, codec)

    @contextlib.contextmanager
    def kept_if_failing(self, drawings: Sequence[Drawing]) -> Iterator[None]:
        """Whatever is raised inside, drawings that took minutes are not lost."""
        try:
            yield
        except BaseException:
            self.keep_undecoded(drawings)
            raise

    def _decode(self, drawing: Drawing, codec: LatentCodec) -> None:
        usual = self._opened.spec.sampling_with(self._opened.arch.train)
        fps = self._output.fps or usual.fps
        with enough_memory("decoding", DECODING):
            frames = codec.decode(drawing.latent[None].to(self._opened.device))[0].cpu().numpy()
        facts = facts_of(self._opened, drawing.settings)
        path = write_frames(
            self.folder, drawing.stem, frames, fps=fps, as_images=self._output.as_images, facts=facts
        )
        self._tell(path, what_is(path))
        self._emit(Preview(step=drawing.settings.steps, title=path.name, frames=frames, fps=fps))

    def _write_latent(self, drawing: Drawing) -> None:
        facts = facts_of(self._opened, drawing.settings)
        self._tell(write_latent(self.folder, drawing.stem, drawing.latent, facts), "latent")

    def _tell(self, path: Path, what: str) -> None:
        self.written.append(path)
        self._emit(FileWritten(path=path, what=what))


def what_is(path: Path) -> str:
    """A decoded file or folder in a word, for the user."""
    return {".png": "picture", ".mp4": "clip"}.get(path.suffix, "pictures")
