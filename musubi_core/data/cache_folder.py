"""One cache folder while a caching job runs: its manifest before, during and after, and what goes stale."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from musubi_core.config import LatentShape
from musubi_core.data.cache_file import read_cache_header
from musubi_core.data.dataset import DatasetConfig
from musubi_core.data.manifest import Entry, Manifest, dataset_settings, read_manifest, write_manifest
from musubi_core.errors import BadFileError
from musubi_core.files.replace import check_writable


class CacheFolder:
    """The latents or the text of one dataset on disk.

    `begin` writes the plan before the first file is made, `finish` what became of it. A job that is killed or
    stopped in between leaves the plan, marked as incomplete; the next run continues from the files.
    """

    def __init__(self, dataset: DatasetConfig, shape: LatentShape, kind: str) -> None:
        """Raises BadFileError when the folder cannot be written or its manifest is damaged."""
        self.path = dataset.cache_folder
        check_writable(self.path)
        self._short = shape.short
        self._kind = kind
        before = read_manifest(self.path, shape.short, kind)
        self._before = before.entries if before is not None else {}
        self.media = before.media if before is not None else {}
        self._plan = Manifest(architecture=shape.architecture, dataset=dataset_settings(dataset))

    def begin(self, entries: Mapping[str, Entry], media: Mapping[str, Mapping[str, Any]]) -> None:
        """Write the plan. What was listed before and is not in it is stale."""
        stale = {
            name: replace(entry, used=False) for name, entry in self._before.items() if name not in entries
        }
        self._plan = replace(self._plan, entries={**stale, **entries}, media=media)
        write_manifest(self.path, self._short, self._kind, self._plan)

    def finish(self, failed: Mapping[str, str], *, keep_stale: bool) -> list[Path]:
        """Delete stale files, unless they are to be kept, and write the manifest of a finished job.

        failed: file name -> reason. Returns what was deleted.
        """
        entries = dict(self._plan.entries)
        for name, reason in failed.items():
            entries[name] = replace(entries[name], failed=reason)
        deleted: list[Path] = []
        if not keep_stale:
            stale = [name for name, entry in entries.items() if not entry.used]
            deleted = [self.path / name for name in stale if self._delete(name)]
            for name in stale:
                del entries[name]
        plan = replace(self._plan, entries=entries, complete=True)
        write_manifest(self.path, self._short, self._kind, plan)
        return deleted

    def _delete(self, name: str) -> bool:
        """Delete a stale file, if it is there and carries our mark: files of others are left alone."""
        path = self.path / name
        if Path(name).name != name or not path.is_file():
            return False
        try:
            if not read_cache_header(path).ours:
                return False
        except BadFileError:  # damaged or replaced by something else: not what we wrote
            return False
        path.unlink()
        return True
