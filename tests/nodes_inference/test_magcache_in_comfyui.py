"""MagCache around ComfyUI's own networks and samplers: what is skipped was said, and nothing else changes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pack_in_comfyui import start
from tiny_networks import NETWORKS

from musubi_core.sampling.magcache_tables import read_tables

NAMES = ("flux", "hunyuan_video", "wan", "qwen_image")
SPANS = (*NAMES, "vace", "chroma", "flux edit", "qwen_image edit", "hunyuan_video window")
SAMPLERS = ("heun", "dpmpp_sde", "uni_pc", "dpmpp_2m")
STEPS = 10
CODE = """
import gc, types
import folder_paths
folder = {folder!r}
folder_paths.set_output_directory(folder + "/output")
from musubi_pack.nodes.inference import block_span, magcache_nodes, sampling_run
lines = []
class Lines(logging.Handler):
    def emit(self, record):
        lines.append(record.getMessage())
logging.getLogger("musubi").addHandler(Lines())
logging.getLogger("musubi").setLevel(logging.INFO)
for node in magcache_nodes.NODES:
    node.hidden = types.SimpleNamespace(unique_id="7")

def cached(model, threshold=0.5, k=2, retention=0.2, enabled=True, **more):
    out = magcache_nodes.MagCache.execute(model, enabled, "custom", threshold, k, retention, "auto", **more)
    lines.extend(out.ui["text"])
    return out.args[0]

class Counted:
    # how often the blocks of a network are run
    def __init__(self, model):
        net = model.model.diffusion_model
        blocks = getattr(net, "double_blocks", None) or getattr(net, "transformer_blocks", None) or net.blocks
        self.count = 0
        self.hook = blocks[0].register_forward_pre_hook(self.add)
    def add(self, *_):
        self.count += 1
    def done(self):
        self.hook.remove()
        return self.count

def picture(name, model, **more):
    extra = more.pop("extra", dict())
    return sample(model, latent_for(name), *prompts_for(name, **extra), steps={steps}, **more)

def run(name, model, **more):
    lines.clear()
    counted = Counted(model)
    made = picture(name, model, **more)
    return made, counted.done(), list(lines)

def hooks_left(model):
    return sum(len(one._forward_pre_hooks) for one in model.model.diffusion_model.modules())

def tensors_after(name, model):
    counts = []
    for _ in range(2):
        picture(name, model)
        gc.collect()
        counts.append(sum(isinstance(one, torch.Tensor) for one in gc.get_objects()))
    return counts[1] - counts[0]

found = dict(exact=dict(), asked=dict(), span=dict(), counts=dict(), samplers=dict())

class Twice:
    # answers each evaluation twice, and keeps how far skipping is from computing
    def __init__(self, known):
        self.known, self.worst, self.asked = known, 0.0, set()
    def fresh(self):
        return Twice(self.known)
    def begin(self, run):
        self.run = run
    def end(self, *, complete):
        pass
    def evaluate(self, executor, call):
        self.asked.update(sampling_run.asked_in(call))
        answer, added = block_span.through_blocks(executor, call, self.known)
        again = block_span.past_blocks(executor, call, added)
        self.worst = max(self.worst, float((answer - again).abs().max() / answer.abs().max()))
        return answer

for wanted in {spans!r}:
    name, _, way = wanted.partition(" ")
    model = network(name)
    shape = (1, 16, 1, 8, 8) if name == "qwen_image" else (1, 16, 8, 8)
    extra = dict(reference_latents=[noise_like(*shape, seed=8)]) if way == "edit" else dict()
    if way == "window":
        extra = dict(guiding_frame_index=0, ref_latent=noise_like(1, 16, 1, 8, 8, seed=8))
    watcher = Twice(magcache_nodes.known_network(model))
    # ComfyUI itself fails on a batch of two with a first frame of HunyuanVideo.
    picture(name, sampling_run.watched(model, watcher), extra=extra, cfg=1.0 if way == "window" else 3.0)
    found["span"][wanted] = watcher.worst
    found["asked"][wanted] = sorted(one.branch for one in watcher.asked)

