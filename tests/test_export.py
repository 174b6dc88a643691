"""Exported files hold what the model holds, for any number of pictures of any size."""

import json
from unittest import mock

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from torch import Tensor

from maskrcnn import load
from maskrcnn.config import build, config_folder, plain
from maskrcnn.data.images import read_image
from maskrcnn.data.sample import to_tensor
from maskrcnn.data.shapes import draw_shapes
from maskrcnn.export.writers import write_model
from maskrcnn.models.exported.metadata import OUTPUTS, make_metadata
from maskrcnn.models.exported.onnx_model import OnnxModel
from tests.cli_tools import TINY_DATA, run
from tests.conftest import TINY
from tests.export_tools import assert_same_detections, sharpen

pytest.importorskip("onnxscript")
onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

CPU = ("trainer.accelerator=cpu", "data.num_workers=0", "trainer.enable_progress_bar=false")


def export(*arguments):
    return run("maskrcnn.export.__main__", *arguments)


@pytest.fixture(scope="session")
def shapes(tmp_path_factory):
    root = tmp_path_factory.mktemp("shapes") / "set"
    draw_shapes(root, train_images=2, val_images=6, image_size=96)
    return root


@pytest.fixture(scope="session")
def checkpoint(shapes, tmp_path_factory):
    """Of random weights, which find something everywhere."""
    overrides = [*TINY, *TINY_DATA, "model.backbone.weights=null", f"data.root={shapes}"]
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        cfg = compose("train", overrides=overrides)
    categories = json.loads((shapes / "annotations/instances_val2017.json").read_text())["categories"]
    categories = [{"id": category["id"], "name": category["name"]} for category in categories]
    config = {
        "model": plain(cfg.model) | {"num_classes": len(categories)},
        "data": plain(cfg.data),
        "trainer": {"precision": "32-true"},
    }
    torch.manual_seed(0)
    model = sharpen(build(config["model"], key="model"))
    path = tmp_path_factory.mktemp("run") / "last.ckpt"
    state = {f"model.{name}": value for name, value in model.state_dict().items()}
    torch.save({"state_dict": state, "maskrcnn": {"config": config, "categories": categories}}, path)
    return path


@pytest.fixture(scope="session")
def pictures(shapes) -> list[Tensor]:
    """Of several sizes."""
    files = sorted((shapes / "val2017").iterdir())
    whole = [to_tensor(read_image(path)).contiguous() for path in files]
    return [picture[:, :height] for picture, height in zip(whole, (96, 60, 96, 80, 50), strict=False)]


