"""The page in a real browser: what it shows is what the model finds, and nothing of it comes from elsewhere."""

import os
import re
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

from maskrcnn import load
from maskrcnn.predict.predictor import Predictor
from tests.cli_tools import Outcome, run
from tests.conftest import TINY

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
MODEL = (*TINY, "model.score_thresh=0.0")
LOOPBACK = {"127.0.0.1", "localhost", None}
WAIT = 60  # seconds


@pytest.fixture
def weights(make_tiny_torchvision, tmp_path):
    """Of a model with random weights, which finds 100 instances of many classes anywhere."""
    path = tmp_path / "a model, <b>1.pth"
    torch.save(make_tiny_torchvision(num_classes=90).state_dict(), path)
    return path


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "Größe, 2.png"
    levels = np.random.default_rng(0).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    Image.fromarray(levels).resize((120, 90), Image.Resampling.NEAREST).save(path)
    return path


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """The folder for temporary files of Python, not of the browser, which takes no path so long."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.fixture
def expect():
    expect = pytest.importorskip("playwright.sync_api", reason="playwright is not installed").expect
    expect.set_options(timeout=WAIT * 1000)
    return expect


def web(*arguments: str) -> Outcome:
    return run("maskrcnn.web.__main__", "trainer.accelerator=cpu", *arguments)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def visit(do: Callable[[Any], None], *arguments: str) -> tuple[Outcome, int]:
    """Run the command here, and a browser in another thread, which interrupts it when it has done everything."""
    from playwright.sync_api import sync_playwright

    port, over = free_port(), threading.Event()

    def browse() -> None:
        try:
            deadline = time.monotonic() + WAIT
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port)).close()
                    break
                except ConnectionRefusedError:
                    assert not over.is_set()
                    assert time.monotonic() < deadline
                    time.sleep(0.1)
            with sync_playwright() as play:
                browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
                page = browser.new_page(viewport={"width": 1400, "height": 1000})
                page.set_default_timeout(WAIT * 1000)
                page.goto(f"http://127.0.0.1:{port}")
                do(page)
                if not over.is_set():
                    os.kill(os.getpid(), signal.SIGINT)  # while the page is still open
                assert over.wait(10)
                browser.close()
        finally:
            if not over.is_set():
                os.kill(os.getpid(), signal.SIGINT)

    with ThreadPoolExecutor(1) as pool:
        visitor = pool.submit(browse)
        try:
            outcome = web(f"port={port}", *arguments)
        finally:
            over.set()
        visitor.result()
    return outcome, port


class Tab:
    """What a person does with the page, and sees there."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.status = page.get_by_role("status")
        self.threshold = page.get_by_label("number input for Threshold")
        self.overlay = page.get_by_alt_text("the picture with its instances")
        self.instances = page.get_by_role("grid", name="Instances")

    def drop(self, path: Path) -> None:
        self.page.locator("input[type=file]").first.set_input_files(path)

    def toggle(self, name: str) -> None:
        self.page.get_by_role("checkbox", name=name, exact=True).click()

    def shows(self, count: int, total: int) -> None:
        self.status.filter(has_text=f": {count} of {total} instances shown").wait_for()

    def download(self, kind: str, path: Path) -> Path:
        with self.page.expect_download() as started:
            self.page.get_by_role("button", name=kind).click()
        assert started.value.suggested_filename == path.name
        started.value.save_as(path)
        return path


