"""Makes the engine beside this package importable as `musubi_core`: one name, and no path edit."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

NAME = "musubi_core"


def bind_core(folder: Path = Path(__file__).parent.parent / NAME) -> None:
    """Register the engine in `folder`, unless it was imported before.

    The one beside the nodes wins over an installed one, because they were made for each other. Raises
    ImportError when another version is loaded already: two of a kind would mix.
    """
    ours = re.search(r'__version__ = "(.+)"', (folder / "__init__.py").read_text(encoding="utf-8"))
    version = ours.group(1) if ours else ""
    loaded = sys.modules.get(NAME)
    if loaded is not None:
        if getattr(loaded, "__version__", "") != version:
            raise ImportError(
                f"Another version of {NAME} is loaded already, from {loaded.__file__}, and these nodes need "
                f"{version} from {folder}. Keep one copy of ComfyUI-Musubi in custom_nodes."
            )
        return
    spec = importlib.util.spec_from_file_location(
        NAME, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[NAME] = module
    spec.loader.exec_module(module)
