"""Which layer of which model a name in a LoRA file means.

The tables come from the real names of the released networks (ArchSpec.released), never from the text of a
name: `double_blocks_0_img_attn_qkv` is `img_attn.qkv` in one model and `img_attn_qkv` in another.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache

from musubi_core.config import nearest, unknown_key
from musubi_core.errors import BadFileError, ConfigError
from musubi_core.models.registry import architectures
from musubi_core.models.spec import ArchSpec, LayerNames
from musubi_core.networks.naming import substituted
from musubi_core.networks.reading import SHOWN, listed

PREFIXES = (
    *("base_model.model.", "model.diffusion_model.", "diffusion_model.", "transformer.", "unet."),
    *("lora_unet_", "lora_transformer_", "lycoris_", "_"),  # lora_unet__ is how Wan-Fun's trainer begins
)
_FIRST_NUMBER = re.compile(r"(.*?\.)(\d+)(?=\.)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Naming:
    """What one program calls the layers of a network.

    names: for each of our layers, the names that divide its rows in order (mostly one). swapped: our layers
    whose two halves of rows are the other way round.
    """

    names: Mapping[str, tuple[str, ...]]
    swapped: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What a name in a file means: the part-th share of the rows of one of our layers."""

    naming: Naming
    layer: str
    part: int

    @property
    def whole(self) -> bool:
        return len(self.naming.names[self.layer]) == 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model that LoRAs are for, in terms of the layers of one architecture.

    layers: shapes of the weights by our dotted names. comfyui: the names that ComfyUI finds. version, card:
    how metadata names the model ("" if unknown).
    """

    name: str
    home: ArchSpec
    layers: Mapping[str, tuple[int, ...]]
    own: Naming
    comfyui: Naming
    diffusers: Naming | None
    version: str
    card: str
    table: Mapping[str, Place]

    def place(self, base: str) -> Place | None:
        """Where a name of a file belongs, in whichever of the namings; None when it is not of this model."""
        return self.table.get(canonical(base))


def canonical(base: str) -> str:
    """A name without any program's prefix, its dots as underscores. Loses nothing: tables are one to one."""
    while prefix := next((prefix for prefix in PREFIXES if base.startswith(prefix)), ""):
        base = base.removeprefix(prefix)
    return base.replace(".", "_")


@cache
def known_models() -> Mapping[str, Model]:
    """Every architecture, and those that are known only as relatives of one."""
    homes = {spec.name: spec for spec in architectures() if spec.released()}
    found = {name: view(name, spec) for name, spec in homes.items()}
    for spec in homes.values():
        for name in spec.related:
            found.setdefault(name, view(name, spec))
    return found


@cache
def _layers_of(home_name: str) -> Mapping[str, tuple[int, ...]]:
    home = next(spec for spec in architectures() if spec.name == home_name)
    named = ((name.rpartition("."), shape) for name, shape in home.released().items())
    return {layer: shape for (layer, _, parameter), shape in named if parameter in ("weight", "scale")}


def view(name: str, home: ArchSpec) -> Model:
    """The model `name`, `home` itself or a relative of it, in terms of the layers of `home`."""
    layers = _layers_of(home.name)
    if name == home.name:
        own = Naming(names={layer: (layer,) for layer in layers})
        changed = home.lora_names.comfyui
        spelled = Naming(names={layer: (substituted(layer, changed),) for layer in layers})
        theirs = None if home.diffusers_names is None else naming_of(home.diffusers_names, layers)
        version, card = home.latent.architecture, home.card.architecture
    else:
        own = spelled = theirs = naming_of(home.related[name], layers)
        version, card = name, ""
    return Model(
        name=name,
        home=home,
        layers=layers,
        own=own,
        comfyui=spelled,
        diffusers=theirs,
        version=version,
        card=card,
        table=_table((own, spelled, theirs or own)),
    )


def naming_of(names: LayerNames, layers: Iterable[str]) -> Naming:
    """The table of one program with the numbers of the blocks filled in."""
    rules = [(re.compile(re.escape(ours).replace(r"\{\}", r"(\d+)")), theirs) for ours, theirs in names.rows]
    filled = {}
    for layer in layers:
        for rule, theirs in rules:
            if found := rule.fullmatch(layer):
                filled[layer] = tuple(one.format(*found.groups()) for one in theirs)
    return Naming(names=filled, swapped=frozenset(names.swapped))


