"""What a run shows while it goes on and afterwards: terminal, curves, TensorBoard in a browser."""

import csv
import importlib.util
import json
import logging
import re
import shutil
import time
import urllib.parse
import urllib.request
from itertools import pairwise

import pytest
from pytorch_lightning import Callback, Trainer
from tensorboard import program
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from maskrcnn.data.batches import TrainDataset
from maskrcnn.data.shapes import draw_shapes
from maskrcnn.training.module import MaskRCNNModule
from tests.cli_tools import TINY, files, run

STEPS = 6  # per epoch
LOGGED = "a line of the log"
PRINTED = "a line that is printed"


class KilledError(Exception):
    """Stands for a kill: nothing is caught, nothing is tidied up."""


class Killer(Callback):
    """Ends training before a step."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == self.step:
            raise KilledError


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("monitoring") / "shapes"
    draw_shapes(folder, train_images=24, val_images=3, image_size=64)
    return folder


def train(root, folder, *arguments):
    return run(
        "train",
        *TINY,
        "data=coco",
        f"data.root={root}",
        "augment=light",
        "ema=none",
        "trainer.max_epochs=2",
        "trainer.log_every_n_steps=1",
        "callbacks.pictures.count=2",
        f"hydra.run.dir={folder}",
        *arguments,
    )


@pytest.fixture(scope="module")
def resumed(root, tmp_path_factory):
    """A run that was killed behind its last checkpoint, and went on; what the terminal showed then, and before."""
    folder = tmp_path_factory.mktemp("resumed")
    begin, step, get = Trainer.__init__, MaskRCNNModule.training_step, TrainDataset.__getitem__

    def with_killer(self, *args, callbacks, **settings):
        begin(self, *args, callbacks=[*callbacks, Killer(STEPS + 3)], **settings)

    def talking(self, batch, number):
        if number == STEPS - 2:
            logging.getLogger("somebody").warning(LOGGED)
            print(PRINTED)
        return step(self, batch, number)

    def slow(self, key):
        time.sleep(0.1 * (key[0] == 1))  # in the second epoch
        return get(self, key)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "__init__", with_killer)
        patch.setenv("TTY_COMPATIBLE", "1")
        killed = train(root, folder, "checkpoint.every_n_steps=2")
    assert "KilledError" in killed.err
    shutil.copytree(folder, killed_folder := folder.with_name("killed"))
    time.sleep(1)  # TensorBoard takes files of one second in any order
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MaskRCNNModule, "training_step", talking)
        patch.setattr(TrainDataset, "__getitem__", slow)
        patch.setenv("TTY_COMPATIBLE", "1")
        patch.setenv("COLUMNS", "80")
        outcome = run("train", f"resume={folder / 'checkpoints' / 'last.ckpt'}")
    assert outcome.code == 0, outcome.err
    return killed_folder, folder, outcome.out, killed.out


@pytest.fixture
def curves(resumed):
    with (resumed[1] / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def events(folder):
    sizes = {"scalars": 0, "images": 0, "tensors": 0}
    return EventAccumulator(str(folder / "tensorboard"), size_guidance=sizes).Reload()


def screen(output):
    """The lines of a terminal, and the widest that it showed meanwhile."""
    lines, row, column, widest = [""], 0, 0, 0
    for token in re.findall(r"\x1b\[[?\d;]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", output):
        if token == "\n":
            row, column = row + 1, 0
            lines += [""] * (row == len(lines))
        elif token == "\r":
            column = 0
        elif token.endswith("A") and token[0] == "\x1b":
            row -= int(token[2:-1] or 1)
        elif token.endswith("K") and token[0] == "\x1b":
            lines[row] = ""
        elif token[0] != "\x1b":
            lines[row] = lines[row].ljust(column)[:column] + token + lines[row][column + len(token) :]
            column += len(token)
            widest = max(widest, column)
    return lines, widest


# --- the terminal


def test_lines_above_the_bar_stay_whole(resumed):
    lines, _ = screen(resumed[2])
    assert PRINTED in lines
    assert any(re.fullmatch(rf"\[.*\]\[somebody\]\[WARNING\] - {LOGGED}", line) for line in lines)
    assert any(re.fullmatch(r"epoch 1: box AP \S+ \(AP50 \S+\), mask AP \S+ \(AP50 \S+\)", line) for line in lines)


def test_one_bar_with_losses_rate_and_time_fits_in_80_columns(resumed):
    shown = resumed[2].partition("\nbox (3 images)")[0]
    lines, widest = screen(shown)
    number = r"-?\d+\.\d+"
    bars = [i for i, line in enumerate(lines) if re.fullmatch(r"epoch 1/1 ━+ 6/6 ETA 0:00:00 *", line)]
    assert len(bars) == 1
    numbers = rf"loss {number}  obj {number}  rpn {number}  cls {number}  box {number}  mask {number}  lr \d\.\de-\d\d"
    assert re.fullmatch(numbers, lines[bars[0] + 1].rstrip())
    assert "validation" in shown
    # Lines that are printed may be as long as they like.
    assert widest <= max(80, *(len(line) for line in lines[: bars[0]]))
    assert len(lines[bars[0]]) <= 80


def test_time_left_is_that_of_the_run(resumed):
    left = re.findall(r"epoch 0/1 \S+ +(\d)/6 ETA 0:(\d\d):(\d\d)", re.sub(r"\x1b\[[\d;]*m", "", resumed[3]))
    assert all(int(minutes) or int(seconds) for _, minutes, seconds in left)  # there is another epoch
    assert left[-1][0] == "6"


# --- curves


def test_each_step_of_a_resumed_run_is_in_tensorboard_once(resumed, curves):
    killed, folder, *_ = resumed
    assert [event.step for event in events(killed).Scalars("train/loss")] == list(range(STEPS + 3))
    found = events(folder)
    for name in ("train/loss", "train/lr", "train/grad_norm", "perf/data_wait", "val/mask_ap", "val/box_ap_small"):
        rows = [(int(row["step"]), float(row[name])) for row in curves if row[name]]
        steps = [step for step, _ in rows]
        assert steps == (list(range(2 * STEPS)) if name[:3] != "val" else [STEPS - 1, 2 * STEPS - 1]), name
        shown = [(event.step, event.value) for event in found.Scalars(name)]
        assert shown == [(step, pytest.approx(value, rel=1e-6)) for step, value in rows], name
    for name in ("val/1000001", "val/1000002"):
        assert [event.step for event in found.Images(name)] == [STEPS - 1, 2 * STEPS - 1]


def test_share_of_waiting_rises_with_slow_data(curves):
    waits = {int(row["step"]): float(row["perf/data_wait"]) for row in curves if row["perf/data_wait"]}
    assert all(0 <= wait <= 1 for wait in waits.values())
    speeds = {int(row["step"]): float(row["perf/images_per_second"]) for row in curves if row["perf/data_wait"]}
    # Batches of four pictures, each 0.1 s late; behind every second step a checkpoint is written.
    for step in range(STEPS + 3, 2 * STEPS, 2):
        seconds = 4 / speeds[step]
        assert seconds * waits[step] >= 0.4
        assert waits[step] > 2 * min(waits[other] for other in range(STEPS))


def test_class_table_is_that_of_the_last_validation(resumed):
    _, folder, out, _ = resumed
    with (folder / "per_class.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["class"] for row in rows} == {"ellipse", "triangle", "star", "ring", "cross"}
    scores = json.loads((folder / "metrics.json").read_text())
    for kind in ("box", "mask"):
        for title, key in ((f"{kind} AP", "ap"), (f"{kind} AP50", "ap50")):
            values = [float(row[title]) for row in rows if row[title] != "-"]
            assert sum(values) / len(values) == pytest.approx(scores[kind][key], abs=1e-3)
    for row in rows:
        assert (row["instances"] == "0") == (row["mask AP"] == "-")
        assert re.search(rf"^{row['class']} +{row['instances']} +{re.escape(row['box AP'])} ", out, re.MULTILINE)


def test_evaluation_shows_the_same_classes(resumed, root, tmp_path):
    outcome = run(
        "evaluate", f"ckpt={resumed[1] / 'checkpoints' / 'last.ckpt'}", f"hydra.run.dir={tmp_path}", *TINY[-3:]
    )
    assert outcome.code == 0, outcome.err
    assert (tmp_path / "per_class.csv").read_text() == (resumed[1] / "per_class.csv").read_text()
    again = run(
        "evaluate",
        f"predictions={tmp_path / 'predictions.json'}",
        "data=coco",
        f"data.root={root}",
        f"hydra.run.dir={tmp_path / 'again'}",
    )
    assert again.code == 0, again.err
    assert (tmp_path / "again" / "per_class.csv").read_text() == (tmp_path / "per_class.csv").read_text()


# --- loggers


def test_without_a_logger_there_are_no_curves(root, tmp_path):
    outcome = train(root, tmp_path, "logger=none", "trainer.max_epochs=1", "trainer.limit_train_batches=1")
    assert outcome.code == 0, outcome.err
    found = files(tmp_path)
    assert "metrics.csv" not in found
    assert not any(name.startswith(("tensorboard", "hparams")) for name in found)
    assert {"metrics.json", "per_class.csv"} <= found
    assert "curves:" not in outcome.out


@pytest.mark.parametrize("package", ["wandb", "mlflow"])
def test_logger_that_is_not_installed_is_one_line(package, root, tmp_path, monkeypatch):
    monkeypatch.setattr("maskrcnn.training.trackers.find_spec", lambda name: None)
    outcome = train(root, tmp_path / "run", f"logger={package}")
    assert outcome.code == 1
    assert outcome.err.count("\n") == 1
    assert f"pip install 'maskrcnn-lightning[{package}]'" in outcome.err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed")
def test_wandb_without_a_network(root, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    outcome = train(root, tmp_path, "logger=wandb", "logger.wandb.offline=true", "trainer.max_epochs=1")
    assert outcome.code == 0, outcome.err
    import wandb

    wandb.teardown()  # waits until all is on the disk
    (kept,) = tmp_path.glob("wandb/offline-run-*")
    assert len(list(kept.glob("files/media/images/val/1000001_*.png"))) == 1
    assert len(list(kept.glob("files/media/table/val/per_class_*.json"))) == 1
    (record,) = kept.glob("run-*.wandb")
    content = record.read_bytes()
    for name in ("val/mask_ap", "train/loss", "perf/data_wait", "optim.lr"):
        assert name.encode() in content
    assert "metrics.csv" in files(tmp_path)
    assert f"curves:      wandb sync {tmp_path / 'wandb'}" in outcome.out


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="mlflow is not installed")
def test_mlflow_in_a_file(root, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow.tracking import MlflowClient

    store = f"sqlite:///{tmp_path}/mlflow.db"
    folder = tmp_path / "run"
    outcome = train(root, folder, "logger=mlflow", f"logger.mlflow.tracking_uri={store}", "trainer.max_epochs=1")
    assert outcome.code == 0, outcome.err
    assert f"curves:      mlflow ui --backend-store-uri {store}" in outcome.out
    client = MlflowClient(store)
    (found,) = client.search_runs([client.get_experiment_by_name("maskrcnn").experiment_id])
    assert (found.info.status, found.info.run_name) == ("FINISHED", "run")
    assert found.data.params["optim.lr"] == "0.0001"
    scores = json.loads((folder / "metrics.json").read_text())
    assert found.data.metrics["val/mask_ap"] == pytest.approx(scores["mask"]["ap"])
    losses = client.get_metric_history(found.info.run_id, "train/loss")
    assert [one.step for one in losses] == list(range(STEPS))
    images = {one.path.partition("+")[0] for one in client.list_artifacts(found.info.run_id, "images")}
    assert images == {"images/val~1000001", "images/val~1000002"}
    assert [one.path for one in client.list_artifacts(found.info.run_id, "val/per_class")] == ["val/per_class/5.json"]
    assert "metrics.csv" in files(folder)


# --- TensorBoard


@pytest.fixture(scope="module")
def server(resumed):
    """TensorBoard's own server over the run folder, for this machine alone."""
    board = program.TensorBoard()
    board.configure(argv=[None, "--logdir", str(resumed[1]), "--host", "127.0.0.1", "--port", "0"])
    url = board.launch()
    deadline = time.monotonic() + 60
    while "tensorboard" not in ask(url, "runs"):  # it reads the files in the background
        assert time.monotonic() < deadline
        time.sleep(0.2)
    return url