@pytest.fixture(scope="session")
def exported(checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    path = folder / "a model, [1].onnx"
    outcome = export(f"ckpt={checkpoint}", f"output={path}", f"hydra.run.dir={folder / 'run'}")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.startswith(f"{path}: onnx, fp32, 5 classes, ")
    assert [entry.name for entry in folder.iterdir() if entry.is_file()] == [path.name]
    return path


@pytest.fixture(scope="session")
def model(checkpoint):
    return load(checkpoint, accelerator="cpu")._model


@pytest.mark.parametrize("count", [1, 2, 5])
def test_onnx_finds_what_the_model_finds(count, exported, model, pictures):
    images = pictures[:count]
    expected = model.predict(images)
    assert all(len(detection["boxes"]) for detection in expected)
    assert_same_detections(OnnxModel(exported).predict(images), expected, images, paste="torchvision")


def test_any_size(exported, model, make_images):
    images = [(image * 255).to(torch.uint8) for image in make_images([(300, 40), (33, 500), (7, 5)])]
    assert_same_detections(OnnxModel(exported).predict(images), model.predict(images), images, paste="torchvision")


def test_nothing_found(exported):
    session = onnxruntime.InferenceSession(exported)
    images = np.zeros((3, 3, 96, 96), np.float32)
    none = session.run(OUTPUTS, {"images": images, "sizes": np.zeros((3, 2), np.int64)})
    assert [value.shape for value in none] == [(0, 4), (0,), (0,), (0, 28, 28), (0,)]
    some = session.run(OUTPUTS, {"images": images, "sizes": np.array([[0, 0], [96, 96], [0, 0]])})
    assert len(some[0])
    assert set(some[4]) == {1}


def test_the_file_says_all_that_another_program_needs(exported, checkpoint, shapes):
    session = onnxruntime.InferenceSession(exported)
    assert [(entry.name, entry.type, entry.shape) for entry in session.get_inputs()] == [
        ("images", "tensor(float)", ["batch", 3, "height", "width"]),
        ("sizes", "tensor(int64)", ["batch", 2]),
    ]
    assert [(entry.name, entry.shape) for entry in session.get_outputs()] == [
        ("boxes", ["detections", 4]),
        ("labels", ["detections"]),
        ("scores", ["detections"]),
        ("mask_probs", ["detections", 28, 28]),
        ("image_index", ["detections"]),
    ]
    about = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
    assert [(entry["id"], entry["name"]) for entry in about["categories"]] == [
        (1, "ellipse"),
        (3, "triangle"),
        (4, "star"),
        (7, "ring"),
        (9, "cross"),
    ]
    assert about["input"] == {
        "min_size": 64,
        "max_size": 128,
        "resize": "torchvision",
        "size_divisor": 32,
        "letterbox": None,
    }
    assert about["normalization"]["channel_order"] == "rgb"
    np.testing.assert_allclose(about["normalization"]["mean"], [0.485, 0.456, 0.406], rtol=1e-6)
    np.testing.assert_allclose(about["normalization"]["std"], [0.229, 0.224, 0.225], rtol=1e-6)
    assert about["masks"] == {"paste": "torchvision", "threshold": 0.5}
    assert (about["version"], about["precision"]) == (1, "fp32")
    assert about["data"]["root"] == str(shapes)
    assert set(OUTPUTS) <= set(about["interface"].replace(":", "").split())
    onnx.checker.check_model(onnx.load(exported), full_check=True)


def test_evaluate_gives_the_scores_of_the_checkpoint(exported, checkpoint, tmp_path):
    metrics, scores = [], []
    for name, path in (("checkpoint", checkpoint), ("exported", exported)):
        outcome = run("evaluate", f"ckpt={path}", f"hydra.run.dir={tmp_path / name}", *CPU)
        assert (outcome.code, outcome.err) == (0, "")
        metrics.append(json.loads((tmp_path / name / "metrics.json").read_text()))
        predictions = json.loads((tmp_path / name / "predictions.json").read_text())
        assert {entry["category_id"] for entry in predictions} <= {1, 3, 4, 7, 9}
        scores.append(sorted(entry["score"] for entry in predictions))
    theirs, ours = metrics
    assert len(scores[0]) > 20
    assert scores[1] == pytest.approx(scores[0], abs=1e-4)
    for kind in ("box", "mask"):
        assert ours[kind] == pytest.approx(theirs[kind], abs=1e-3)


def test_predict_takes_the_file(exported, checkpoint, shapes):
    picture = next((shapes / "val2017").iterdir())
    ours, theirs = (load(path, accelerator="cpu").predict(picture, threshold=0) for path in (exported, checkpoint))
    assert ours.names == theirs.names
    assert ours.names
    np.testing.assert_allclose(ours.boxes, theirs.boxes, atol=0.1)


def test_mistakes_are_one_line(exported, checkpoint, tmp_path):
    run_dir = f"hydra.run.dir={tmp_path / 'run'}"
    foreign = tmp_path / "foreign.onnx"
    x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "g", [x], [y])
    opset = [onnx.helper.make_opsetid("", 18)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=10), foreign)
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(exported.read_bytes()[:1000])
    program = tmp_path / "model.pt2"
    for arguments, message in (
        (("maskrcnn.export.__main__",), "ckpt: give the model"),
        (("maskrcnn.export.__main__", f"ckpt={checkpoint}", "format=coreml"), "format=coreml: must be one of onnx"),
        (("maskrcnn.export.__main__", f"ckpt={checkpoint}", "precision=int8"), "precision=int8: must be one of"),
        (("maskrcnn.export.__main__", f"ckpt={checkpoint}", "output=m.pt2"), "output=m.pt2: a file of format=onnx"),
        (("maskrcnn.export.__main__", f"ckpt={exported}"), f"ckpt={exported}: is exported already"),
        (("evaluate", f"ckpt={exported}", "model.score_thresh=0.5"), "model.score_thresh: the settings of an exported"),
        (("evaluate", f"ckpt={exported}", "model/neck=panet"), "model/neck: the settings of an exported"),
        (("evaluate", f"ckpt={exported}", "tta=flip"), "tta: the settings of an exported"),
        (
            ("maskrcnn.predict.__main__", f"ckpt={exported}", "source=a.png", "tta=flip"),
            "tta: the settings of an exported",
        ),
        (("evaluate", f"ckpt={foreign}"), f"ckpt={foreign}: was not written by python -m maskrcnn.export"),
        (("evaluate", f"ckpt={broken}"), f"ckpt={broken}: onnxruntime cannot read it"),
        (("evaluate", f"ckpt={tmp_path / 'none.onnx'}"), f"ckpt={tmp_path / 'none.onnx'}: no such file"),
        (("evaluate", f"ckpt={program}"), f"ckpt={program}: a torch.export program could run code"),
    ):
        outcome = run(*arguments, run_dir)
        assert outcome.code == 1, arguments
        assert outcome.err.startswith(f"error: {message}"), outcome.err
        assert outcome.err.count("\n") == 1


