"""A whole run on a network from outside the core: files, numbers, stops and failures."""

from __future__ import annotations

import dataclasses
import json
import sys
import types
from pathlib import Path

import pytest
import torch
from fake_arch import FAKE, config_for, write_workplace
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from musubi_core.errors import BadFileError, ConfigError, TrainingError
from musubi_core.events import FileWritten, Metrics, Note, Warned
from musubi_core.models.registry import architecture
from musubi_core.training.metrics import read_metrics
from musubi_core.training.run import train

GOLDEN = Path(__file__).with_name("golden_losses.json")


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def place(tmp_path):
    return write_workplace(tmp_path)


def run(place, *, emit=None, should_stop=lambda: False, spec=FAKE, **options):
    events: list = []
    result = train(config_for(place, **options), emit or events.append, should_stop, spec=spec)
    return result, events


def lora(place, name="lora") -> dict[str, torch.Tensor]:
    return load_file(place["output_dir"] / f"{name}.safetensors")


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def loading_fails(request):
    raise AssertionError("the model was loaded")


UNLOADABLE = dataclasses.replace(FAKE, load=loading_fails)


def test_a_run_writes_a_lora_and_a_line_per_step(place):
    result, events = run(place, max_train_steps=6)
    assert result.lora == place["output_dir"] / "lora.safetensors"
    assert not result.stopped
    tensors = lora(place)
    assert "lora_unet_blocks_0_up.lora_up.weight" in tensors
    assert any(value.any() for key, value in tensors.items() if key.endswith("lora_up.weight"))
    lines = read_metrics(result.metrics)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert {"loss/current", "loss/average", "lr/unet", "grad/norm", "time/step"} <= lines[-1].keys()
    assert [e.step for e in events if isinstance(e, Metrics)] == [1, 2, 3, 4, 5, 6]
    assert [e.path for e in events if isinstance(e, FileWritten)] == [result.lora]
    assert sorted(path.name for path in place["output_dir"].iterdir()) == [
        "lora.metrics.jsonl",
        "lora.safetensors",
    ]


def test_the_metadata_tells_how_the_lora_was_made(place):
    run(place, training_comment="a remark", min_timestep=100, network_args=("rank_dropout=0.1",))
    with safe_open(place["output_dir"] / "lora.safetensors", "pt") as file:
        found = file.metadata()
    expected = {
        "ss_base_model_version": "fake",
        "ss_network_module": "networks.lora",
        "ss_network_dim": "2",
        "ss_network_alpha": "2.0",
        "ss_network_args": json.dumps({"rank_dropout": "0.1"}),
        "ss_network_dropout": "None",
        "ss_seed": "7",
        "ss_steps": "8",
        "ss_epoch": "2",
        "ss_num_epochs": "2",
        "ss_num_train_items": "7",
        "ss_num_batches_per_epoch": "4",
        "ss_training_comment": "a remark",
        "ss_optimizer": "torch.optim.adamw.AdamW()",
        "ss_sd_model_name": "fake.safetensors",
        "ss_guidance_scale": "1.0",
        "ss_mixed_precision": "no",
        "ss_min_timestep": "100",
        "modelspec.architecture": "fake/lora",
        "modelspec.title": "lora",
        "modelspec.timestep_range": "100,1000",
    }
    assert expected.items() <= found.items()
    assert len(found["sshs_model_hash"]) == 64
    assert json.loads(found["ss_datasets"])[0]["num_items"] == 7


def test_no_metadata_keeps_only_what_loading_needs(place):
    run(place, no_metadata=True, metadata_author="me")
    with safe_open(place["output_dir"] / "lora.safetensors", "pt") as file:
        found = file.metadata()
    assert {key for key in found if key.startswith("ss_")} == {
        "ss_base_model_version",
        "ss_network_module",
        "ss_network_dim",
        "ss_network_alpha",
    }
    assert found["modelspec.author"] == "me"


