"""Tables and files of scores, with a stand-in for the trainer."""

import csv
import json
import re

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from maskrcnn.evaluation.analysis import ClassScore
from maskrcnn.training.loggers import CSVCurves, TensorBoardCurves
from maskrcnn.training.report import ClassTable, ScoreLine, conclude, write_report, write_scores


def test_score_line_after_each_validation_of_a_training_run(trainer, module, capsys):
    ScoreLine().on_validation_end(trainer, module)
    line = capsys.readouterr().out
    assert re.fullmatch(r"epoch \d: box AP 0\.\d{3} .*, mask AP 0\.\d{3} .*\n", line)
    trainer.state.fn = "validate"
    ScoreLine().on_validation_end(trainer, module)
    assert capsys.readouterr().out == ""


def test_metrics_file_holds_the_twelve_numbers_under_both_kinds(tmp_path, module, capsys):
    folder = tmp_path / "new" / "folder"
    write_scores(folder, module.scores, module.metric.classes, images=2)
    content = json.loads((folder / "metrics.json").read_text())
    sizes = ["small", "medium", "large"]
    keys = ["ap", "ap50", "ap75", *(f"ap_{size}" for size in sizes)]
    keys += ["ar1", "ar10", "ar100", *(f"ar_{size}" for size in sizes)]
    assert list(content["box"]) == list(content["mask"]) == keys
    assert content == {**module.scores, "images": 2}
    table = capsys.readouterr().out
    assert "box (2 images)" in table
    assert "mask (2 images)" in table
    assert table.count("Average Precision  (AP) @[ IoU=0.50:0.95 | area=   all | maxDets=100 ] = 0.") == 2


def test_predictions_file_is_a_coco_results_file(tmp_path, trainer, module, results):
    write_report(trainer, module, predictions=True)
    assert json.loads((tmp_path / "predictions.json").read_text()) == results


def test_only_the_first_rank_writes(tmp_path, trainer, module, capsys):
    trainer.is_global_zero = False
    write_report(trainer, module, predictions=True)
    ClassTable(folder=str(tmp_path)).on_validation_end(trainer, module)
    assert not list(tmp_path.iterdir())
    assert capsys.readouterr().out == ""


def test_conclusion_says_where_everything_is(tmp_path, trainer, module, capsys):
    trainer.loggers = [CSVCurves(folder=str(tmp_path)), TensorBoardCurves(folder=str(tmp_path))]
    assert conclude(trainer, module) == module.scores["mask"]["ap"]
    said = capsys.readouterr().out
    for path in ("pictures", "checkpoints"):
        assert str(tmp_path / path) in said
    assert f"curves:      {tmp_path / 'metrics.csv'}\ncurves:      tensorboard --logdir {tmp_path}\n" in said
    assert f"evaluate.py ckpt={tmp_path / 'checkpoints' / 'last.ckpt'}" in said
    assert (tmp_path / "metrics.json").exists()
    assert not (tmp_path / "predictions.json").exists()


def test_a_trial_run_writes_nothing(tmp_path, trainer, module):
    trainer.fast_dev_run = True
    assert conclude(trainer, module) is None
    assert not list(tmp_path.iterdir())


def class_table(folder):
    with (folder / "per_class.csv").open(newline="") as file:
        return list(csv.reader(file))


HEAD = ["class", "instances", "box AP", "box AP50", "mask AP", "mask AP50"]
TABLE = [
    HEAD,
    ["cat", "1", "1.000", "1.000", "1.000", "1.000"],
    ["dog", "0", "-", "-", "-", "-"],
    ["emu", "1", "0.000", "0.000", "0.000", "0.000"],
]


def test_classes_after_each_validation_of_a_training_run(tmp_path, trainer, module):
    logger = TensorBoardCurves(folder=str(tmp_path))
    trainer.loggers = [logger, CSVCurves(folder=str(tmp_path))]
    callback = ClassTable(folder=str(tmp_path))
    callback.on_validation_end(trainer, module)
    trainer.global_step, trainer.fast_dev_run = 6, True
    callback.on_validation_end(trainer, module)
    trainer.fast_dev_run = False
    module.metric.classes = [ClassScore("a|b", 4, {"box": (0.25, 0.5)})]
    callback.on_validation_end(trainer, module)
    assert class_table(tmp_path) == [HEAD, ["a|b", "4", "0.250", "0.500", "-", "-"]]
    logger.experiment.flush()
    events = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"tensors": 0}).Reload()
    first, last = events.Tensors("val/per_class/text_summary")
    assert (first.step, last.step) == (2, 5)
    shown = first.tensor_proto.string_val[0].decode().splitlines()
    assert [[cell.strip() for cell in line.strip("|").split("|")] for line in shown[:1] + shown[2:]] == TABLE
    assert set(shown[1]) == set("| -")
    assert "| a\\|b | 4 |" in last.tensor_proto.string_val[0].decode()


@pytest.mark.parametrize(("count", "printed"), [(20, True), (21, False)])
def test_classes_are_printed_where_they_are_few(tmp_path, module, count, printed, capsys):
    classes = [ClassScore(f"class{i}", i, {"box": (0.1, 0.2), "mask": (0.3, 0.4)}) for i in range(count)]
    write_scores(tmp_path, module.scores, classes, images=2)
    said = capsys.readouterr().out
    assert ("class7 " in said) == printed
    assert (f"21 classes: {tmp_path / 'per_class.csv'}" in said) != printed
    assert [row[:2] for row in class_table(tmp_path)] == [
        HEAD[:2],
        *([one.name, str(one.instances)] for one in classes),
    ]