def _table(namings: Iterable[Naming]) -> dict[str, Place]:
    """{canonical name: place}; the first naming that has a name wins.

    Raises ValueError when two layers, or two parts of one, would share a name.
    """
    table: dict[str, Place] = {}
    for naming in namings:
        for layer, parts in naming.names.items():
            for part, name in enumerate(parts):
                place = Place(naming=naming, layer=layer, part=part)
                known = table.setdefault(canonical(name), place)
                if (known.layer, known.part) != (layer, part):
                    raise ValueError(f"{known.layer} and {layer} are both called {name} in LoRA files")
    return table


def model_named(name: str, where: str) -> Model:
    """Raises ConfigError with the nearest names."""
    models = known_models()
    if name not in models:
        raise unknown_key(name, models, where=where, kind="architecture")
    return models[name]


def model_of(bases: Iterable[str], metadata: Mapping[str, str], path: object) -> Model:
    """The model that a LoRA is for: the one that knows most of its names.

    Among equals, the one that the metadata names; else the one whose every block the file has. Raises
    BadFileError when no model knows any name, ConfigError when several fit equally well.
    """
    bases = list(bases)
    models = list(known_models().values())
    known = {model.name: [place for base in bases if (place := model.place(base))] for model in models}
    most = max(len(places) for places in known.values())
    if not most:
        names = ", ".join(model.name for model in models)
        raise BadFileError(
            f"{path} is for no model that is known here ({names}): it has names such as {listed(bases)}."
        )
    best = [model for model in models if len(known[model.name]) == most]
    for narrower in (
        [model for model in best if _named_by(metadata, model)],
        [model for model in best if _fills(known[model.name], model)],
    ):
        best = narrower or best
        if len(best) == 1:
            return best[0]
    names = " or ".join(model.name for model in best)
    raise ConfigError(f"{path} could be for {names}: the file cannot tell. Give --architecture.")


def _named_by(metadata: Mapping[str, str], model: Model) -> bool:
    card = metadata.get("modelspec.architecture", "").removesuffix("/lora")
    return metadata.get("ss_base_model_version") == model.version or (card != "" and card == model.card)


def _fills(places: Iterable[Place], model: Model) -> bool:
    """Whether a file has every block of the model, of those series of blocks that it has any of."""
    mine = _blocks(place.layer for place in places)
    whole = _blocks(model.layers)
    return bool(mine) and all(mine[series] == whole[series] for series in mine)


def _blocks(layers: Iterable[str]) -> dict[str, set[str]]:
    series: dict[str, set[str]] = {}
    for layer in layers:
        if found := _FIRST_NUMBER.match(layer):
            series.setdefault(found[1], set()).add(found[2])
    return series


def related_views(source: Model, target: str) -> tuple[Model, Model]:
    """Both models in terms of the same layers. Raises ConfigError when their LoRAs cannot be exchanged."""
    partners: dict[str, ArchSpec] = {}
    for model in known_models().values():
        family = (model.home.name, *model.home.related)
        if source.name in family:
            partners |= dict.fromkeys(family, model.home)
    if target in partners:
        return view(source.name, partners[target]), view(target, partners[target])
    model_named(target, "--target_architecture")
    others = " or ".join(sorted(set(partners) - {source.name}))
    raise ConfigError(
        f"A LoRA for {source.name} cannot become one for {target}, because their layers differ. It can "
        f"become one for {others or 'no other model'}."
    )


def unknown_text(bases: list[str], layers: Mapping[str, str]) -> str:
    """The first few unknown names for a message, each with the layers that it resembles.

    layers: {canonical name: layer}.
    """
    shown = []
    for base in bases[:SHOWN]:
        near = dict.fromkeys(layers[name] for name in nearest(canonical(base), layers))
        shown.append(base + (f" (nearest: {', '.join(near)})" if near else ""))
    return listed([*shown, *bases[SHOWN:]])