def test_the_same_seed_gives_the_same_losses_as_ever(place):
    """Golden numbers: whoever changes them changes every run that is resumed after an update."""
    result, _ = run(
        place, max_train_steps=10, num_timestep_buckets=3, lr_scheduler="cosine", network_dropout=0.2
    )
    losses = [line["loss/current"] for line in read_metrics(result.metrics)]
    assert losses == pytest.approx(json.loads(GOLDEN.read_text()), rel=1e-4)


def test_another_seed_gives_another_lora(place):
    run(place)
    first = lora(place)
    run(place, seed=8)
    assert not same(first, lora(place))


def test_workers_and_previews_of_losses_change_nothing(place):
    """Threads, validation and logs must not touch the trajectory."""
    run(place, validation_split=0.2, max_data_loader_n_workers=0)
    plain = lora(place)
    run(
        place,
        validation_split=0.2,
        validate_every_n_steps=1,
        max_data_loader_n_workers=4,
        save_every_n_steps=1,
        logging_dir=place["output_dir"] / "logs",
        log_config=True,
    )
    assert same(plain, lora(place))
    assert list((place["output_dir"] / "logs").rglob("events.out*"))


def test_training_learns(place):
    result, _ = run(place, max_train_steps=240, network_dim=8, network_alpha=8.0)
    losses = [line["loss/current"] for line in read_metrics(result.metrics)]
    assert sum(losses[-40:]) < 0.9 * sum(losses[:40])


def test_validation_is_the_same_every_time_it_is_asked(place):
    """Fixed noise and noise levels: with a learning rate of 0 the number cannot move."""
    result, _ = run(place, validation_split=0.3, validate_every_n_steps=2, learning_rate=0.0)
    lines = [line for line in read_metrics(result.metrics) if "loss/validation" in line]
    assert [line["step"] for line in lines] == [2, 4, 6, 8]
    assert len({line["loss/validation"] for line in lines}) == 1
    parts = [lines[0][f"loss/validation_q{q}"] for q in ("0.125", "0.375", "0.625", "0.875")]
    assert lines[0]["loss/validation"] == pytest.approx(sum(parts) / 4)


def test_saved_files_are_counted_not_steps(place):
    run(
        place,
        max_train_steps=8,
        save_every_n_steps=1,
        save_last_n_steps=2,
        save_every_n_epochs=1,
        save_last_n_epochs=1,
        save_state=True,
    )
    names = sorted(path.name for path in place["output_dir"].iterdir())
    assert names == [
        "lora-000001-state",
        "lora-000001.safetensors",
        "lora-state",
        "lora-step00000006-state",
        "lora-step00000006.safetensors",
        "lora-step00000007-state",
        "lora-step00000007.safetensors",
        "lora.metrics.jsonl",
        "lora.safetensors",
    ]


def test_without_save_state_only_the_newest_state_is_kept(place):
    run(place, max_train_steps=8, save_every_n_steps=3)
    states = [path.name for path in place["output_dir"].iterdir() if path.name.endswith("-state")]
    assert states == ["lora-step00000006-state"]


def test_foreign_files_are_never_deleted(place):
    place["output_dir"].mkdir()
    foreign = place["output_dir"] / "lora-step00000001-state"
    foreign.mkdir()
    (foreign / "note.txt").write_text("mine")
    run(place, max_train_steps=8, save_every_n_steps=3, save_last_n_steps=1)
    assert (foreign / "note.txt").read_text() == "mine"


def test_the_learning_rate_follows_its_schedule(place):
    result, _ = run(place, lr_scheduler="linear", lr_warmup_steps=4, network_args=("loraplus_lr_ratio=4",))
    lines = read_metrics(result.metrics)
    assert [line["lr/unet"] for line in lines] == pytest.approx(
        [1e-2 * share for share in (0, 0.25, 0.5, 0.75, 1, 0.75, 0.5, 0.25)]
    )
    assert lines[4]["lr/unet plus"] == pytest.approx(4e-2)


