"""A data set of one's own: what it overrides, and what it gets from its base class."""

import pickle
import re
import textwrap

import numpy as np
import pytest
from PIL import Image

from maskrcnn.data.annotations import index_annotations
from maskrcnn.data.coco import CocoDataset
from maskrcnn.data.dataset import InstanceDataset
from maskrcnn.errors import UserError


@pytest.fixture
def boxes_class():
    """The class of the docstring's example."""
    text = InstanceDataset.__doc__
    code = textwrap.dedent(text[text.index("    class Boxes") : text.index("Args:")])
    names = {"InstanceDataset": InstanceDataset, "index_annotations": index_annotations}
    exec(code, names)
    return names["Boxes"]


@pytest.fixture
def boxes(boxes_class, tmp_path):
    (tmp_path / "boxes.txt").write_text("a.png 40 30 5 6 10 12\nb.png 8 8 0 0 4 4\na.png 40 30 0 0 40 30\n")
    Image.new("RGB", (40, 30), (1, 2, 3)).save(tmp_path / "a.png")
    return boxes_class(annotations=tmp_path / "boxes.txt", images=tmp_path)


def test_example_of_the_docstring(boxes, tmp_path):
    annotations = boxes.annotations
    assert annotations.first_instance.tolist() == [0, 2, 3]
    assert annotations.boxes.tolist() == [[5, 6, 10, 12], [0, 0, 40, 30], [0, 0, 4, 4]]
    assert annotations.sizes.tolist() == [[30, 40], [8, 8]]
    assert not annotations.has_outline.any()
    assert boxes.problems == []
    assert boxes.image_path(1) == tmp_path / "b.png"
    assert np.array_equal(boxes.read_image(0), np.full((30, 40, 3), (1, 2, 3), np.uint8))
    assert boxes.read_image(0, shrink=2).shape == (15, 20, 3)


def test_missing_picture_is_named(boxes, tmp_path):
    with pytest.raises(UserError, match=re.escape(f"{tmp_path / 'b.png'} (image id 2): no such picture file")):
        boxes.read_image(1)


def test_annotations_are_read_once(boxes, monkeypatch):
    annotations = boxes.annotations
    boxes.source.unlink()
    assert boxes.annotations is annotations
    assert boxes.problems == []


def test_base_class_says_what_to_override(tmp_path):
    with pytest.raises(NotImplementedError, match="read_annotations"):
        _ = InstanceDataset(annotations=tmp_path, images=tmp_path).annotations


@pytest.mark.parametrize(
    ("widths", "end"),
    [
        ([0], "width and height must be positive"),
        ([0, 0], r"positive \(and 1 more problem; python -m maskrcnn\.check_data lists them\)"),
        ([0, 0, 0], r"positive \(and 2 more problems; python -m maskrcnn\.check_data lists them\)"),
    ],
)
def test_first_problem_is_the_error(boxes, widths, end):
    boxes.source.write_text("".join(f"{i}.png {width} 8 0 0 4 4\n" for i, width in enumerate(widths)))
    with pytest.raises(UserError, match=rf"boxes\.txt: image 1 is 0 x 8 pixels; .*{end}$"):
        _ = boxes.annotations
    assert len(boxes.problems) == len(widths)


def test_dataset_travels_to_a_worker(tmp_path, write):
    path = write(tmp_path)
    dataset = CocoDataset(annotations=path, images=tmp_path / "train2017", cache=tmp_path)
    expected = dataset.annotations.ground_truth(range(4))
    copy = pickle.loads(pickle.dumps(dataset))
    path.unlink()
    assert copy.annotations.ground_truth(range(4)) == expected
    assert np.array_equal(copy.read_image(0), dataset.read_image(0))
