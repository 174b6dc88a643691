"""Files are found where exporters put them; what is named wins."""

import pytest

from maskrcnn.data.layout import find_files
from maskrcnn.errors import UserError

# Layout -> split -> annotation file, folder of pictures.
LAYOUTS = {
    "Roboflow": {
        "train": ("train/_annotations.coco.json", "train"),
        "val": ("valid/_annotations.coco.json", "valid"),
        "test": ("test/_annotations.coco.json", "test"),
    },
    "COCO 2017": {
        "train": ("annotations/instances_train2017.json", "train2017"),
        "val": ("annotations/instances_val2017.json", "val2017"),
        "test": ("annotations/image_info_test-dev2017.json", "test2017"),
    },
    "folders": {
        "train": ("annotations/train.json", "train"),
        "val": ("annotations/val.json", "val"),
        "test": ("annotations/test.json", "test"),
    },
    "one file": {"train": ("annotations.json", "images")},
    "one folder": {"train": ("_annotations.coco.json", ".")},
}
CASES = [(name, split) for name, splits in LAYOUTS.items() for split in splits]


def put(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("{}")


def find(root, split="train", *, annotations=None, images=None):
    return find_files(root, split, annotations=annotations, images=images)


@pytest.mark.parametrize(("layout", "split"), CASES)
def test_known_layouts_are_found(tmp_path, layout, split):
    put(tmp_path, *(file for file, _ in LAYOUTS[layout].values()))
    file, folder = LAYOUTS[layout][split]
    assert find(tmp_path, split) == (tmp_path / file, tmp_path / folder)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_named_files_win(tmp_path, split):
    put(tmp_path, *(file for layout in LAYOUTS.values() for file, _ in layout.values()), "mine/all.json")
    assert find(tmp_path, split, annotations="mine/all.json", images="photos") == (
        tmp_path / "mine/all.json",
        tmp_path / "photos",
    )


def test_pictures_lie_beside_a_named_file(tmp_path):
    assert find(tmp_path, annotations="mine/all.json") == (tmp_path / "mine/all.json", tmp_path / "mine")


def test_a_named_folder_replaces_that_of_the_layout(tmp_path):
    put(tmp_path, "annotations/train.json")
    assert find(tmp_path, images="photos") == (tmp_path / "annotations/train.json", tmp_path / "photos")


def test_absolute_paths_are_taken_as_they_are(tmp_path):
    file, folder = tmp_path / "a" / "all.json", tmp_path / "b"
    assert find(tmp_path / "c", annotations=str(file), images=str(folder)) == (file, folder)
    put(tmp_path / "c", "annotations.json")
    assert find(tmp_path / "c", images=str(folder)) == (tmp_path / "c" / "annotations.json", folder)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_error_lists_what_was_tried(tmp_path, split):
    with pytest.raises(UserError, match=rf"^data\.{split}_annotations: none is named") as caught:
        find(tmp_path, split)
    message = str(caught.value)
    assert str(tmp_path) in message
    for layout in LAYOUTS.values():
        if split in layout:
            assert layout[split][0] in message
    assert ("data.val_fraction" in message) == (split == "val")
    assert "\n" not in message
