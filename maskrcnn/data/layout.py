"""Where the files of a data set lie."""

from pathlib import Path

from maskrcnn.errors import UserError

Files = tuple[Path, Path]  # annotation file, folder of pictures

# What is looked for where no annotation file is named, in this order.
_KNOWN = {
    "train": (
        ("train/_annotations.coco.json", "train"),  # Roboflow's export
        ("annotations/instances_train2017.json", "train2017"),
        ("annotations/train.json", "train"),
        ("annotations.json", "images"),
        ("_annotations.coco.json", "."),
    ),
    "val": (
        ("valid/_annotations.coco.json", "valid"),
        ("annotations/instances_val2017.json", "val2017"),
        ("annotations/val.json", "val"),
    ),
    "test": (
        ("test/_annotations.coco.json", "test"),
        ("annotations/image_info_test-dev2017.json", "test2017"),
        ("annotations/test.json", "test"),
    ),
}


def find_files(root: Path, split: str, *, annotations: str | None, images: str | None) -> Files:
    """Annotation file and picture folder of a split.

    Args:
        root: Folder of the data set.
        split: "train", "val" or "test".
        annotations: File, relative to `root` unless absolute; None looks for a known layout.
        images: Folder, likewise; None takes the layout's, or the folder of the annotation file.

    Raises:
        UserError: No file is named, and no layout fits.
    """
    if annotations is not None:
        file = root / Path(annotations).expanduser()
        return file, root / Path(images).expanduser() if images is not None else file.parent
    for known, folder in _KNOWN[split]:
        if (root / known).is_file():
            return root / known, root / (images if images is not None else folder)
    tried = ", ".join(known for known, _ in _KNOWN[split])
    hint = "; data.val_fraction=0.1 splits the training file" if split == "val" else ""
    raise UserError(f"data.{split}_annotations: none is named, and {root} holds none of {tried}; name the file{hint}")
