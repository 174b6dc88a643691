from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.ops import roi_align

from maskrcnn.models.input import ModelInput
from maskrcnn.models.roi_heads import RoIHeads
from maskrcnn.models.tta import AugmentedMaskRCNN
from maskrcnn.ops.boxes import flip_boxes

Factory = Callable[..., Any]

SIZES = [(60, 90), (97, 64)]
CHOICES: dict[str, tuple[str, tuple[str, ...]]] = {
    "ours": ("mask_rcnn", ()),
    "box_per_class": ("torchvision", ()),
    "bgr_pil": ("detectron2", ("model.input.std=[0.2,0.2,0.2]",)),  # as large as the other inputs
    "cascade": ("mask_rcnn", ("model/roi=cascade",)),
}


@pytest.fixture(params=CHOICES)
def model(request: pytest.FixtureRequest, make_tiny_model: Factory) -> Any:
    """A model whose random heads find different things with different confidence."""
    preset, overrides = CHOICES[request.param]
    many = ("model.score_thresh=0.1", "model.nms_thresh=0.7", "model.detections_per_image=20")
    model = make_tiny_model(*overrides, *many, preset=preset).eval()
    with torch.no_grad():
        for head in model.roi_heads.box_heads:
            for name, parameter in head.named_parameters():
                if name.endswith("weight"):
                    parameter.mul_(3)
    return model


def assert_mirrored(found: dict[str, Tensor], expected: dict[str, Tensor], width: int) -> None:
    torch.testing.assert_close(found["scores"], expected["scores"], atol=1e-5, rtol=0)
    assert torch.equal(found["labels"], expected["labels"])
    torch.testing.assert_close(found["boxes"], flip_boxes(expected["boxes"], width), atol=1e-3, rtol=0)
    torch.testing.assert_close(found["mask_probs"], expected["mask_probs"].flip(-1), atol=1e-4, rtol=0)


def test_one_plain_view_is_the_prediction(model: Any, make_images: Factory) -> None:
    images = make_images(SIZES)
    plain = model.predict(images)
    for found, expected in zip(AugmentedMaskRCNN(model=model, flip=False).predict(images), plain, strict=True):
        assert len(expected["boxes"]) > 5
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("scales", [(1.0,), (1.5, 0.8)])
def test_of_a_flipped_picture_the_same_is_found_flipped(
    model: Any, make_images: Factory, scales: tuple[float, ...]
) -> None:
    images = make_images(SIZES)
    augmented = AugmentedMaskRCNN(model=model, scales=scales)
    found, expected = augmented.predict([image.flip(-1) for image in images]), augmented.predict(images)
    plain = model.predict(images)
    for mirrored, straight, alone, image in zip(found, expected, plain, images, strict=True):
        assert len(straight["boxes"]) > 5
        assert len(straight["boxes"]) != len(alone["boxes"]) or not torch.equal(straight["boxes"], alone["boxes"])
        assert_mirrored(mirrored, straight, image.shape[-1])


def test_a_picture_without_detections(make_tiny_model: Factory, make_images: Factory) -> None:
    model = make_tiny_model("model.score_thresh=1.0").eval()
    for found in AugmentedMaskRCNN(model=model, scales=(1.0, 0.5)).predict(make_images(SIZES)):
        assert {name: len(value) for name, value in found.items()} == dict.fromkeys(found, 0)
        assert found["mask_probs"].shape[1:] == (28, 28)


