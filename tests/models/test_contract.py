"""What every architecture promises. The suite walks the registry: a new line there brings all of these tests.

The inputs are an architecture's own tiny files, its VAE and its text encoders, so nothing here knows a shape
or a name of any of them.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from musubi_core.config import build, options_of
from musubi_core.device.streams import CopyStream
from musubi_core.errors import BadFileError
from musubi_core.files.checkpoint import open_checkpoint
from musubi_core.files.tensors import write_tensors
from musubi_core.models.registry import SPECS, architecture, architectures
from musubi_core.models.spec import ArchSpec, EncoderRequest, LoadRequest, Pixels, TinyFiles
from musubi_core.networks.building import build_network
from musubi_core.networks.config import NetworkConfig
from musubi_core.networks.loading import load_lora
from musubi_core.networks.network import Network
from musubi_core.networks.saving import lora_tensors
from musubi_core.networks.targets import Targets
from musubi_core.offload.activations import activations_on_host
from musubi_core.offload.swap import Swap, placement, swap
from musubi_core.quantization.fp8 import FP8, dequantise, relative_error
from musubi_core.quantization.fp8_linear import Fp8Linear
from musubi_core.quantization.scheme import QuantisationConfig, Scheme

CPU = torch.device("cpu")
CAPTIONS = ("a red ball", "two cats asleep on a very long sofa, seen from above, in the evening light")
CLIP = (5, 32, 48)  # pixel frames, height, width
KEY_FORMATS = ("comfyui", "musubi")


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """One architecture with its tiny files, and a batch of two as the caches would hold it."""

    spec: ArchSpec
    files: TinyFiles
    batch: Mapping[str, Any]
    text: Mapping[str, Any]  # the part of the batch that comes from captions

    def options(self, cls: type) -> Any:
        """Defaults, with the tiny files filled in where this dataclass has such an option."""
        known = {info.name for info in options_of(cls)}
        given = {name: value for name, value in self.files.options.items() if name in known}
        return build(cls, given, where="the tiny files")

    def load(self, **how: Any) -> nn.Module:
        return self.spec.load(
            LoadRequest(
                path=self.files.dit,
                device=CPU,
                dtype=torch.float32,
                options=self.options(self.spec.train_options),
                **how,
            )
        )

    def network(self, model: nn.Module, seed: int = 0, **config: Any) -> Network:
        return build_network(
            model,
            NetworkConfig(**config),
            Targets(
                classes=self.spec.adapt_classes,
                exclude=self.spec.adapt_exclude,
                comfyui=self.spec.lora_names.comfyui,
            ),
            generator=torch.Generator().manual_seed(seed),
        )

    def velocity(self, model: nn.Module, batch: Mapping[str, Any] | None = None) -> Tensor:
        """The network's answer to a fixed noisy version of the batch."""
        options = self.options(self.spec.train_options)
        given = self.spec.training_input(self.batch if batch is None else batch, options)
        noise = torch.randn(given.latents.shape[1:], generator=torch.Generator().manual_seed(7))
        t = torch.full((len(given.latents),), 0.6)
        x = torch.lerp(given.latents.float(), noise.expand_as(given.latents), 0.6)
        return self.spec.predict(model, x, t, given.conditioning, options)


@pytest.fixture(scope="module", params=list(SPECS))
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    spec = architecture(request.param)
    files = spec.write_tiny(tmp_path_factory.mktemp(spec.name), 0)
    empty = Subject(spec=spec, files=files, batch={}, text={})
    latents, text = encode_clips(empty), encode_captions(empty)
    items = [{**latent, **words} for latent, words in zip(latents, text, strict=True)]
    return Subject(spec=spec, files=files, batch=stacked(items), text=stacked(text))


def encode_clips(subject: Subject) -> list[dict[str, Tensor]]:
    spec = subject.spec
    frames = CLIP[0] if spec.latent.temporal else 1
    generator = torch.Generator().manual_seed(1)

    def noise(*shape: int) -> Tensor:
        return torch.randint(0, 256, (*shape, *CLIP[1:], 3), dtype=torch.uint8, generator=generator)

    pixels = noise(len(CAPTIONS), frames)
    controls = [[noise(frames) for _ in range(spec.latent.min_controls)] for _ in CAPTIONS]
    request = encoder_request(subject, spec.latent_options, weights=subject.files.vae)
    return spec.latents(request).open().encode(Pixels(frames=pixels, seeds=(1, 2), controls=controls))