def ask(url, path, **query):
    with urllib.request.urlopen(f"{url}data/{path}?{urllib.parse.urlencode(query)}") as answer:
        return json.load(answer)


def test_tensorboard_serves_each_step_once(server, curves):
    for name, steps in (
        ("train/loss", list(range(2 * STEPS))),
        ("val/mask_ap", [STEPS - 1, 2 * STEPS - 1]),
    ):
        points = ask(server, "plugin/scalars/scalars", run="tensorboard", tag=name)
        values = {int(row["step"]): float(row[name]) for row in curves if row[name]}
        assert [(step, value) for _, step, value in points] == [
            (step, pytest.approx(values[step], rel=1e-6)) for step in steps
        ]
    texts = ask(server, "plugin/text/text", run="tensorboard", tag="val/per_class/text_summary")
    assert [text["step"] for text in texts] == [STEPS - 1, 2 * STEPS - 1]
    times = [text["wall_time"] for text in texts]
    assert all(a < b for a, b in pairwise(times))


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


@pytest.fixture
def page():
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1400, "height": 2400})
        page.set_default_timeout(60_000)
        yield page
        browser.close()


def test_browser_shows_curves_pictures_tables_and_settings(server, page, tmp_path):
    page.goto(f"{server}#timeseries")
    for group in ("train", "val"):
        page.get_by_text(re.compile(rf"^{group}\d* cards$")).first.wait_for()
    page.get_by_role("combobox", name="Filter tags (regex)").fill("^(train/loss|val/mask_ap)$")
    for name in ("train/loss", "val/mask_ap"):
        card = page.locator("card-view", has=page.locator(f".tag[title='{name}']")).first
        card.locator("svg.lines, canvas").first.wait_for()
        card.get_by_text(str(2 * STEPS - 1), exact=True).first.wait_for()

    page.get_by_role("tab", name="Images").click()
    picture = page.locator("tf-image-loader img").first
    picture.wait_for()
    assert page.get_by_text("val/1000001", exact=True).first.is_visible()
    width, height = picture.evaluate("img => img.decode().then(() => [img.naturalWidth, img.naturalHeight])")
    assert width > 1.7 * height > 500  # prediction beside ground truth

    page.get_by_role("tab", name="Text").click()
    table = page.locator("tf-text-loader table table").first
    table.wait_for()
    assert table.locator("th").all_inner_texts() == ["class", "instances", "box AP", "box AP50", "mask AP", "mask AP50"]
    assert table.locator("tbody tr").count() == 5

    page.get_by_role("tab", name="HParams").click()
    settings = page.locator("tf-hparams-main")
    for name in ("optim.lr", "val/mask_ap", "val/box_ap"):
        settings.get_by_text(name, exact=True).filter(visible=True).first.wait_for()
    page.screenshot(path=tmp_path / "settings.png")