class StubHeads:
    """Finds the box of what is bright in each picture, and cuts its mask from the picture."""

    def __init__(self, nms_thresh: float) -> None:
        self.settings = SimpleNamespace(nms_thresh=nms_thresh, detections_per_image=100)
        self.views = 0

    def candidates(self, pixels: list[Tensor], proposals: None, sizes: Any) -> list[dict[str, Tensor]]:
        self.views += 1
        found = []
        for picture in pixels[0]:
            ys, xs = torch.where(picture[0] > 0.5)
            box = torch.stack((xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)).float()
            score = torch.tensor([1 - 0.1 * self.views])
            found.append({"boxes": box[None], "scores": score, "labels": torch.ones(1, dtype=torch.int64)})
        return found

    def select(self, boxes: Tensor, scores: Tensor, labels: Tensor) -> Tensor:
        return RoIHeads.select(self.settings, boxes, scores, labels)  # type: ignore[arg-type]

    def mask_probs(self, pixels: list[Tensor], boxes: list[Tensor], labels: list[Tensor]) -> list[Tensor]:
        return list(roi_align(pixels[0][:, :1], boxes, 4, aligned=True).split([len(one) for one in boxes]))


def stub(nms_thresh: float = 0.5, letterbox: tuple[int, int, int] | None = None) -> Any:
    return SimpleNamespace(
        input=ModelInput(min_size=40, max_size=80, mean=(0, 0, 0), std=(1, 1, 1), letterbox=letterbox),
        features=lambda batch: [batch.pixels],
        rpn=lambda features, batch: (None, {}),
        roi_heads=StubHeads(nms_thresh),
    )


def with_an_l(top: int, left: int) -> Tensor:
    """A dark picture [3, 80, 120] with a bright L that is 32 x 16, its foot to the right."""
    picture = torch.zeros(3, 80, 120)
    picture[:, top : top + 32, left : left + 8] = 1
    picture[:, top + 24 : top + 32, left : left + 16] = 1
    return picture


CORNERS = [(8, 16), (32, 96)]
L_SHAPE = torch.tensor([[1.0, 1, 0, 0]] * 3 + [[1.0, 1, 1, 1]])


@pytest.mark.parametrize("letterbox", [None, (50, 50, 50)])
@pytest.mark.parametrize("flip", [False, True])
def test_boxes_of_every_view_map_back(flip: bool, letterbox: tuple[int, int, int] | None) -> None:
    model = stub(1.0, letterbox)  # nothing is dropped
    augmented = AugmentedMaskRCNN(model=model, flip=flip, scales=(1.0, 2.0, 0.5))
    detections = augmented.predict([with_an_l(*corner) for corner in CORNERS])
    assert model.roi_heads.views == (6 if flip else 3)
    for found, (top, left) in zip(detections, CORNERS, strict=True):
        box = torch.tensor([left, top, left + 16, top + 32]).float()
        assert len(found["boxes"]) == model.roi_heads.views
        torch.testing.assert_close(found["boxes"], box.expand_as(found["boxes"]), atol=0.01, rtol=0)
        assert torch.equal(found["scores"], found["scores"].sort(descending=True).values)


def test_one_shape_is_one_detection_with_its_mask() -> None:
    augmented = AugmentedMaskRCNN(model=stub(), scales=(1.0, 2.0))
    for found in augmented.predict([with_an_l(*corner) for corner in CORNERS]):
        assert found["scores"].tolist() == pytest.approx([0.9])
        assert ((found["mask_probs"][0] > 0.5).float() == L_SHAPE).all()


def test_masks_are_the_mean_over_the_views() -> None:
    model, levels = stub(), iter((1.0, 0.5, 0.3))
    model.roi_heads.mask_probs = lambda pixels, boxes, labels: [torch.full((1, 4, 4), next(levels))]
    (found,) = AugmentedMaskRCNN(model=model, flip=False, scales=(1.0, 2.0, 0.5)).predict([with_an_l(8, 16)])
    torch.testing.assert_close(found["mask_probs"], torch.full((1, 4, 4), 0.6))


@pytest.mark.parametrize("scales", [(), (1.0, 0.0), (1.0, -1.0), (0.5, 1.0, 0.5)])
def test_scales_that_make_no_sense_are_refused(scales: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="scales must be one or more different numbers above 0"):
        AugmentedMaskRCNN(model=stub(), scales=scales)