def test_epochs_decide_when_they_are_given(place):
    """7 items in batches of 2: four batches an epoch, three steps of two batches in one and a half."""
    assert run(place, max_train_epochs=3, max_train_steps=5)[0].step == 12
    assert run(place, max_train_epochs=3, gradient_accumulation_steps=3)[0].step == 6


def test_wandb_gets_every_step_and_no_secrets(place, monkeypatch):
    logged: list[tuple[int, dict]] = []
    started: dict = {}
    fake = types.ModuleType("wandb")
    fake.login = lambda key: started.update(key=key)
    fake.init = lambda **arguments: (
        started.update(arguments)
        or types.SimpleNamespace(
            log=lambda values, step: logged.append((step, values)),
            finish=lambda: started.update(finished=True),
        )
    )
    monkeypatch.setitem(sys.modules, "wandb", fake)
    table = place["output_dir"].with_name("tracker.toml")
    table.write_text('[wandb]\ntags = ["cats"]\n')
    run(
        place,
        log_with="wandb",
        wandb_api_key="secret",
        wandb_run_name="one",
        log_config=True,
        log_tracker_config=table,
    )
    assert [step for step, _ in logged] == list(range(1, 9))
    assert started["key"] == "secret"
    assert (started["project"], started["name"], started["tags"]) == ("network_train", "one", ["cats"])
    assert started["finished"]
    assert started["config"]["learning_rate"] == "0.01"
    assert "secret" not in str(started["config"])
    assert "wandb_api_key" not in started["config"]


def test_accumulation_weighs_every_sample_the_same(place, tmp_path):
    """5 items of one size and 2 of another: batches of 2, 2, 1 and 2, so a plain mean would be wrong."""
    seen: list[tuple[float, int]] = []

    def predict(net, x, t, conditioning, options):
        prediction = FAKE.predict(net, x, t, conditioning, options)
        seen.append((x, prediction))
        return prediction

    spec = dataclasses.replace(FAKE, predict=predict)
    one, _ = run(place, spec=spec, max_train_steps=2, gradient_accumulation_steps=3, learning_rate=0.0)
    lines = read_metrics(one.metrics)
    assert len(seen) == 4, "three batches, then the short rest of the epoch"
    single, _ = run(place, max_train_steps=4, gradient_accumulation_steps=1, learning_rate=0.0)
    each = [line["loss/current"] for line in read_metrics(single.metrics)]
    sizes = [len(x) for x, _ in seen]
    expected = sum(loss * size for loss, size in zip(each[:3], sizes[:3], strict=True)) / sum(sizes[:3])
    assert lines[0]["loss/current"] == pytest.approx(expected, rel=1e-5)
    assert lines[1]["loss/current"] == pytest.approx(each[3], rel=1e-5)


def test_the_network_is_told_the_offset_that_was_asked_for(place):
    told: list[float] = []

    def predict(net, x, t, conditioning, options):
        told.extend(t.tolist())
        return FAKE.predict(net, x, t, conditioning, options)

    spec = dataclasses.replace(FAKE, predict=predict)
    run(place, spec=spec, max_train_steps=2)
    plain = list(told)
    told.clear()
    run(place, spec=spec, max_train_steps=2, timestep_offset=1.0)
    assert told == pytest.approx([t + 0.001 for t in plain])


def test_clipping_shortens_the_step(place):
    """With plain SGD and a tiny limit the weights move by exactly rate * limit."""
    zero, _ = run(place, max_train_steps=1, learning_rate=0.0, optimizer_type="SGD")
    before = lora(place)
    run(place, max_train_steps=1, learning_rate=1.0, optimizer_type="SGD", max_grad_norm=1e-3)
    after = lora(place)
    moved = torch.cat([(after[key] - before[key]).flatten() for key in before]).norm().item()
    assert moved == pytest.approx(1e-3, rel=1e-3)
    assert zero.step == 1


def test_max_norm_limits_the_adapters(place):
    result, _ = run(place, max_train_steps=8, learning_rate=0.3, scale_weight_norms=0.5)
    assert read_metrics(result.metrics)[-1]["max_norm/max_key_norm"] <= 0.5 + 1e-4


