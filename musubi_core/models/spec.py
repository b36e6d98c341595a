"""All the rest of the program knows about one architecture.

The trainer, caches, adapters, sampling and nodes ask an `ArchSpec` and nothing else. A spec may come from
outside the core: nothing here assumes that the network is one of our own classes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from musubi_core.config import LatentShape
from musubi_core.files.tensor_info import TensorInfo
from musubi_core.offload.groups import SwapRule
from musubi_core.quantization.scheme import QuantisationConfig

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

Batch: TypeAlias = "Mapping[str, Tensor | list[Tensor]]"  # canonical cache names, stacked over the batch
Conditioning: TypeAlias = "Mapping[str, Any]"  # whatever `predict` of the same spec understands


Header: TypeAlias = Mapping[str, TensorInfo]
Shapes: TypeAlias = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Detected:
    """A checkpoint that an architecture recognises as its own network."""

    config: Any  # the architecture's own frozen dataclass with sizes read from the shapes
    naming: str  # "original", "comfyui", "diffusers"
    prefix: str = ""  # stripped from every key, e.g. "model.diffusion_model."


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadRequest:
    """How a network is to be loaded."""

    path: Path
    device: torch.device
    dtype: torch.dtype
    attention: str = "sdpa"  # see device.attention
    split_attention: bool = False
    checkpointing: bool = False
    options: Any = None  # an instance of ArchSpec.train_options
    transform: Callable[[str, Tensor], Tensor] | None = None  # per tensor, original naming, before the cast
    quantisation: QuantisationConfig | None = None  # layers to keep in 8 bits, made after `transform`
    # the network, still without memory -> where each tensor goes, by dotted name; None: all to `device`
    placement: Callable[[nn.Module], Callable[[str], torch.device]] | None = None
    # told how many tensors of how many are loaded, before each one and at the end; may raise Stopped
    watch: Callable[[int, int], None] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingInput:
    """One batch, ready for the flow-matching loss."""

    latents: Tensor  # (B, C, F, H, W) or (B, C, H, W), as the network sees clean data
    conditioning: Conditioning


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderRequest:
    """How an encoder is to be opened for caching or previews."""

    device: torch.device
    dtype: torch.dtype | None  # None: the architecture's own default
    options: Any  # an instance of ArchSpec.latent_options or .text_options
    weights: Path | None = None  # --vae; text encoders name their files in `options`
    decodes_only: bool = False  # a VAE for drawings: nothing is encoded, so what only encoding needs may lack


@dataclass(frozen=True, slots=True, kw_only=True)
class Pixels:
    """What a latent encoder gets for one group of equally sized items."""

    frames: Tensor  # (B, F, H, W, 3) uint8
    seeds: Sequence[int]  # one per item: posterior samples do not depend on order or batch size
    controls: Sequence[Sequence[Tensor]] = ()  # per item, each (F, H, W, 3 or 4) uint8
    item_options: Mapping[str, Any] = field(default_factory=dict)  # dataset keys that only some specs read


class LatentCodec(Protocol):
    """An opened VAE. `encode` returns one dict of canonical cache tensors per item, without batch axis."""

    def encode(self, pixels: Pixels) -> list[dict[str, Tensor]]: ...

    def decode(self, latents: Tensor) -> Tensor:
        """Latents as the network sees them, (B, C, F, H, W) or (B, C, H, W) -> (B, F', H', W', 3) uint8."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentEncoding:
    """How this architecture makes latents: who encodes (for the fingerprint) and how to open it."""

    identity: str  # changes when the weights change
    settings: Mapping[str, Any]  # everything else that changes the result, JSON values
    open: Callable[[], LatentCodec]  # heavy: called only when something must be encoded
    item_options: tuple[str, ...] = ()  # keys of Pixels.item_options that it reads
    controls_are_frames: bool = False  # each control of a picture is one more frame of its latents
    tensors: tuple[str, ...] = ()  # canonical names that every item gets, beyond ArchSpec.required_tensors


@dataclass(frozen=True, slots=True, kw_only=True)
class TextPass:
    """One text encoder. Passes run one after the other, so that only one encoder is in memory."""

    name: str  # "llm", "clipL"
    tensors: tuple[str, ...]  # canonical names it writes
    identity: str
    settings: Mapping[str, Any]
    open: Callable[[], Callable[[Sequence[str]], list[dict[str, Tensor]]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignForm:
    """Names in LoRA files that ComfyUI finds although they are not its own: a prefix and another's names.

    diffusers: diffusers' names follow the prefix, else the network's own. within: where such layers begin.
    """

    prefix: str
    diffusers: bool = False
    within: tuple[str, ...] = ("",)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraNames:
    """Substring substitutions, in order, from the network's dotted names to the names ComfyUI loads.

    also: what else ComfyUI finds.
    """

    comfyui: tuple[tuple[str, str], ...] = ()
    also: tuple[ForeignForm, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerNames:
    """What the same network calls its layers in another program.

    rows: (our dotted name, theirs); `{}` stands for the number of a block. Several names of theirs divide the
    rows of our layer in that order: each has as many rows as the layer has inputs, the last all the rest.
    swapped: our names of layers whose two halves of rows are the other way round there.
    """

    rows: tuple[tuple[str, tuple[str, ...]], ...]
    swapped: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TakenPictures:
    """Which pictures a drawing takes beside its prompt: of each kind the fewest and the most.

    None: any number. control_size: (width, height) of a control picture -> the size that it is brought to;
    without it that of the drawing. one_frame: control pictures of a `OneFrame`; at most 0: not offered.
    """

    image: tuple[int, int | None] = (0, 0)
    end_image: tuple[int, int | None] = (0, 0)
    control_video: tuple[int, int | None] = (0, 0)
    video: tuple[int, int | None] = (0, 0)
    control_images: tuple[int, int | None] = (0, 0)
    control_size: Callable[[int, int], tuple[int, int]] | None = None
    one_frame: tuple[int, int] = (0, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class OneFrame:
    """A single frame, drawn at a time of its own among control pictures at theirs.

    target: None for the architecture's usual time. controls: one per control picture. without: parts that
    are left out, "no_2x", "no_4x" or "no_post".
    """

    target: int | None = None
    controls: tuple[int, ...] = (0,)
    without: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenPictures:
    """The pictures of a drawing as pixels, (H, W, 3) uint8, in its own size.

    size: (frames, height, width) of the drawing. seed: of the drawing, for a VAE that draws its latents.
    control_video, video: (F, H, W, 3). control_images: (h, w, 3 or 4), in sizes of their own.
    """

    size: tuple[int, int, int]
    seed: int
    image: Tensor | None = None
    end_image: Tensor | None = None
    control_video: Tensor | None = None
    video: Tensor | None = None
    control_images: tuple[Tensor, ...] = ()
    one_frame: OneFrame | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedPictures:
    """Tensors for `sample_conditioning`, without a batch axis, under the names that caches have for them.

    `latents_image` is the picture to begin with. frames: of the latent, where they are not those of the
    drawing; `result` is then the one to show. start: (C, F, H, W) as the network sees it, a clean latent to
    begin with in the place of noise.
    """

    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    frames: int | None = None
    result: int = 0
    start: Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentColours:
    """Colours of a latent at a glance: factors of red, green and blue for each channel, and what is added."""

    factors: tuple[tuple[float, float, float], ...]
    bias: tuple[float, float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingDefaults:
    """How pictures are usually drawn.

    steps; shift: of time; guidance: embedded, told to the network where takes_guidance is set. fps: 0 for
    pictures only. frames: of a clip in pixels. shift_for: the time shift for a latent of (height, width),
    where it depends on the size; `shift` is then the one of the size that the architecture was made for.
    cfg_scale: of classifier-free guidance, which asks the network twice; 1 means once. rescale: what is done
    to a guided velocity, given (guided, that of the prompt alone). split_uncond: the two questions are asked
    one after the other anyway. samplers: names, the usual one first.
    """

    steps: int
    shift: float
    guidance: float
    fps: float
    shift_for: Callable[[int, int], float] | None = None
    cfg_scale: float = 1.0
    frames: int = 1
    takes_guidance: bool = True
    negative_prompt: str = ""
    samplers: tuple[str, ...] = ("euler",)
    split_uncond: bool = False
    rescale: Callable[[Tensor, Tensor], Tensor] | None = None
    pictures: TakenPictures = field(default_factory=TakenPictures)
    colours: LatentColours | None = None

    def shift_at(self, height: int, width: int) -> float:
        """The time shift for a latent of this size."""
        return self.shift if self.shift_for is None else self.shift_for(height, width)


@dataclass(frozen=True, slots=True, kw_only=True)
class Expert:
    """One network of a model that may have several, and the noise levels that it is for.

    It answers for t_min <= t < t_max, and the one with t_max = 1 for t = 1 too. Experts of equal `lora` share
    one LoRA; otherwise each LoRA is a file of its own with `lora` in its name. offload: it waits in host
    memory while another expert computes. cfg_scale: where it is not the one of SamplingDefaults.
    """

    path: Path
    name: str = ""
    t_min: float = 0.0
    t_max: float = 1.0
    lora: str = ""
    offload: bool = False
    cfg_scale: float | None = None


def single_expert(dit: Path, options: Any) -> tuple[Expert, ...]:
    """The network in `dit` for every noise level, as most architectures have it."""
    return (Expert(path=dit),)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpecCard:
    """The architecture's `modelspec.*` entries in the metadata of a LoRA."""

    architecture: str
    implementation: str
    resolution: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TinyFiles:
    """Random weights in the real file formats, small enough for a CPU in seconds."""

    dit: Path
    vae: Path
    options: Mapping[str, Any]  # further options by name, e.g. {"text_encoder1": Path(...)}


def _no_reason(header: Header) -> str:
    return ""


def _as_given(dit: Path, options: Any) -> Any:
    return options


def _always_fits(shapes: Shapes, options: Any) -> str:
    return ""


def _not_released() -> Shapes:
    return {}


def _takes_none(codec: LatentCodec, given: GivenPictures, options: Any) -> EncodedPictures:
    return EncodedPictures()


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchSpec:
    """Everything the program may ask about an architecture. Shapes: see the types above.

    `t` is (B,) in 0..1, 1 is pure noise. `predict` returns the velocity, shaped like its noisy input.
    `sample_conditioning` gets what a batch holds besides `latents`: encoded captions, control pictures, ...
    Patterns are regular expressions, matched in full against dotted module names.
    """

    name: str
    latent: LatentShape
    card: ModelSpecCard

    # files
    detect: Callable[[Header], Detected | None]
    load: Callable[[LoadRequest], nn.Module]
    write_tiny: Callable[[Path, int], TinyFiles]  # (folder, seed)

    # caching: option dataclasses of this architecture alone, and what they open
    latent_options: type
    text_options: type
    latents: Callable[[EncoderRequest], LatentEncoding]
    texts: Callable[[EncoderRequest], tuple[TextPass, ...]]

    # training
    train_options: type
    training_input: Callable[[Batch, Any], TrainingInput]  # (batch, train options)
    predict: Callable[[nn.Module, Tensor, Tensor, Conditioning, Any], Tensor]  # (net, x_t, t, cond, options)
    blocks: Callable[[nn.Module], list[nn.Module]]  # what may be swapped or compiled, in order
    required_tensors: tuple[str, ...]  # canonical cache names without which an item cannot be trained on

    # adapters and precision
    adapt_classes: tuple[str, ...]  # class names whose Linear and Conv children get adapters
    adapt_exclude: tuple[str, ...]  # always excluded unless the user's include patterns name them
    keep_precise: tuple[str, ...]  # substrings of names that are never quantised
    lora_names: LoraNames
    # accepted as network_module, all meaning LoRA; the first is musubi-tuner's own and stands in the metadata
    network_modules: tuple[str, ...]

    # sampling
    sampling: SamplingDefaults
    sample_conditioning: Callable[[Batch, float, Any], Conditioning]  # (batch, guidance, options)

    # (VAE, pictures, settled train options) -> the pictures of a drawing, as latent caches would hold them
    encode_pictures: Callable[[LatentCodec, GivenPictures, Any], EncodedPictures] = _takes_none
    # (shape of a latent, generator) -> the noise that a drawing starts from, float32; None: one draw of all
    noise: Callable[[tuple[int, ...], torch.Generator], Tensor] | None = None

    # the geometry of latents where the options decide, given any of the three option dataclasses
    latent_for: Callable[[Any], LatentShape] | None = None
    sampling_for: Callable[[Any], SamplingDefaults] | None = None  # the same, given train options
    # (--dit, train options) -> the options with what the file tells filled in; ConfigError when they disagree
    settle: Callable[[Path, Any], Any] = _as_given
    # (--dit, settled train options) -> the networks, lowest noise first
    experts: Callable[[Path, Any], tuple[Expert, ...]] = single_expert
    # options of the three kinds that drawing has no use for
    training_only: tuple[str, ...] = ()
    # train options that change no number, so that a resumed run may have others
    harmless: tuple[str, ...] = ()
    # (shapes of an item's cached tensors by name, settled train options) -> why it cannot be trained on, in
    # words that follow the path of its latents: "has no clip, ..."; "" when it can
    unfit: Callable[[Shapes, Any], str] = _always_fits

    # modules whose linear layers may be kept in 8 bits, e.g. ("double_blocks",); empty: fp8 is not offered
    fp8_targets: tuple[str, ...] = ()
    # what --blocks_to_swap means: by default that many of `blocks`, one of which always stays
    swap: SwapRule = field(default_factory=SwapRule)

    # why `detect` turned a header down, for messages: "it holds a VAE. Expected ..."
    refuse: Callable[[Header], str] = _no_reason

    # MagCache, None: not offered. (settled train options, canonical names of the pictures given, (height,
    # width) of the latent) -> which of the measured ratios fit, e.g. "t2v-14B". Where it is given, `predict`
    # heeds `through` in its conditioning: a callable that gets the walk through all blocks and the tokens of
    # the picture (B, L, D) that enter the first one, and returns those that leave the last one.
    ratios_for: Callable[[Any, Collection[str], tuple[int, int]], str] | None = None

    # files of LoRAs: names and shapes of the released network's parameters (the largest where there are
    # several); what diffusers calls its layers; other architectures that take its LoRAs under other names
    released: Callable[[], Shapes] = _not_released
    diffusers_names: LayerNames | None = None
    related: Mapping[str, LayerNames] = field(default_factory=dict)

    def latent_with(self, options: Any) -> LatentShape:
        """The geometry of latents with these options of a job (None: their defaults)."""
        return self.latent if self.latent_for is None or options is None else self.latent_for(options)

    def sampling_with(self, options: Any) -> SamplingDefaults:
        """The defaults of inference with these train options (None: their defaults)."""
        return self.sampling if self.sampling_for is None or options is None else self.sampling_for(options)
