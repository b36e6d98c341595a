"""Prompts through the text encoders: as cached, each once, one encoder after the other."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from musubi_core.generation.text import encode_prompts
from musubi_core.models.registry import SPECS
from musubi_core.models.spec import EncoderRequest

CPU = torch.device("cpu")
every = pytest.mark.parametrize("name", SPECS)


def request_of(model) -> EncoderRequest:
    return EncoderRequest(device=CPU, dtype=torch.float32, options=model.own(model.spec.text_options))


@every
def test_a_prompt_is_encoded_as_a_caption_is(tiny, name):
    model = tiny(name)
    settings = model.settled("a red ball")
    found = encode_prompts(model.spec, [settings], request_of(model))
    captions = [each.open()(["a red ball"])[0] for each in model.spec.texts(request_of(model))]
    expected = {key: tensor for part in captions for key, tensor in part.items()}
    assert set(found["a red ball"]) == set(expected)
    assert all(torch.equal(tensor, expected[key]) for key, tensor in found["a red ball"].items())


@every
def test_equal_texts_are_encoded_once_and_encoders_are_opened_one_after_the_other(tiny, name):
    model = tiny(name)
    log: list[str] = []

    def watched(each):
        def open_one():
            log.append(f"open {each.name}")
            encode = each.open()

            def counted(texts):
                log.extend(texts)
                return encode(texts)

            return counted

        return replace(each, open=open_one)

    spec = replace(model.spec, texts=lambda request: tuple(map(watched, model.spec.texts(request))))
    one = model.settled("one", cfg_scale=3.0, negative_prompt="bad")
    two = model.settled("two", cfg_scale=3.0, negative_prompt="bad")
    plain = model.settled("one", cfg_scale=1.0, negative_prompt="never")
    found = encode_prompts(spec, [one, two, plain], request_of(model))
    names = [each.name for each in model.spec.texts(request_of(model))]
    assert log == [word for name in names for word in (f"open {name}", "one", "bad", "two")]
    assert set(found) == {"one", "two", "bad"}


def test_a_stop_gives_no_half_encoded_prompts(tiny):
    model = tiny("hunyuan_video")
    told = []
    settings = [model.settled("one"), model.settled("two")]
    found = encode_prompts(
        model.spec, settings, request_of(model), emit=told.append, should_stop=lambda: bool(told)
    )
    assert found is None
    assert told[0].done == 0
    assert told[0].total == 2