def test_a_stop_finishes_the_step_and_saves(place):
    steps: list[int] = []

    def emit(event):
        if isinstance(event, Metrics):
            steps.append(event.step)

    result, _ = run(place, emit=emit, should_stop=lambda: len(steps) == 3)
    assert result.stopped
    assert result.step == 3
    assert result.lora == place["output_dir"] / "lora-step00000003.safetensors"
    assert result.state == place["output_dir"] / "lora-step00000003-state"
    assert not (place["output_dir"] / "lora.safetensors").exists()


def test_an_exception_saves_first(place):
    calls = []

    def predict(net, x, t, conditioning, options):
        calls.append(1)
        if len(calls) == 5:
            raise RuntimeError("out of luck")
        return FAKE.predict(net, x, t, conditioning, options)

    with pytest.raises(RuntimeError, match="out of luck"):
        run(place, spec=dataclasses.replace(FAKE, predict=predict))
    assert (place["output_dir"] / "lora-step00000004-state").is_dir()
    assert (place["output_dir"] / "lora-step00000004.safetensors").is_file()
    result, _ = run(place, resume="auto")
    resumed = lora(place)
    run({**place, "output_dir": place["output_dir"].with_name("straight")})
    assert same(resumed, load_file(place["output_dir"].with_name("straight") / "lora.safetensors"))
    assert result.step == 8


def test_a_nan_loss_changes_nothing_and_names_step_t_and_file(place):
    config = config_for(place, max_train_steps=3, max_nonfinite_steps=99)
    events: list = []
    config = dataclasses.replace(config, arch_options=FAKE.train_options(explode_at=-1.0))
    train(config, events.append, spec=FAKE)
    warned = [event.text for event in events if isinstance(event, Warned) and "finite" in event.text]
    assert len(warned) == 3
    assert "loss is not a finite number at step 1" in warned[0]
    assert "item0" in warned[0]
    assert "(t = 0." in warned[0]
    assert "No update was made" in warned[0]
    assert not any(value.any() for key, value in lora(place).items() if key.endswith("lora_up.weight"))


def test_only_the_guilty_sample_is_named(place):
    config = config_for(place, max_train_steps=40, max_nonfinite_steps=99)
    events: list = []
    config = dataclasses.replace(config, arch_options=FAKE.train_options(explode_at=0.85))
    train(config, events.append, spec=FAKE)
    warned = [event.text for event in events if isinstance(event, Warned) and "finite" in event.text]
    assert warned
    for text in warned:
        named = [float(part.split(")")[0]) for part in text.split("(t = ")[1:]]
        assert all(t > 0.85 for t in named), text


def test_training_stops_after_a_few_steps_that_are_not_finite(place):
    config = config_for(place, max_train_steps=50, save_every_n_steps=2)
    config = dataclasses.replace(config, arch_options=FAKE.train_options(explode_at=-1.0))
    with pytest.raises(
        TrainingError, match=r"3 times in a row.*weights are those of step 0.*last good state"
    ) as error:
        train(config, spec=FAKE)
    assert "step00000002-state" in str(error.value)


def test_a_gradient_that_is_not_finite_changes_nothing(place):
    def predict(net, x, t, conditioning, options):
        prediction = FAKE.predict(net, x, t, conditioning, options)
        return prediction + (prediction - prediction.detach()).abs().sqrt()  # 0, with an infinite slope

    events: list = []
    run(
        place,
        spec=dataclasses.replace(FAKE, predict=predict),
        emit=events.append,
        max_train_steps=2,
    )
    assert any("gradient is not a finite" in event.text for event in events if isinstance(event, Warned))
    assert not any(value.any() for key, value in lora(place).items() if key.endswith("lora_up.weight"))


def test_nan_in_a_cache_ends_the_run_and_names_the_file(tmp_path):
    place = write_workplace(tmp_path, nan=3)
    with pytest.raises(BadFileError, match=r"item03.*NaN"):
        run(place)


