"""What the stages of an evaluation cost."""

import json

import pytest

from maskrcnn.training.report import write_speed
from maskrcnn.training.stopwatch import Stopwatch


@pytest.fixture
def watch(monkeypatch):
    """Each look at the clock comes as much later as it has been looked at."""
    now, looked = 0.0, 0

    def clock():
        nonlocal now, looked
        looked += 1
        now += looked
        return now

    monkeypatch.setattr("maskrcnn.training.stopwatch.time.perf_counter", clock)
    return Stopwatch()


def test_laps_add_up_by_stage(watch):
    for stage in ("load", "model", "load", "scoring"):  # 2, 3, 4 and 5 seconds
        watch.lap(stage)
    assert dict(watch.seconds) == {"load": 6, "model": 3, "scoring": 5}
    assert list(watch.seconds) == ["load", "model", "scoring"]


def test_numbers_are_per_picture_of_this_process_and_per_second_of_all(watch):
    for stage in ("load", "model", "scoring"):
        watch.lap(stage)
    watch.pictures = 2  # of the four of two processes
    numbers = watch.numbers(4)
    assert numbers["images"] == 4
    assert (numbers["load_ms"], numbers["model_ms"], numbers["scoring_ms"]) == (1000, 1500, 1000)
    assert numbers["images_per_second"] == pytest.approx(4 / 9)
    assert 0.01 < numbers["main_memory_gb"] < 1000


def test_a_restart_forgets(watch):
    watch.lap("load")
    watch.pictures = 3
    watch.restart()
    watch.lap("model")
    assert dict(watch.seconds) == {"model": 4}
    assert watch.pictures == 0


def test_speed_is_printed_and_written(watch, tmp_path, capsys):
    watch.lap("load")
    watch.lap("scoring")
    write_speed(tmp_path, watch, images=10)
    content = json.loads((tmp_path / "speed.json").read_text())
    assert list(content)[:4] == ["images", "load_ms", "scoring_ms", "images_per_second"]
    assert content["load_ms"] == 200
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "ms/image: load 200, scoring 300"
    assert lines[2].startswith("speed:    2 images/s; at most ")
    assert all(len(line) <= 80 for line in lines)
