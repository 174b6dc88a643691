"""Random pictures with crowds, ignored annotations and more detections of a class than count."""

import copy
from typing import Any

import numpy as np
import pytest

from tests.evaluation.test_coco import CATEGORIES, HEIGHT, WIDTH, detection, random_box, shifted, truth_annotation

Scene = tuple[dict[str, Any], list[dict[str, Any]]]


def draw_scene(seed: int, *, images: int = 25, crowded: bool = True) -> Scene:
    """Ground truth and results; classes are mixed up now and then, and some boxes are nowhere near."""
    rng = np.random.default_rng(seed)
    annotations: list[dict[str, Any]] = []
    results = []
    for image_id in range(1, images + 1):
        for _ in range(rng.integers(0, 7)):
            box = random_box(rng)
            annotation = truth_annotation(rng, box) | {"image_id": image_id, "id": len(annotations) + 1}
            annotations.append(annotation | {"ignore": int(rng.random() < 0.1)})
            for _ in range(rng.integers(0, 4)):
                category = annotation["category_id"] if rng.random() < 0.7 else int(rng.choice(CATEGORIES))
                place = shifted(rng, box) if rng.random() < 0.8 else random_box(rng)
                results.append(detection(rng, image_id, category, place))
    if crowded:
        results += [detection(rng, 1, CATEGORIES[0], random_box(rng)) for _ in range(130)]
    truth = {
        "images": [{"id": i, "height": HEIGHT, "width": WIDTH} for i in range(1, images + 1)],
        "annotations": annotations,
        "categories": [{"id": i, "name": f"class {i}"} for i in CATEGORIES],
    }
    return truth, results


@pytest.fixture(scope="session")
def _scene() -> Scene:
    return draw_scene(3)


@pytest.fixture
def scene(_scene: Scene) -> Scene:
    """A copy for each test."""
    return copy.deepcopy(_scene)
