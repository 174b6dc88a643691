from types import SimpleNamespace
from typing import Any

import pytest

from maskrcnn.training.tta import validate

# Box AP, mask AP, and seconds of the model and of the masks for 4 pictures.
NUMBERS = {"plain": (0.5, 0.4, 0.3, 0.1), "augmented": (0.525, 0.39, 1.0, 0.2)}
AUGMENTED: Any = SimpleNamespace(flip=True, scales=(0.5, 1.0))


class FakeTrainer:
    """Scores a module by whether it is augmented."""

    def __init__(self, *, rank: int = 0, scored: bool = True) -> None:
        self.is_global_zero = rank == 0
        self.scored = scored
        self.validated: list[Any] = []

    def validate(self, module: Any, **_: Any) -> None:
        self.validated.append(module.augmented)
        box, mask, model, encoding = NUMBERS["augmented" if module.augmented else "plain"]
        module.scores = {"box": {"ap": box}, "mask": {"ap": mask}} if self.scored else {}
        module.watch = SimpleNamespace(seconds={"load": 9.0, "model": model, "masks": encoding}, pictures=4)


def run(trainer: Any, augmented: Any = AUGMENTED) -> tuple[Any, dict[str, Any]]:
    module: Any = SimpleNamespace(augmented=None)
    return module, validate(trainer, module, SimpleNamespace(), augmented=augmented)  # type: ignore[arg-type]


def test_gain_and_cost_by_hand(capsys: pytest.CaptureFixture[str]) -> None:
    trainer = FakeTrainer()
    module, more = run(trainer)
    assert trainer.validated == [None, AUGMENTED]
    assert module.scores["box"]["ap"] == 0.525
    assert more["tta"].items() >= {"flip": True, "scales": [0.5, 1.0]}.items()
    assert more["tta"]["without"] == pytest.approx({"box_ap": 0.5, "mask_ap": 0.4, "seconds_per_image": 0.1})
    assert more["tta"]["with"] == pytest.approx({"box_ap": 0.525, "mask_ap": 0.39, "seconds_per_image": 0.3})
    assert capsys.readouterr().out.splitlines()[1:] == [
        "test-time augmentation (views at scale 0.5, 1, each mirrored too); "
        "every picture was predicted without and with it, without -> with:",
        "  box AP               0.500 -> 0.525 (+0.025)",
        "  mask AP              0.400 -> 0.390 (-0.010)",
        "  seconds per picture  0.1 -> 0.3 (3.0 times)",
    ]


def test_of_what_is_not_scored_the_cost_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    run(FakeTrainer(scored=False))
    out = capsys.readouterr().out
    assert "0.1 -> 0.3" in out
    assert "AP" not in out


def test_one_process_tells(capsys: pytest.CaptureFixture[str]) -> None:
    run(FakeTrainer(rank=1))
    assert capsys.readouterr().out == ""


def test_without_augmentation_there_is_one_pass(capsys: pytest.CaptureFixture[str]) -> None:
    trainer = FakeTrainer()
    _, more = run(trainer, augmented={})  # what the option `none` builds
    assert (trainer.validated, more, capsys.readouterr().out) == ([None], {}, "")