for name in {names!r}:
    model = network(name)
    plain, computed, _ = run(name, model)
    off = [
        picture(name, cached(model, enabled=False)),
        picture(name, cached(model, threshold=0.0)),
        picture(name, cached(model, k=0)),
        picture(name, cached(model, threshold=1e-9)),
        picture(name, magcache_nodes.unwatched(cached(model))),
    ]
    found["exact"][name] = [bool(torch.equal(plain, one)) for one in off]
    fast = cached(model)
    first, blocks, said = run(name, fast)
    again, _, _ = run(name, fast)
    model.model.memory_required = lambda *args, **kwargs: 1e20  # so that batches are taken apart
    apart, blocks_apart, said_apart = run(name, fast)
    del model.model.memory_required
    single, blocks_single, said_single = run(name, fast, cfg=1.0)
    found["counts"][name] = dict(
        computed=computed, blocks=blocks, said=said, again=bool(torch.equal(first, again)),
        changed=not torch.equal(first, plain), apart=float((first - apart).abs().max() / first.abs().max()),
        blocks_apart=blocks_apart, said_apart=said_apart,
        blocks_single=blocks_single, said_single=said_single,
        left=hooks_left(model), tensors=tensors_after(name, fast),
    )

wan = network("wan")
for sampler in {samplers!r}:
    _, computed, _ = run("wan", wan, sampler=sampler)
    _, blocks, said = run("wan", cached(wan), sampler=sampler)
    found["samplers"][sampler] = [computed, blocks, said]

lora = dict()
for key in ("blocks.0.self_attn.q", "blocks.1.ffn.0"):
    rows, columns = wan.model.diffusion_model.get_submodule(key).weight.shape
    lora["diffusion_model." + key + ".lora_A.weight"] = noise_like(2, columns, seed=5)
    lora["diffusion_model." + key + ".lora_B.weight"] = noise_like(rows, 2, seed=6)
with_lora = lambda model: comfy.sd.load_lora_for_models(model, None, lora, 1.0, 0.0)[0]
before, after = picture("wan", cached(with_lora(wan))), picture("wan", with_lora(cached(wan)))
found["lora"] = [bool(torch.equal(before, after)), bool(torch.equal(before, picture("wan", cached(wan))))]

fast = cached(wan)
once = picture("wan", fast)
class Stop(Exception):
    pass
def stop(step, *_):
    if step == 5:
        raise Stop
try:
    picture("wan", fast, callback=stop)
except Stop:
    pass
found["after_stop"] = bool(torch.equal(once, picture("wan", fast)))

parts = []
for begin, end in ((0, 5), (5, 10)):
    more = dict(start_step=begin, last_step=end, force_full_denoise=end == 10)
    parts.append(run("wan", cached(wan, retention=0.0), **more)[1:])
found["parts"] = parts

plain = picture("wan", wan)
wan.model.__class__ = type("WAN21_Other", (type(wan.model),), dict())
lines.clear()
other = cached(wan)
found["unknown"] = [lines[0], bool(torch.equal(plain, picture("wan", other)))]
wan.model.__class__ = type(wan.model).__base__

flux = network("flux")
out = magcache_nodes.CalibrateMagCache.execute(flux, "tiny flux", "auto")
plain = picture("flux", flux)
measured, _, said = run("flux", out.args[0])
path = folder + "/output/musubi/magcache/tiny flux.json"
found["calibrated"] = [bool(torch.equal(plain, measured)), path, said]
found["refused"] = []
for name in ("../evil", "a/b", "", "C:evil"):
    answer = magcache_nodes.CalibrateMagCache.validate_inputs(name=name)
    found["refused"].append(answer if isinstance(answer, str) else "")
answer = magcache_nodes.LoadMagCacheRatios.validate_inputs(file="../../evil.json")
found["refused"].append(answer if isinstance(answer, str) else "")
ratios = magcache_nodes.LoadMagCacheRatios.execute("tiny flux.json").args[0]
found["own"] = run("flux", cached(flux, threshold=1e9, k=3, retention=0.2, ratios=ratios))[1:]
found["own_elsewhere"] = run("flux", cached(flux, ratios=ratios), denoise=0.5)[1:]
table = ratios[0]
import dataclasses
late = dataclasses.replace(table, details=dict(times=[one / 4 for one in table.details["times"]]))
found["foreign_part"] = run("flux", cached(flux, ratios=(late,)))[1:]
print(json.dumps(found))
"""


COMPILED = """
from comfy_api.torch_helpers import set_torch_compile_wrapper
wan = network("wan")

def compiled(model):
    model = model.clone()
    set_torch_compile_wrapper(model=model, backend="eager", options=dict())
    return model

