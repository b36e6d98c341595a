"""Previews of latents while they are drawn."""

from __future__ import annotations

import torch

from musubi_core.events import Preview
from musubi_core.generation.draw import draw
from musubi_core.generation.glances import at_a_glance, glances
from musubi_core.models.registry import architectures


def test_a_preview_is_shown_after_every_so_many_steps_and_changes_nothing(tiny):
    for name, size, fps in (("hunyuan_video", (2, 6, 4, 3), 6.0), ("flux_kontext", (1, 6, 4, 3), 0.0)):
        model = tiny(name)
        conditions = model.conditions(steps=5)
        shown: list[Preview] = []
        drawn = draw(
            model.networks, conditions, on_step=glances(model.networks, shown.append, title="a", every=2)
        )
        assert [(one.step, one.title, one.fps) for one in shown] == [(2, "a", fps), (4, "a", fps)]
        assert all(one.frames.shape == size and one.frames.dtype == "uint8" for one in shown)
        assert torch.equal(drawn, draw(model.networks, conditions))


def test_the_last_glance_shows_the_result(tiny):
    model = tiny("hunyuan_video")
    shown: list[Preview] = []
    drawn = draw(model.networks, model.conditions(), on_step=glances(model.networks, shown.append, title=""))
    result = at_a_glance(drawn[0], model.spec.sampling.colours)
    torch.testing.assert_close(torch.from_numpy(shown[-1].frames).int(), result.int(), atol=1, rtol=0)


def test_every_table_of_colours_has_a_row_for_each_channel():
    for spec in architectures():
        colours = spec.sampling.colours
        assert colours is None or len(colours.factors) == spec.latent.channels
