"""Every kind of adapter that can be trained."""

from __future__ import annotations

from musubi_core.networks import lora
from musubi_core.networks.kind import Kind

KINDS: dict[str, Kind] = {kind.name: kind for kind in (lora.KIND,)}