def test_an_unwritable_output_folder_is_found_before_the_model_is_loaded(place):
    place["output_dir"].write_text("a file where the folder should be")
    with pytest.raises(BadFileError, match="out"):
        run(place, spec=UNLOADABLE)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sdpa": True, "xformers": True}, "--sdpa and --xformers"),
        ({"sage_attn": True}, "no backward pass"),
        ({"output_name": "a/b"}, "plain file name"),
        ({"save_last_n_steps": 2}, "without save_every_n_steps"),
        ({"validate_every_n_steps": 2}, "validation_split"),
        ({"log_with": "tensorboard"}, "logging_dir"),
        ({"optimizer_type": "AdamWScheduleFree", "lr_scheduler": "cosine"}, "needs no schedule"),
        ({"optimizer_type": "NoSuch"}, "Nearest"),
        ({"optimizer_args": ("weight_decay",)}, "key=value"),
        ({"compile": True, "dynamo_backend": "INDUCTOR"}, "Keep one"),
        ({"network_module": "networks.loha"}, "networks.lora"),
        ({"dit": Path("no/such/file.safetensors")}, "does not exist"),
        ({"dataset_config": Path("no/such/file.toml")}, "does not exist"),
    ],
)
def test_contradictions_are_refused_before_the_model_is_loaded(place, options, message):
    with pytest.raises(ConfigError, match=message):
        run(place, spec=UNLOADABLE, **options)


def test_a_full_disk_is_found_before_a_save(place, monkeypatch):
    from musubi_core.files import replace

    usage = replace.shutil.disk_usage(".")
    calls = []

    def nearly_full(path):
        calls.append(path)
        return usage._replace(free=1000)

    monkeypatch.setattr(replace.shutil, "disk_usage", nearly_full)
    events: list = []
    with pytest.raises(BadFileError, match="Free space"):
        run(place, save_every_n_steps=2, emit=events.append)
    assert calls
    assert not list(place["output_dir"].glob("*.safetensors"))
    assert any("could not be saved" in event.text for event in events if isinstance(event, Warned))


def test_two_runs_in_one_process_do_not_see_each_other(place):
    """Also not their precision, nor the random numbers of whoever called."""
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    run(place, mixed_precision="no")
    plain = lora(place)
    run(place, mixed_precision="bf16")
    mixed = lora(place)
    run(place, mixed_precision="no")
    assert same(plain, lora(place))
    assert not same(plain, mixed)
    assert torch.equal(torch.rand(3), expected)


def test_training_works_inside_inference_mode(place):
    """As ComfyUI calls it."""
    with torch.inference_mode():
        result, _ = run(place, max_train_steps=2)
        assert torch.is_inference_mode_enabled()
    assert result.step == 2


def test_fp16_skips_overflows_and_goes_on(place):
    events: list = []
    run(place, mixed_precision="fp16", max_train_steps=12, emit=events.append)
    lines = read_metrics(place["output_dir"] / "lora.metrics.jsonl")
    assert len(lines) == 12
    assert any(value.any() for key, value in lora(place).items() if key.endswith("lora_up.weight"))


@pytest.mark.parametrize("optimizer", ["Prodigy", "AdamWScheduleFree", "Adafactor", "SGD"])
def test_other_optimizers_train(place, optimizer):
    rate = 1.0 if optimizer == "Prodigy" else 1e-2
    result, _ = run(place, optimizer_type=optimizer, learning_rate=rate)
    assert any(value.any() for key, value in lora(place).items() if key.endswith("lora_up.weight"))
    lines = read_metrics(result.metrics)
    assert ("lr/d*lr/unet" in lines[-1]) == (optimizer == "Prodigy")


def test_save_precision_is_followed(place):
    run(place, save_precision="bf16")
    kinds = {key.rpartition(".")[2]: value.dtype for key, value in lora(place).items()}
    assert kinds == {"weight": torch.bfloat16, "alpha": torch.float32}