def encode_captions(subject: Subject) -> list[dict[str, Tensor]]:
    found: list[dict[str, Tensor]] = [{} for _ in CAPTIONS]
    for text_pass in subject.spec.texts(encoder_request(subject, subject.spec.text_options)):
        for item, tensors in zip(found, text_pass.open()(CAPTIONS), strict=True):
            assert set(tensors) == set(text_pass.tensors), "a pass writes what it says it writes"
            item |= tensors
    return found


def encoder_request(subject: Subject, options: type, weights: Path | None = None) -> EncoderRequest:
    return EncoderRequest(device=CPU, dtype=torch.float32, options=subject.options(options), weights=weights)


def stacked(items: list[dict[str, Tensor]]) -> dict[str, Tensor | list[Tensor]]:
    """As data.batches does it: one tensor per name, or a list where lengths vary."""
    batch: dict[str, Tensor | list[Tensor]] = {}
    for name in items[0]:
        values = [item[name] for item in items]
        varied = name.startswith("varlen_")
        batch[name.removeprefix("varlen_")] = values if varied else torch.stack(values)
    return batch


def only(batch: Mapping[str, Any], index: int) -> dict[str, Any]:
    """Item `index` of a batch, as a batch of one."""
    return {name: value[index : index + 1] for name, value in batch.items()}