@pytest.mark.parametrize(
    ("missing", "module"), [("onnxscript", "export.writers"), ("onnxruntime", "models.exported.onnx_model")]
)
def test_without_the_extra(missing, module, exported, checkpoint, tmp_path):
    from importlib.util import find_spec

    absent = mock.patch(f"maskrcnn.{module}.find_spec", lambda name: None if name == missing else find_spec(name))
    with absent:
        if missing == "onnxruntime":
            outcome = run("evaluate", f"ckpt={exported}", f"hydra.run.dir={tmp_path / 'run'}")
        else:
            outcome = export(f"ckpt={checkpoint}", f"hydra.run.dir={tmp_path / 'run'}")
    assert outcome.code == 1
    assert f"{missing} cannot be found; pip install 'maskrcnn-lightning[export]'" in outcome.err


def written(model, path, **chosen):
    config = {"model": {}, "data": {}}
    metadata = make_metadata(model, [{"id": 1, "name": "a"}], config, precision="fp32")
    write_model(model, path, metadata, **chosen)
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ("model.box_head.class_agnostic=false",),
        ("model/roi=cascade",),
        ("model.input.letterbox=[123,116,103]", "model.input.resize=opencv", "model.mask_head.paste=original"),
        ("model/neck=panet", "model.mask_head.norm=gn", "model.roi_align.sampling_ratio=0", "model.input.resize=pil"),
        ("model/neck=bifpn", "model.anchors.strides=null", "model.roi_align.aligned=true"),
    ],
)
def test_other_models_as_onnx(overrides, make_tiny_model, pictures, tmp_path):
    model = sharpen(make_tiny_model(*overrides))
    network = OnnxModel(written(model, tmp_path / "model.onnx", format="onnx", half=False))
    for batch in (pictures[:1], pictures[1:3], pictures):
        expected = model.predict(batch)
        assert all(len(detection["boxes"]) for detection in expected)
        assert_same_detections(network.predict(batch), expected, batch, paste=model.paste)


@pytest.mark.slow
def test_a_threshold_that_nothing_passes(make_tiny_model, pictures, tmp_path):
    model = sharpen(make_tiny_model("model.score_thresh=1.0"))
    network = OnnxModel(written(model, tmp_path / "model.onnx", format="onnx", half=False))
    for count in (1, 2):
        found = network.predict(pictures[:count])
        assert [len(detection["boxes"]) for detection in found] == [0] * count
        assert found[0]["mask_probs"].shape == (0, 28, 28)


@pytest.mark.slow
def test_half_precision_runs_on_a_cpu(exported, checkpoint, model, pictures, tmp_path):
    path = tmp_path / "half.onnx"
    outcome = export(f"ckpt={checkpoint}", f"output={path}", "precision=fp16", f"hydra.run.dir={tmp_path / 'run'}")
    assert (outcome.code, outcome.err) == (0, "")
    assert path.stat().st_size < 0.55 * exported.stat().st_size
    network = OnnxModel(path)
    for found, expected in zip(network.predict(pictures), model.predict(pictures), strict=True):
        assert found["boxes"].dtype == torch.float32
        assert abs(float(found["scores"][0] - expected["scores"][0])) < 0.02


@pytest.mark.slow
def test_torch_export_program(checkpoint, exported, tmp_path):
    path = tmp_path / "model.pt2"
    arguments = (f"ckpt={checkpoint}", "format=torch_export", f"output={path}", f"hydra.run.dir={tmp_path / 'run'}")
    outcome = export(*arguments)
    assert (outcome.code, outcome.err) == (0, "")
    about = dict.fromkeys(("categories", "input", "interface", "data"), "")
    program = torch.export.load(path, extra_files=about).module()
    stored = onnxruntime.InferenceSession(exported).get_modelmeta().custom_metadata_map
    assert about == {key: stored[key] for key in about}
    session = onnxruntime.InferenceSession(exported)
    generator = torch.Generator().manual_seed(0)
    for shape in ((1, 96, 96), (2, 96, 128), (5, 256, 160)):
        images = 255 * torch.nn.functional.interpolate(
            torch.rand(shape[0], 3, 7, 7, generator=generator), size=shape[1:], mode="nearest"
        )
        sizes = torch.tensor([[shape[1] - i, shape[2]] for i in range(shape[0])])
        found = program(images, sizes)
        expected = session.run(OUTPUTS, {"images": images.numpy(), "sizes": sizes.numpy()})
        assert len(found[0]) > 0
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_allclose(ours.numpy(), theirs, atol=1e-2)
    none = program(torch.zeros(1, 3, 96, 96), torch.tensor([[0, 0]]))
    assert [tuple(value.shape) for value in none] == [(0, 4), (0,), (0,), (0, 28, 28), (0,)]