def test_starting_from_a_lora_and_on_merged_weights(place):
    run(place, max_train_steps=4)
    start = place["output_dir"] / "lora.safetensors"
    first = lora(place)
    run(place, output_name="more", network_weights=start, learning_rate=0.0)
    assert same(first, lora(place, "more"))
    with pytest.raises(ConfigError, match=r"learning_rate|base_weights"):
        run(place, output_name="x", resume=str(place["output_dir"]), base_weights=(Path("none"),))


def test_a_compiler_that_fails_costs_one_line(place):
    def broken(graph, inputs):
        raise RuntimeError("no compiler here")

    torch._dynamo.reset()
    torch._dynamo.register_backend(compiler_fn=broken, name="broken_for_tests")
    plain, _ = run(place, max_train_steps=3)
    expected = lora(place)
    events: list = []
    run(place, max_train_steps=3, compile=True, compile_backend="broken_for_tests", emit=events.append)
    assert same(expected, lora(place))
    told = [
        event.text for event in events if isinstance(event, Warned) and "torch.compile failed" in event.text
    ]
    assert len(told) == 1
    assert plain.step == 3


@pytest.mark.parametrize(
    "options", [{"compile": True, "compile_backend": "eager"}, {"dynamo_backend": "EAGER"}]
)
def test_compiled_training_gives_the_same_lora(place, options):
    torch._dynamo.reset()
    run(place, max_train_steps=3)
    expected = lora(place)
    events: list = []
    run(place, max_train_steps=3, emit=events.append, **options)
    assert not [event for event in events if isinstance(event, Warned) and "torch.compile" in event.text]
    assert same(expected, lora(place))


def test_an_unknown_compiler_is_named(place):
    with pytest.raises(ConfigError, match="inductor"):
        run(place, compile=True, compile_backend="inductr")


def test_show_timesteps_shows_and_does_not_train(place):
    result, events = run(place, spec=UNLOADABLE, show_timesteps="console", weighting_scheme="cosmap")
    assert result.lora is None
    lines = events[0].text.splitlines()
    assert isinstance(events[0], Note)
    assert len(lines) == 41
    assert max(line.count("#") for line in lines) == 64
    result, events = run(place, spec=UNLOADABLE, show_timesteps="image")
    assert events[0].path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_registered_architecture_is_read_from_the_file(tmp_path, checkpointing):
    """The tiny HunyuanVideo on caches in musubi-tuner's form; only the file says what it is."""
    spec = architecture("hunyuan_video")
    tiny = spec.write_tiny(tmp_path / "tiny", 0)
    cache, media = tmp_path / "cache", tmp_path / "media"
    media.mkdir()
    facts = {"architecture": "hunyuan_video", "format_version": "1.0.1", "caption1": "x"}
    cache.mkdir()
    for number in range(3):
        save_file(
            {"latents_1x4x4_float32": torch.randn(16, 1, 4, 4)},
            cache / f"{number}_0032x0032_hv.safetensors",
            facts,
        )
        text = {
            "llm_float16": torch.randn(24, 128).half(),
            "llm_mask": (torch.arange(24) < 5 + number).long(),
            "clipL_float16": torch.randn(64).half(),
        }
        save_file(text, cache / f"{number}_hv_te.safetensors", facts)
    dataset = tmp_path / "set.toml"
    dataset.write_text(
        f"[general]\nresolution = 32\nbatch_size = 2\n[[datasets]]\n"
        f"image_directory = '{media.as_posix()}'\ncache_directory = '{cache.as_posix()}'\n"
    )
    place = {
        "dit": tiny.dit,
        "dataset_config": dataset,
        "output_dir": tmp_path / "out",
        "output_name": "lora",
    }
    result, _ = run(
        place, spec=None, max_train_steps=4, gradient_checkpointing=checkpointing, split_attn=True
    )
    tensors = lora(place)
    assert any(value.any() for key, value in tensors.items() if key.endswith("lora_up.weight"))
    assert "lora_unet_single_blocks_0_linear1.lora_down.weight" in tensors
    assert result.step == 4