def a_file_that_is_no_picture(tab: Tab, path: Path) -> None:
    """It is answered with a line, here on a phone."""
    path.write_text("no picture")
    tab.page.set_viewport_size({"width": 390, "height": 844})
    assert tab.page.evaluate("document.documentElement.scrollWidth") == 390
    tab.drop(path)
    tab.page.get_by_role("alert").filter(has_text=re.compile(f"^{path.name}: not a picture file$")).wait_for()
    tab.instances.wait_for(state="hidden")


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
@pytest.mark.skipif(find_spec("gradio") is None, reason="gradio is not installed")
def test_a_picture_is_dropped_filtered_and_downloaded(weights, photo, tmp_path, temporary, expect):
    everything = load(weights, accelerator="cpu", overrides=MODEL).predict(photo, threshold=0.0)
    middle = round(float(np.median(everything.scores)), 3)
    above = np.flatnonzero(everything.scores >= middle)
    rest = [i for i in above if everything.names[i] != everything.names[0]]
    total = len(everything)
    assert 0 < len(rest) < len(above) < total
    requested: set[str] = set()

    def do(page: Any) -> None:
        page.on("request", lambda request: requested.add(request.url))
        tab = Tab(page)
        tab.status.filter(has_text="Drop a picture").wait_for()
        assert page.get_by_role("note").inner_text() == f"{weights.name} on cpu, 90 classes"
        tab.drop(photo)
        tab.shows(total, total)
        expect(page.get_by_role("checkbox", checked=True)).to_have_count(len(set(everything.names)))
        everywhere = tab.overlay.get_attribute("src")

        tab.threshold.fill("1")
        tab.shows(0, total)
        assert COCO(tab.download("COCO JSON", tmp_path / f"{photo.stem}.json")).anns == {}
        expect(tab.overlay).not_to_have_attribute("src", everywhere)
        nowhere = tab.overlay.get_attribute("src")

        tab.threshold.fill(str(middle))
        tab.shows(len(above), total)
        tab.toggle(everything.names[0])
        tab.shows(len(rest), total)
        expect(tab.overlay).not_to_have_attribute("src", nowhere)
        assert tab.overlay.get_attribute("src") != everywhere
        expect(tab.instances).to_have_attribute("aria-rowcount", str(1 + len(rest)))
        best = [everything.names[rest[0]], f"{everything.scores[rest[0]]:.3f}".rstrip("0")]
        expect(tab.instances.get_by_role("row").nth(1).get_by_role("gridcell")).to_contain_text([*best, *[""] * 5])
        coco = COCO(tab.download("COCO JSON", tmp_path / f"{photo.stem}.json"))
        assert [image["file_name"] for image in coco.dataset["images"]] == [photo.name]
        expected = [everything.to_coco(1)[i] for i in rest]
        assert [{key: entry[key] for key in expected[0]} for entry in coco.dataset["annotations"]] == expected
        with Image.open(tab.download("PNG", tmp_path / "downloads" / photo.name)) as picture:
            assert picture.size == (480, 360)

        a_file_that_is_no_picture(tab, tmp_path / "notes.txt")
        tab.drop(photo)
        tab.shows(len(above), total)

    predict, look_up = Predictor.predict, socket.getaddrinfo
    with (
        mock.patch.object(Predictor, "predict", autospec=True, side_effect=predict) as predictions,
        mock.patch("socket.getaddrinfo", side_effect=look_up) as lookups,
    ):
        outcome, port = visit(do, f"ckpt={weights}", "threshold=0", *MODEL)
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.startswith(f"http://127.0.0.1:{port} (end with Ctrl-C)\n")
    assert predictions.call_count == 2  # one for each time that a picture was dropped
    assert {url.split("/")[2] for url in requested if url.startswith("http")} == {f"127.0.0.1:{port}"}
    assert {call.args[0] for call in lookups.call_args_list} <= LOOPBACK
    assert not list(temporary.glob("maskrcnn*"))


@pytest.mark.parametrize(
    ("arguments", "culprits"),
    [
        (["ckpt=null"], ["ckpt: give"]),
        (["threshold=2"], ["threshold=2: must be"]),
        (["threshold=half"], ["threshold=half: must be"]),
        (["port=70000"], ["port=70000", "0 to 65535"]),
        (["port=http"], ["port=http", "0 to 65535"]),
        (["host=192.0.2.1"], ["host=192.0.2.1", "127.0.0.1"]),
        (["port=0", "ckpt=missing.ckpt"], ["missing.ckpt"]),
    ],
)
def test_a_mistake_is_one_line(weights, tmp_path, monkeypatch, arguments, culprits):
    monkeypatch.chdir(tmp_path)
    ckpt = [] if any(argument.startswith("ckpt=") for argument in arguments) else [f"ckpt={weights}"]
    with mock.patch.dict(sys.modules, gradio=mock.Mock(__spec__=mock.Mock())):  # these need none
        outcome = web(*ckpt, *arguments)
    (line,) = outcome.err.splitlines()
    assert outcome.code == 1
    assert line.startswith("error: ")
    assert all(culprit in line for culprit in culprits), line
    assert not (tmp_path / "outputs" / "web").exists()


def test_a_taken_port_is_named(weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with (
        mock.patch.dict(sys.modules, gradio=mock.Mock(__spec__=mock.Mock())),
        socket.create_server(("127.0.0.1", 0)) as server,
    ):
        port = server.getsockname()[1]
        outcome = web(f"ckpt={weights}", f"port={port}")
    expected = f"error: port={port}: taken by another program; choose another, or 0 for any\n"
    assert (outcome.code, outcome.err) == (1, expected)


def test_without_gradio_it_says_what_to_install(weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with mock.patch.dict(sys.modules, gradio=None):
        outcome = web(f"ckpt={weights}")
    expected = "error: web: gradio is not installed; pip install 'maskrcnn-lightning[web]'\n"
    assert (outcome.code, outcome.err) == (1, expected)
