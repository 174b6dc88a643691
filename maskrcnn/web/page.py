"""The page: a picture is shown to the model once, then threshold and classes choose among what was found."""

import html
import socket
import time
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import gradio as gr
import numpy as np
import uvicorn
from fastapi import FastAPI
from pycocotools import mask as coco_mask
from torch import OutOfMemoryError

from maskrcnn.errors import UserError
from maskrcnn.predict.coco_file import CocoFile
from maskrcnn.predict.predictor import Predictor, to_array
from maskrcnn.predict.result import Result

_COLUMNS = ("class", "score", "x", "y", "width", "height", "area")
_KEPT = 3600  # seconds that a picture which was shown can still be downloaded

Update = dict[Any, Any]  # component -> what it shows from now on


@dataclass(frozen=True, eq=False)
class Seen:
    """A picture that the model has seen.

    Attributes:
        name: Of its file.
        image: uint8 [H, W, 3], RGB.
        result: All that was found.
        seconds: How long that took.
    """

    name: str
    image: np.ndarray
    result: Result
    seconds: float


def look(predictor: Predictor, path: Path) -> Seen:
    """Read a picture and show it to the model.

    Raises:
        UserError: It cannot be read, or is too large for the device.
    """
    try:
        image = to_array(path)
        start = time.perf_counter()
        result = predictor.predict(image, threshold=0.0)
    except UserError as error:
        raise UserError(str(error).replace(str(path), path.name)) from None
    except OutOfMemoryError:
        raise UserError(f"{path.name}: too large for the memory of the {predictor.device.type} device") from None
    return Seen(path.name, image, result, time.perf_counter() - start)


def select(result: Result, *, threshold: float, classes: Collection[str]) -> Result:
    """The instances of these classes whose score is at least the threshold."""
    kept = [
        i
        for i, (score, name) in enumerate(zip(result.scores, result.names, strict=True))
        if score >= threshold and name in classes
    ]
    return replace(
        result,
        boxes=result.boxes[kept],
        scores=result.scores[kept],
        labels=result.labels[kept],
        names=[result.names[i] for i in kept],
        category_ids=[result.category_ids[i] for i in kept],
        rles=[result.rles[i] for i in kept],
    )


def table(result: Result) -> list[list[Any]]:
    """A row for each instance: class, score, box and mask area in pixels."""
    return [
        [name, round(float(score), 3), *(round(value, 1) for value in (x1, y1, x2 - x1, y2 - y1)), int(area)]
        for name, score, (x1, y1, x2, y2), area in zip(
            result.names, result.scores, result.boxes.tolist(), coco_mask.area(result.rles), strict=True
        )
    ]


def build_page(predictor: Predictor, *, threshold: float, title: str, folder: Path) -> gr.Blocks:
    """The page of a model.

    Args:
        predictor: The model.
        threshold: Where the slider stands at first.
        title: Of the page.
        folder: Where the files to download are made; not Gradio's own, which takes a file there for unchanged.
    """
    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(_KEPT // 6, _KEPT)) as page:
        gr.Markdown("# Mask R-CNN")
        count = len(predictor.categories)
        gr.HTML(_line(f"{title} on {predictor.device}, {count} class{'es' * (count != 1)}"))
        seen = gr.State()
        with gr.Row():
            with gr.Column(scale=1):
                upload = gr.File(label="Picture", height=140)
                slider = gr.Slider(0, 1, value=threshold, step=0.01, label="Threshold", buttons=[])
                classes = gr.CheckboxGroup(label="Classes", visible=False)
            with gr.Column(scale=3):
                status = gr.HTML(_line("Drop a picture.", role="status"))
                overlay = gr.Image(
                    label="Overlay",
                    alt_text="the picture with its instances",
                    interactive=False,
                    buttons=["fullscreen"],
                    visible=False,
                )
                with gr.Row():
                    to_picture = gr.DownloadButton("Download overlay (PNG)", interactive=False)
                    to_json = gr.DownloadButton("Download instances (COCO JSON)", interactive=False)
                instances = gr.Dataframe(headers=list(_COLUMNS), label="Instances", interactive=False, visible=False)
        shown = [overlay, to_picture, to_json, instances, status]

        def show(seen: Seen | None, threshold: float, chosen: list[str], request: gr.Request) -> Update:
            if seen is None:
                return {status: gr.skip()}
            result = select(seen.result, threshold=threshold, classes=chosen)
            place = folder / str(request.session_hash)
            place.mkdir(exist_ok=True)
            picture, file = place / f"{Path(seen.name).stem}.png", place / f"{Path(seen.name).stem}.json"
            cv2.imwrite(str(picture), cv2.cvtColor(result.draw(seen.image), cv2.COLOR_RGB2BGR))
            with CocoFile(file, categories=predictor.categories) as coco:
                coco.write(result, file_name=seen.name)
            numbers = f"{len(result)} of {len(seen.result)} instances shown, found in {seen.seconds:.2f} s"
            return {
                overlay: gr.Image(str(picture), visible=True),
                to_picture: gr.DownloadButton(value=picture, interactive=True),
                to_json: gr.DownloadButton(value=file, interactive=True),
                instances: gr.Dataframe(table(result), visible=True),
                status: _line(f"{seen.name}: {numbers}", role="status"),
            }

        def take(path: str, threshold: float, request: gr.Request) -> Update:
            try:
                new = look(predictor, Path(path))
            except UserError as error:
                return {
                    upload: None,
                    seen: None,
                    classes: gr.CheckboxGroup([], value=[], visible=False),
                    overlay: gr.Image(None, visible=False),
                    to_picture: gr.DownloadButton(value=None, interactive=False),
                    to_json: gr.DownloadButton(value=None, interactive=False),
                    instances: gr.Dataframe([], visible=False),
                    status: _line(str(error), role="alert"),
                }
            names = list(dict.fromkeys(new.result.names))
            found = {upload: None, seen: new, classes: gr.CheckboxGroup(names, value=names, visible=bool(names))}
            return found | show(new, threshold, names, request)

        settings: dict[str, Any] = {"concurrency_id": "model", "show_progress": "minimal", "api_visibility": "private"}
        upload.upload(take, [upload, slider], [upload, seen, classes, *shown], **settings)
        gr.on(
            [slider.input, classes.input], show, [seen, slider, classes], shown, trigger_mode="always_last", **settings
        )
    return page


def serve(page: gr.Blocks, server: socket.socket) -> None:
    """Serve the page, and nothing else, until the user interrupts."""
    app = gr.mount_gradio_app(
        FastAPI(openapi_url=None),
        page,
        path="/",
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        mcp_server=False,
    )
    config = uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1)  # open tabs would hold it up
    with suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[server])


def _line(text: str, *, role: str = "note") -> str:
    color = "error-text" if role == "alert" else "body-text"
    return f'<p role="{role}" style="color: var(--{color}-color)">{html.escape(text)}</p>'
