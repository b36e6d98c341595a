"""Numbers of a job: bounded however long it runs, and true to what was measured."""

from __future__ import annotations

import json
import math
import random
import shutil
import subprocess
import tracemalloc

import pytest
from pack import ROOT, pack_module

history = pack_module("job_history")


def curve_of(values, limit=history.POINTS):
    curve = history.Curve(limit)
    for step, value in enumerate(values, 1):
        curve.add(step, value)
    return curve


def test_a_short_curve_keeps_every_step():
    assert curve_of([0.5, 0.25]).rows() == [[1, 0.5, 0.5, 0.5, 1], [2, 0.25, 0.25, 0.25, 1]]


@pytest.mark.parametrize("steps", [9, 10, 11, 40, 1000, 12345])
def test_joined_points_keep_mean_extremes_and_all_steps(steps):
    noise = random.Random(steps)
    values = [noise.gauss(1, 3) for _ in range(steps)]
    curve = curve_of(values, limit=10)
    assert len(curve.points) <= 10
    assert sum(point.count for point in curve.points) == steps
    first = 0
    for point in curve.points:
        part = values[first : first + point.count]
        first += point.count
        assert point.step == first
        assert point.mean == pytest.approx(math.fsum(part) / len(part))
        assert (point.low, point.high) == (min(part), max(part))


def test_a_long_run_takes_no_more_memory_than_a_short_one():
    def used(steps: int) -> int:
        tracemalloc.start()
        curves = history.Curves()
        for step in range(1, steps + 1):
            curves.add(step, {"loss/current": 0.5, "lr/unet": 1e-4})
        size, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return size

    assert used(60_000) < 1.5 * used(1_600)


def test_a_step_back_begins_the_curve_again():
    curve = curve_of([1, 2, 3])
    curve.add(2, 9)
    assert curve.rows() == [[2, 9, 9, 9, 1]]


def test_numbers_that_are_none_are_left_out():
    """JSON has no NaN: one would break the page."""
    curves = history.Curves()
    assert curves.add(1, {"loss/current": math.nan, "lr/unet": 0.1, "grad/norm": math.inf}) == {
        "lr/unet": 0.1
    }
    assert curves.latest == {"lr/unet": 0.1}
    assert set(curves.rows()) == {"lr/unet"}


def test_a_job_has_a_bounded_number_of_curves():
    curves = history.Curves()
    for number in range(1000):
        curves.add(1, {f"loss/{number}": 0.1})
    assert len(curves.rows()) == history.CURVES


def test_the_pace_forgets_a_slow_first_step():
    pace = history.Pace()
    pace.mark("train", 1, now=100.0)
    assert pace.seconds() is None
    for step in range(2, 60):
        pace.mark("train", step, now=500.0 + 2 * step)
    assert pace.seconds() == pytest.approx(2)


def test_the_pace_begins_again_with_another_stage():
    pace = history.Pace()
    pace.mark("latents", 1, now=0.0)
    pace.mark("latents", 2, now=5.0)
    pace.mark("train", 1, now=6.0)
    assert pace.seconds() is None
    pace.mark("train", 3, now=7.0)
    assert pace.seconds() == pytest.approx(0.5)


def test_page_and_server_join_the_points_of_a_curve_alike():
    node = shutil.which("node")
    if node is None:
        pytest.skip("NOT TESTED: node is not installed")
    values = [math.sin(step) * 3 for step in range(5000)]
    script = f"""
        import {{ Curve }} from {json.dumps((ROOT / "web/dashboard/curves.js").as_uri())};
        const curve = new Curve();
        {json.dumps(values)}.forEach((value, at) => curve.add(at + 1, value));
        console.log(JSON.stringify(curve.points.map((p) => [p.step, p.mean, p.low, p.high, p.count])));
    """
    command = [node, "--input-type=module", "--eval", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == curve_of(values).rows()
