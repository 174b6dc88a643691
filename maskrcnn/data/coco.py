"""COCO instances files, read entry by entry: what they hold is never in memory as objects all at once."""

from pathlib import Path

from maskrcnn.data.annotation_cache import through_cache
from maskrcnn.data.annotations import Annotations, to_annotations
from maskrcnn.data.dataset import InstanceDataset
from maskrcnn.data.entries import Entries, Problem
from maskrcnn.data.json_stream import JsonStream
from maskrcnn.errors import UserError


class CocoDataset(InstanceDataset):
    """A COCO instances file; a large one is parsed once and comes from its cache afterwards.

    A file with images and categories but without annotations is that of a test split.
    """

    def read_annotations(self) -> tuple[Annotations, list[Problem]]:
        """Read the file.

        Returns:
            What could be read, and everything that is wrong with the rest.

        Raises:
            UserError: The file is missing, not JSON, or not a COCO instances file.
        """
        if not self.source.is_file():
            keys = "data.root, data.train_annotations, data.val_annotations, data.test_annotations"
            raise UserError(f"{self.source}: no such annotation file; set {keys}")
        return through_cache(read_coco, self.source, self.cache)


def read_coco(path: Path) -> tuple[Annotations, list[Problem]]:
    """Read a COCO instances file, whose sections may come in any order.

    Raises:
        UserError: It is not JSON, or not a COCO instances file.
    """
    entries, lists = _read_entries(path)
    missing = [section for section in ("images", "categories") if not lists.get(section)]
    if not lists.get("annotations", True):
        missing.append("annotations")
    if missing:
        raise UserError(f"{path}: not a COCO instances file, it has no list {' and no list '.join(missing)}")
    return to_annotations(entries, annotated="annotations" in lists)


def _read_entries(path: Path) -> tuple[Entries, dict[str, bool]]:
    """All entries; of each section that is there, whether it is a list."""
    entries = Entries(path)
    add = {
        "images": entries.add_image,
        "categories": entries.add_category,
        "annotations": entries.add_annotation,
    }
    lists: dict[str, bool] = {}
    stream = JsonStream(path)
    for key in stream.fields():
        if key in lists:
            raise UserError(f"{path}: has two sections {key}; keep one")
        if key in add and stream.starts("["):
            lists[key] = True
            for entry in stream.items():
                add[key](entry)
        elif stream.value() is not None and key in add:
            lists[key] = False
    return entries, lists
