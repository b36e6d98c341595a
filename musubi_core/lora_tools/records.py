"""Any LoRA file as records: which modules it changes, how, with which alpha and rank.

Files of all programs are read: every suffix that ComfyUI accepts, musubi-tuner's, LyCORIS's, diffusers' and
PEFT's (also a PEFT folder). Opening reads names, shapes and alphas only; `LoraSource.read` reads the matrices
of one record. A record names its module as the file does ("lora_unet_blocks_0_attn_q",
"transformer.blocks.0.attn.to_q"); which module of which model that is, `module_names` finds out.

    with open_lora(path) as source:
        source.refuse_unknown()
        for record in source.records:
            tensors = source.read(record)  # {"lora_down.weight": (r, in), "lora_up.weight": (out, r)}
            change = record.scale * tensors["lora_up.weight"] @ tensors["lora_down.weight"]
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from torch import Tensor

from musubi_core.errors import BadFileError
from musubi_core.files.checkpoint import Checkpoint, open_checkpoint
from musubi_core.lora_tools.peft_settings import PeftSettings, read_settings
from musubi_core.networks.reading import listed

DOWN, UP, MID = "lora_down.weight", "lora_up.weight", "lora_mid.weight"
ALPHA, DORA = "alpha", "dora_scale"


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordKind:
    """The tensors of one kind of change. needs: sets of names, one of which must be there whole."""

    name: str
    needs: tuple[tuple[str, ...], ...]
    may: tuple[str, ...] = ()
    rank_of: tuple[str, ...] = ()  # the first of these that is there has the rank as its first axis

    @property
    def parts(self) -> set[str]:
        return {name for names in self.needs for name in names} | set(self.may)


_FACTORS = ("lokr_w1_a", "lokr_w1_b"), ("lokr_w2_a", "lokr_w2_b")
KINDS = (
    RecordKind(name="lora", needs=((DOWN, UP),), may=(MID, ALPHA, DORA), rank_of=(DOWN,)),
    RecordKind(
        name="loha",
        needs=(("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"),),
        may=("hada_t1", "hada_t2", ALPHA, DORA),
        rank_of=("hada_w1_b",),
    ),
    RecordKind(
        name="lokr",
        needs=tuple((*w1, *w2) for w1 in (("lokr_w1",), _FACTORS[0]) for w2 in (("lokr_w2",), _FACTORS[1])),
        may=("lokr_t2", ALPHA, DORA),
        rank_of=("lokr_w1_b", "lokr_w2_b"),
    ),
    RecordKind(
        name="glora",
        needs=(("a1.weight", "a2.weight", "b1.weight", "b2.weight"),),
        may=("bm.weight", ALPHA),
        rank_of=("a2.weight",),
    ),
    RecordKind(name="oft", needs=(("oft_blocks",),), may=("rescale", ALPHA)),  # alpha: the constraint
    RecordKind(name="diff", needs=(("diff",), ("diff_b",)), may=("diff", "diff_b")),
    RecordKind(name="norm", needs=(("w_norm",), ("b_norm",)), may=("w_norm", "b_norm")),
)
# (matrix with the rows, matrix with the columns) of each product; tensors that have an axis in common.
PRODUCTS = {
    "lora": ((UP, DOWN),),
    "loha": (("hada_w1_a", "hada_w1_b"), ("hada_w2_a", "hada_w2_b")),
    "lokr": _FACTORS,
}
TWINS = {
    "loha": (("hada_w1_a", "hada_w2_a", 0), ("hada_w1_a", "hada_w2_a", 1), ("hada_w1_b", "hada_w2_b", 1)),
    "diff": (("diff", "diff_b", 0),),
}
FLAT = {name for kind in ("loha", "lokr") for names in PRODUCTS[kind] for name in names} | {"lokr_w1"}
TUCKER = {MID, "hada_t1", "hada_t2", "lokr_t2"}
MAIN = KINDS[:5]  # kinds that have an alpha, of which a module has one; diff and norm may stand beside it

# What files may call a part, with the character before it. The first column of each row is our own name.
SPELLINGS = (
    (
        DOWN,
        (".lora_down.weight", ".lora_A.weight", ".lora_A.default.weight", ".lora_A"),
        ("_lora.down.weight", ".lora.down.weight", ".lora_linear_layer.down.weight"),
    ),
    (
        UP,
        (".lora_up.weight", ".lora_B.weight", ".lora_B.default.weight", ".lora_B"),
        ("_lora.up.weight", ".lora.up.weight", ".lora_linear_layer.up.weight"),
    ),
    (DORA, (".dora_scale", ".lora_magnitude_vector", ".lora_magnitude_vector.weight"), ()),
)
SUFFIXES = {f".{part}": part for kind in KINDS for part in kind.parts} | {
    suffix: part for part, *rows in SPELLINGS for row in rows for suffix in row
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """The change of one module, as a file holds it.

    keys: names in the file by our own part names ("lora_down.weight", ...). rank: 0 where the kind has none.
    alpha: None only for kinds without one. alpha_source: "tensor", "header", "adapter_config.json" or "rank".
    """

    base: str
    kind: str
    keys: Mapping[str, str]
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, str]
    rank: int
    alpha: float | None
    alpha_source: str

    @property
    def scale(self) -> float:
        """What the product of the factors is multiplied by."""
        return self.alpha / self.rank if self.rank and self.alpha is not None else 1.0


class LoraSource:
    """An open LoRA file. unknown: keys that belong to no kind of change. Use as a context manager."""

    def __init__(
        self,
        path: Path,
        checkpoint: Checkpoint,
        records: Sequence[Record],
        unknown: Sequence[str],
    ) -> None:
        self.path = path
        self.metadata = checkpoint.metadata
        self.records = tuple(records)
        self.unknown = tuple(unknown)
        self._checkpoint = checkpoint

    def read(self, record: Record) -> dict[str, Tensor]:
        """The tensors of one record by part, without alpha. Raises BadFileError for NaN or infinity."""
        tensors = {
            part: self._checkpoint.read(key, own_memory=True)
            for part, key in record.keys.items()
            if part != ALPHA
        }
        for part, tensor in tensors.items():
            if not tensor.float().isfinite().all():
                raise BadFileError(f"{self.path}: {record.keys[part]} contains NaN or infinity.")
        return tensors

    def refuse_unknown(self) -> None:
        """Raises BadFileError when the file holds anything that is no adapter."""
        if self.unknown:
            raise BadFileError(
                f"{self.path} has {len(self.unknown)} tensors that belong to no known kind of adapter: "
                f"{listed(self.unknown)}."
            )

    def __enter__(self) -> LoraSource:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._checkpoint.close()


def open_lora(path: Path) -> LoraSource:
    """Open a LoRA file, or a PEFT folder, of any program.

    Raises BadFileError naming every adapter that is incomplete or contradicts itself, and for a file without
    any.
    """
    settings = read_settings(path)
    checkpoint = open_checkpoint(settings.weights)
    try:
        settings = settings.with_header(checkpoint.metadata)
        groups, unknown = _grouped(checkpoint)
        records, faults = [], []
        for base, keys in groups.items():
            try:
                records += _records(base, keys, checkpoint, settings)
            except ValueError as fault:
                faults.append(f"{base}: {fault}")
        if faults:
            raise BadFileError(f"{path} has {len(faults)} adapters that cannot be used: {listed(faults)}.")
        if not records:
            first = f" (first: {listed(unknown)})" if unknown else ""
            raise BadFileError(
                f"{path} is no LoRA: it holds {len(unknown)} tensors, none of them of an "
                f"adapter{first}. Expected names that end in .lora_down.weight or the like."
            )
        return LoraSource(path, checkpoint, records, unknown)
    except BaseException:
        checkpoint.close()
        raise


def split_key(key: str) -> tuple[str, str]:
    """(module as the file calls it, our part name); the part is "" for a key of no adapter."""
    fits = [suffix for suffix in SUFFIXES if key.endswith(suffix) and len(key) > len(suffix)]
    if not fits:
        return key, ""
    suffix = max(fits, key=len)
    return key.removesuffix(suffix), SUFFIXES[suffix]


def _grouped(checkpoint: Checkpoint) -> tuple[dict[str, list[tuple[str, str]]], list[str]]:
    """{base: [(part, key)]} in the order of the file, and foreign keys."""
    groups: dict[str, list[tuple[str, str]]] = {}
    unknown = []
    for key in checkpoint.header:
        base, part = split_key(key)
        if part:
            groups.setdefault(base, []).append((part, key))
        else:
            unknown.append(key)
    return groups, unknown


def _records(
    base: str, pairs: list[tuple[str, str]], checkpoint: Checkpoint, settings: PeftSettings
) -> list[Record]:
    """The records of one base: at most one of MAIN, and perhaps diff or norm. Raises ValueError."""
    keys = dict(pairs)
    if len(keys) < len(pairs):
        raise ValueError(f"has {', '.join(key for _, key in pairs)}, some of which mean the same")
    main = [kind for kind in MAIN if set(keys) & (kind.parts - {ALPHA, DORA})]
    if len(main) > 1:
        raise ValueError(f"is {' and '.join(kind.name for kind in main)} at once")
    kinds = [*main, *(kind for kind in KINDS if kind not in MAIN and set(keys) & kind.parts)]
    claimed = {part for kind in kinds for part in kind.parts}
    if stray := [keys[part] for part in keys if part not in claimed]:
        raise ValueError(f"has {', '.join(stray)} and no weights beside it")
    return [
        _record(
            base, kind, {part: key for part, key in keys.items() if part in kind.parts}, checkpoint, settings
        )
        for kind in kinds
    ]


def _record(
    base: str, kind: RecordKind, keys: dict[str, str], checkpoint: Checkpoint, settings: PeftSettings
) -> Record:
    forms = [set(names) for names in kind.needs if set(names) <= set(keys)]
    if not forms:
        raise ValueError(f"has {', '.join(keys.values())}, but other tensors of a {kind.name} are missing")
    if not any(set(keys) <= form | set(kind.may) for form in forms):
        raise ValueError(f"has {', '.join(keys.values())}, which say different things")
    shapes = {part: checkpoint.header[key].shape for part, key in keys.items()}
    rank = next((shapes[part][0] for part in kind.rank_of if shapes.get(part)), 0)
    dtypes = {part: checkpoint.header[key].dtype for part, key in keys.items()}
    if whole := [keys[part] for part in keys if part != ALPHA and "float" not in dtypes[part]]:
        raise ValueError(f"{', '.join(whole)} holds {dtypes[split_key(whole[0])[1]]}; expected fractions")
    _check_shapes(kind, shapes, keys)
    alpha, source = None, ""
    if kind in MAIN:
        alpha, source = _alpha(base, keys, rank, checkpoint, settings)
        if kind.name != "oft" and alpha == 0:
            raise ValueError("its alpha is 0, which switches it off")
    return Record(
        base=base,
        kind=kind.name,
        keys=keys,
        shapes=shapes,
        dtypes=dtypes,
        rank=rank,
        alpha=alpha,
        alpha_source=source,
    )


def _check_shapes(kind: RecordKind, shapes: Mapping[str, tuple[int, ...]], keys: Mapping[str, str]) -> None:
    """Raises ValueError for tensors that cannot be multiplied with each other."""

    def text(*parts: str) -> str:
        return " and ".join(f"{keys[part]} is {list(shapes[part])}" for part in parts)

    for part, shape in shapes.items():
        if part != ALPHA and (not shape or 0 in shape):
            raise ValueError(f"{text(part)}; expected numbers along every axis")
        if kind.name in PRODUCTS and part not in (ALPHA, DORA) and len(shape) < 2:
            raise ValueError(f"{text(part)}; expected a matrix")
        if part in FLAT and len(shape) > 2 and not TUCKER & set(shapes):
            raise ValueError(f"{text(part)}; expected a matrix")
        if (part == UP and set(shape[2:]) - {1}) or (part == "diff_b" and len(shape) > 1):
            raise ValueError(f"{text(part)}; expected one number for each row and rank, or each row")
    if TUCKER & set(shapes):
        return  # their axes mean other things
    for up, down in PRODUCTS.get(kind.name, ()):
        if up in shapes and shapes[down][0] != shapes[up][1]:
            raise ValueError(f"{text(down, up)}; their ranks differ")
    for one, other, axis in TWINS.get(kind.name, ()):
        if one in shapes and other in shapes and shapes[one][axis] != shapes[other][axis]:
            raise ValueError(f"{text(one, other)}; they do not fit each other")


def _alpha(
    base: str, keys: Mapping[str, str], rank: int, checkpoint: Checkpoint, settings: PeftSettings
) -> tuple[float | None, str]:
    """From the tensor, else the settings, else the rank."""
    if ALPHA in keys:
        tensor = checkpoint.read(keys[ALPHA])
        if tensor.numel() != 1 or not math.isfinite(tensor.item()):
            raise ValueError(f"{keys[ALPHA]} should be one number")
        return float(tensor.item()), "tensor"
    stated = settings.alpha_of(base, rank) if rank else None
    if stated is not None:
        return stated, settings.source
    return (float(rank), "rank") if rank else (None, "")