def test_importing_a_spec_does_not_load_torch():
    code = (
        "import sys; from musubi_core.models.registry import architectures; architectures(); "
        "sys.exit(' '.join({'torch', 'diffusers', 'transformers'} & set(sys.modules)) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_tiny_files_depend_on_the_seed_alone(subject: Subject, tmp_path: Path):
    again = subject.spec.write_tiny(tmp_path / "again", 0)
    other = subject.spec.write_tiny(tmp_path / "other", 1)
    for name in ("dit", "vae"):
        assert getattr(again, name).read_bytes() == getattr(subject.files, name).read_bytes()
        assert getattr(again, name).read_bytes() != getattr(other, name).read_bytes()


def test_exactly_one_architecture_recognises_the_file(subject: Subject):
    with open_checkpoint(subject.files.dit) as checkpoint:
        finders = [spec.name for spec in architectures() if spec.detect(checkpoint.header)]
    assert finders == [subject.spec.name]


def test_a_vae_is_not_taken_for_the_network_and_the_refusal_says_why(subject: Subject):
    with open_checkpoint(subject.files.vae) as checkpoint:
        assert subject.spec.detect(checkpoint.header) is None
        assert "VAE" in subject.spec.refuse(checkpoint.header)
    wrong = LoadRequest(path=subject.files.vae, device=CPU, dtype=torch.float32)
    with pytest.raises(BadFileError, match="VAE"):
        subject.spec.load(wrong)


def test_a_file_with_one_weight_less_is_not_loaded(subject: Subject, tmp_path: Path):
    with open_checkpoint(subject.files.dit) as checkpoint:
        last = sorted(checkpoint.header)[-1]
        tensors = {name: checkpoint.read(name) for name in checkpoint.header if name != last}
    path = tmp_path / "cut.safetensors"
    write_tensors(path, tensors)
    with pytest.raises(BadFileError) as caught:
        subject.spec.load(LoadRequest(path=path, device=CPU, dtype=torch.float32))
    assert last in str(caught.value)


def test_the_loaded_network_is_frozen_and_has_the_asked_dtype(subject: Subject):
    for dtype in (torch.float32, torch.bfloat16):
        model = subject.spec.load(LoadRequest(path=subject.files.dit, device=CPU, dtype=dtype))
        assert not any(parameter.requires_grad for parameter in model.parameters())
        assert {parameter.dtype for parameter in model.parameters()} == {dtype}


def test_the_encoders_write_everything_that_training_needs(subject: Subject):
    missing = set(subject.spec.required_tensors) - set(subject.batch)
    assert not missing


def test_latents_have_the_shape_that_the_buckets_assume(subject: Subject):
    latent = subject.spec.latent
    frames = CLIP[0] if latent.temporal else 1
    expected = (latent.channels, *latent.size(CLIP[2], CLIP[1], frames))
    assert tuple(subject.batch["latents"].shape[1:]) in (expected, (expected[0], *expected[2:]))


def test_the_velocity_has_the_shape_of_the_latents(subject: Subject):
    given = subject.spec.training_input(subject.batch, subject.options(subject.spec.train_options))
    velocity = subject.velocity(subject.load())
    assert velocity.shape == given.latents.shape
    assert torch.isfinite(velocity).all()
    assert velocity.std() > 0


def test_a_batch_of_two_equals_two_singles(subject: Subject):
    model = subject.load()
    batch = subject.velocity(model)
    for index in range(len(CAPTIONS)):
        single = subject.velocity(model, only(subject.batch, index))
        torch.testing.assert_close(batch[index : index + 1], single, rtol=0, atol=2e-5)


def test_time_and_caption_are_heard(subject: Subject):
    spec, model = subject.spec, subject.load()
    options = subject.options(spec.train_options)
    given = spec.training_input(subject.batch, options)
    low, high = (
        spec.predict(model, given.latents, torch.full((2,), t), given.conditioning, options)
        for t in (0.1, 0.9)
    )
    assert not torch.allclose(low, high, atol=1e-4)
    swapped = {
        **subject.batch,
        **{
            name: value[::-1] if isinstance(value, list) else value.flip(0)
            for name, value in subject.text.items()
        },
    }
    other = spec.training_input(swapped, options)
    assert not torch.allclose(
        low, spec.predict(model, given.latents, torch.full((2,), 0.1), other.conditioning, options), atol=1e-4
    )


def test_blocks_are_distinct_modules_of_the_network_in_its_own_order(subject: Subject):
    model = subject.load()
    blocks = subject.spec.blocks(model)
    places = {id(module): place for place, module in enumerate(model.modules())}
    order = [places[id(block)] for block in blocks]
    assert len(blocks) > 1
    assert order == sorted(set(order))


def test_blocks_run_in_the_order_of_the_list(subject: Subject):
    model = subject.load()
    ran: list[int] = []
    for number, block in enumerate(subject.spec.blocks(model)):
        block.register_forward_pre_hook(lambda module, inputs, number=number: ran.append(number))
    subject.velocity(model)
    assert ran == sorted(ran)
    assert len(set(ran)) == len(subject.spec.blocks(model))


def test_adapters_at_zero_change_no_bit(subject: Subject):
    model = subject.load()
    base = subject.velocity(model)
    network = subject.network(model)
    network.apply_to(model)
    assert torch.equal(subject.velocity(model), base)


def test_every_adapter_learns(subject: Subject):
    model = subject.load()
    network = subject.network(model)
    network.apply_to(model)
    shake(network)
    subject.velocity(model).square().mean().backward()
    silent = [name for name, parameter in network.named_parameters() if not parameter.grad.abs().max() > 0]
    assert not silent


def test_every_block_gets_adapters(subject: Subject):
    model = subject.load()
    names = [name for name, module in model.named_modules() if module in subject.spec.blocks(model)]
    adapted = list(subject.network(model).adapters)
    assert all(any(layer.startswith(f"{name}.") for layer in adapted) for name in names)


def test_checkpointing_changes_no_bit_of_output_or_gradient(subject: Subject):
    found = []
    for checkpointing in (False, True):
        model = subject.load(checkpointing=checkpointing)
        network = subject.network(model)
        network.apply_to(model)
        shake(network)
        velocity = subject.velocity(model)
        velocity.square().mean().backward()
        found.append([velocity, *(parameter.grad for parameter in network.parameters())])
    for plain, saving in zip(*found, strict=True):
        assert torch.equal(plain, saving)


@pytest.mark.parametrize("ring", [1, 2, 3])
@pytest.mark.parametrize("scheme", [None, Scheme()], ids=["whole", "fp8"])
def test_swap_on_equals_swap_off_bit_for_bit(subject: Subject, ring: int, scheme: Scheme | None):
    """All blocks wait in host memory, and are never loaded anywhere else."""
    lists = subject.spec.swap.lists or (lambda model: (subject.spec.blocks(model),))
    fp8 = QuantisationConfig(targets=subject.spec.fp8_targets, keep_precise=subject.spec.keep_precise)
    how = {"checkpointing": True, "quantisation": fp8 if scheme else None}

    def place(model: nn.Module) -> Callable[[str], torch.device]:
        return placement(model, lists(model), [len(blocks) for blocks in lists(model)], CPU)

    found = []
    held = Swap()
    for model in (subject.load(**how), subject.load(**how, placement=place)):
        if found:
            blocks = lists(model)
            held = swap(blocks, [len(one) for one in blocks], ring=ring, device=CPU)
        network = subject.network(model)
        network.apply_to(model)
        shake(network)
        with torch.no_grad():
            preview = subject.velocity(model)
        velocities = [subject.velocity(model), subject.velocity(model, only(subject.batch, 1))]
        for velocity in reversed(velocities):
            velocity.square().mean().backward()
        found.append([preview, *velocities, *(parameter.grad for parameter in network.parameters())])
    assert held.copied >= len(subject.spec.blocks(model))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_lists_of_blocks_to_swap_are_all_blocks_in_their_order(subject: Subject):
    model = subject.load()
    rule = subject.spec.swap
    if rule.lists is not None:
        assert [block for one in rule.lists(model) for block in one] == subject.spec.blocks(model)
        assert len(rule.share(1)) == len(rule.lists(model))


def test_a_loader_puts_each_tensor_where_it_is_told(subject: Subject):
    asked: list[str] = []

    def place(name: str) -> torch.device:
        asked.append(name)
        return CPU

    fp8 = QuantisationConfig(targets=subject.spec.fp8_targets, keep_precise=subject.spec.keep_precise)
    model = subject.load(quantisation=fp8, placement=lambda empty: place)
    assert set(asked) == set(model.state_dict())


def test_activations_in_host_memory_change_no_bit(subject: Subject):
    found = []
    for offload in (False, True):
        model = subject.load(checkpointing=True)
        network = subject.network(model)
        network.apply_to(model)
        shake(network)
        saving = activations_on_host(model, CopyStream(CPU), smallest=1) if offload else nullcontext([])
        with saving as moved:
            velocity = subject.velocity(model)
        velocity.square().mean().backward()
        found.append([velocity, *(parameter.grad for parameter in network.parameters())])
    assert len(moved) >= len(subject.spec.blocks(model))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_split_attention_changes_rounding_only(subject: Subject):
    joint, split = (subject.velocity(subject.load(split_attention=split)) for split in (False, True))
    torch.testing.assert_close(joint, split, rtol=0, atol=2e-5)


@pytest.mark.parametrize("key_format", KEY_FORMATS)
def test_a_saved_lora_loads_again_with_every_key(subject: Subject, tmp_path: Path, key_format: str):
    model = subject.load()
    network = subject.network(model, network_dim=3, network_alpha=2.0)
    shake(network)
    path = tmp_path / "lora.safetensors"
    tensors = lora_tensors(network, None, key_format)
    assert len(tensors) == 3 * len(network.adapters), "no two layers share a name"
    write_tensors(path, tensors)
    again = subject.network(model, seed=1, network_dim=3)
    report = load_lora(again, path)
    assert (report.unmatched, report.missing) == ((), ())
    for one, other in zip(network.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_transform_sees_every_adapted_weight_under_its_dotted_name(subject: Subject):
    seen: set[str] = set()

    def note(name: str, tensor: Tensor) -> Tensor:
        seen.add(name)
        return tensor

    model = subject.load(transform=note)
    assert {f"{name}.weight" for name in subject.network(model).adapters} <= seen


def test_what_is_kept_precise_leaves_the_blocks_to_quantise(subject: Subject):
    model = subject.load()
    weights = [f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    small = [name for name in weights if not any(part in name for part in subject.spec.keep_precise)]
    adapted = {f"{name}.weight" for name in subject.network(model).adapters}
    assert adapted <= set(small)


def in_fp8(subject: Subject, scheme: Scheme | None) -> nn.Module:
    """The network with its targets in 8 bits."""
    spec = subject.spec
    if not spec.fp8_targets:
        pytest.skip(f"fp8 is not offered for {spec.name}")
    config = QuantisationConfig(targets=spec.fp8_targets, keep_precise=spec.keep_precise, scheme=scheme)
    return subject.load(quantisation=config)


def fp8_layers(model: nn.Module) -> dict[str, Fp8Linear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, Fp8Linear)}


def velocity_and_gradients(subject: Subject, model: nn.Module) -> list[Tensor]:
    network = subject.network(model)
    network.apply_to(model)
    shake(network)
    velocity = subject.velocity(model)
    velocity.square().mean().backward()
    return [velocity.detach(), torch.cat([parameter.grad.flatten() for parameter in network.parameters()])]


FP8_SCHEMES = [Scheme(), Scheme(granularity="channel"), Scheme(granularity="tensor"), None]


@pytest.mark.parametrize("scheme", FP8_SCHEMES, ids=str)
def test_in_fp8_velocity_and_gradients_stay_near(subject: Subject, scheme: Scheme | None):
    precise = velocity_and_gradients(subject, subject.load())
    rounded = velocity_and_gradients(subject, in_fp8(subject, scheme))
    for one, other, most in zip(precise, rounded, (0.06, 0.12), strict=True):
        assert 0 < (one - other).norm() <= most * one.norm()


@pytest.mark.parametrize("scheme", FP8_SCHEMES, ids=str)
def test_in_fp8_the_network_is_the_plain_one_with_the_weights_that_the_codes_stand_for(
    subject: Subject, scheme: Scheme | None
):
    model, plain = in_fp8(subject, scheme), subject.load()
    for name, layer in fp8_layers(model).items():
        weight = dequantise(layer.weight, layer.scale_weight, torch.float32)
        plain.get_submodule(name).weight = nn.Parameter(weight, requires_grad=False)
    for one, other in zip(
        velocity_and_gradients(subject, model), velocity_and_gradients(subject, plain), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_every_adapted_linear_layer_is_put_into_fp8_and_nothing_outside_the_blocks(subject: Subject):
    model = in_fp8(subject, Scheme())
    adapted = {
        name for name, adapter in subject.network(model).adapters.items() if adapter.layer.kind == "Linear"
    }
    assert adapted <= set(fp8_layers(model))
    inside = {id(module) for block in subject.spec.blocks(model) for module in block.modules()}
    assert {id(layer) for layer in fp8_layers(model).values()} <= inside


def test_no_layer_in_fp8_is_further_off_than_with_the_peers_scheme(subject: Subject):
    """lora-and-fp8.md 6.2: blocks of 64, or rows; scales used in float32 and stored in bf16."""
    model, plain = in_fp8(subject, Scheme()), subject.load()
    for name, layer in fp8_layers(model).items():
        weight = plain.get_submodule(name).weight
        grouped = weight.unflatten(1, (-1, 64)) if weight.shape[1] % 64 == 0 else weight
        scale = (grouped.abs().amax(-1, keepdim=True) / 448).clamp(min=1e-8)
        codes = (grouped / scale).clamp(-448, 448).to(FP8).reshape(weight.shape)
        ours = relative_error(weight, layer.weight, layer.scale_weight)
        assert ours <= relative_error(weight, codes, scale.bfloat16().float()), name


def test_encoded_prompts_and_noise_become_pixels(subject: Subject):
    spec, model = subject.spec, subject.load()
    options = subject.options(spec.train_options)
    known = {name: value for name, value in subject.batch.items() if name != "latents"}
    conditioning = spec.sample_conditioning(known, spec.sampling.guidance, options)
    clean = spec.training_input(subject.batch, options).latents
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        velocity = spec.predict(model, noise, torch.ones(len(noise)), conditioning, options)
    request = encoder_request(subject, spec.latent_options, weights=subject.files.vae)
    pixels = spec.latents(request).open().decode(noise - velocity.float())
    frames = CLIP[0] if spec.latent.temporal else 1
    assert (tuple(pixels.shape), pixels.dtype) == ((len(CAPTIONS), frames, *CLIP[1:], 3), torch.uint8)


def shake(network: Network) -> None:
    """Move every adapter away from zero."""
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.05, generator=generator)