plain, _, said = run("wan", cached(wan))
pictures = [run("wan", model) for model in (compiled(cached(wan)), cached(compiled(wan)))]
print(json.dumps([[bool(torch.equal(plain, one)), lines == said] for one, _, lines in pictures]))
"""


@pytest.fixture(scope="module")
def found(comfyui: Callable[[str, Path], Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one ComfyUI found."""
    folder = tmp_path_factory.mktemp("magcache")
    code = CODE.format(folder=str(folder), names=NAMES, spans=SPANS, samplers=SAMPLERS, steps=STEPS)
    return comfyui(start() + NETWORKS + code, folder)


@pytest.mark.parametrize("name", NAMES)
def test_off_threshold_zero_and_no_node_give_the_same_bits(found, name):
    assert found["exact"][name] == [True] * 5


@pytest.mark.parametrize("name", SPANS)
def test_adding_what_the_blocks_added_is_running_them(found, name):
    assert found["span"][name] < 1e-5


@pytest.mark.parametrize("name", SPANS)
def test_each_prompt_is_known_by_a_key_of_its_own_in_all_steps(found, name):
    assert found["asked"][name] == (["cond"] if name.endswith("window") else ["cond", "uncond"])


@pytest.mark.parametrize("name", NAMES)
def test_as_many_steps_are_skipped_as_was_said(found, name):
    one = found["counts"][name]
    assert one["computed"] == STEPS
    will, did = one["said"]
    skipped = STEPS - one["blocks"]
    assert skipped > 0 and one["changed"]
    assert will.startswith(f"MagCache will skip {skipped} of {STEPS} steps, by the ratios {name} ")
    assert did.startswith(f"MagCache skipped {2 * skipped} of {2 * STEPS} evaluations")


@pytest.mark.parametrize("name", NAMES)
def test_prompts_in_one_batch_or_apart_or_one_alone_are_skipped_alike(found, name):
    one = found["counts"][name]
    assert one["said_apart"] == one["said"] and one["apart"] < 1e-5
    assert one["blocks_apart"] == 2 * one["blocks"]
    assert one["said_single"][0] == one["said"][0] and one["blocks_single"] == one["blocks"]


@pytest.mark.parametrize("name", NAMES)
def test_a_run_leaves_nothing_behind_and_repeats(found, name):
    one = found["counts"][name]
    assert one["again"] and one["left"] == 0 and one["tensors"] == 0


def test_a_run_after_one_that_was_broken_off_is_a_fresh_one(found):
    assert found["after_stop"]


@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_that_ask_twice_per_step_decide_once(found, name):
    computed, blocks, (will, did) = found["samplers"][name]
    assert will.startswith(f"MagCache will skip 6 of {STEPS} steps")
    assert did.startswith(f"MagCache skipped {2 * (computed - blocks)} of {2 * computed} evaluations")
    assert computed - blocks >= 6


def test_lora_loaders_before_and_behind_give_the_same_bits(found):
    same, without = found["lora"]
    assert same and not without


def test_each_part_of_a_schedule_starts_with_a_computed_step_and_has_its_own_ratios(found):
    (first, said), (second, other) = found["parts"]
    assert first < 5 and second < 5
    assert said[1] != other[1]  # the modelled errors of the two halves


@pytest.mark.slow
def test_a_compiled_network_is_skipped_alike_whichever_node_comes_first(in_comfyui, tmp_path: Path):
    shared = CODE[: CODE.index("for wanted in")].format(folder=str(tmp_path), steps=STEPS)
    assert in_comfyui(start() + NETWORKS + shared + COMPILED) == [[True, True]] * 2


def test_an_unknown_network_is_left_alone_and_named(found):
    said, same = found["unknown"]
    assert said == "MagCache does not know the network WanModel; every step is computed." and same


def test_a_calibration_changes_nothing_and_its_file_is_used(found):
    same, path, said = found["calibrated"]
    assert same and said[0].startswith(f"Ratios of flux dev, {STEPS} steps are in tiny flux.json.")
    (table,) = read_tables(Path(path))
    assert table.steps == STEPS and set(table.ratios) == {"cond", "uncond"}
    assert len(table.details["times"]) == STEPS and table.details["times"][0] == 1.0
    blocks, (will, _) = found["own"]
    assert will == f"MagCache will skip 6 of {STEPS} steps, by the ratios flux dev, {STEPS} steps."
    assert blocks == 4  # 0, 1, then every fourth: rows of three with a threshold that never stops


def test_measured_ratios_serve_parts_of_their_schedule_and_no_others(found):
    assert found["own_elsewhere"][0] < STEPS
    blocks, (said,) = found["foreign_part"]
    assert blocks == STEPS and "another part of the schedule" in said


def test_no_name_leads_out_of_the_folders(found):
    assert all(found["refused"]) and len(found["refused"]) == 5
