"""The pictures and instances of a data set that take part."""

from collections.abc import Sequence
from copy import copy
from difflib import get_close_matches
from typing import Any

import numpy as np

from maskrcnn.data.dataset import InstanceDataset
from maskrcnn.data.geometry import Size
from maskrcnn.data.outline import Outline
from maskrcnn.data.sample import Sample
from maskrcnn.errors import UserError


class Split:
    """Some pictures of a data set, with the instances that count, as labels 1..K.

    Args:
        dataset: The whole.
        positions: int64 [N], its pictures that take part.
        classes: Names of the categories that take part; None for all.
        use_crowd: Whether crowd regions count as instances.
    """

    def __init__(
        self,
        dataset: InstanceDataset,
        *,
        positions: np.ndarray,
        classes: Sequence[str] | None = None,
        use_crowd: bool = False,
    ) -> None:
        self.dataset = dataset
        self.positions = positions
        annotations = dataset.annotations
        self.categories = _chosen(annotations.categories, classes, source=str(annotations.source))
        self._label_of = np.zeros(len(annotations.categories) + 1, dtype=np.int64)
        wanted = [category["id"] for category in self.categories]
        for label, category in enumerate(annotations.categories, start=1):
            if category["id"] in wanted:
                self._label_of[label] = wanted.index(category["id"]) + 1
        counts = self._label_of[annotations.labels] > 0
        self.counted = counts & annotations.usable & ~annotations.difficult & (use_crowd | ~annotations.crowd)

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: int) -> Sample:
        """The whole picture with its instances."""
        outlines, labels = self.instances(index)
        return Sample(self.read(index), outlines, labels, self.image_id(index))

    def subset(self, keep: np.ndarray | slice) -> "Split":
        """The same with fewer pictures."""
        smaller = copy(self)
        smaller.positions = self.positions[keep]
        return smaller

    @property
    def sizes(self) -> np.ndarray:
        """Height and width of each picture, int64 [N, 2]."""
        return self.dataset.annotations.sizes[self.positions]

    @property
    def image_ids(self) -> list[int]:
        """The data set's own ids."""
        return self.dataset.annotations.image_ids[self.positions].tolist()

    @property
    def instances_per_image(self) -> np.ndarray:
        """How many instances count in each picture, int64 [N]."""
        first = self.dataset.annotations.first_instance
        return self._counted_before[first[self.positions + 1]] - self._counted_before[first[self.positions]]

    @property
    def labels(self) -> np.ndarray:
        """Labels of all counted instances, picture after picture, int64."""
        return self._label_of[self.dataset.annotations.labels[self.instance_numbers]]

    @property
    def instance_numbers(self) -> np.ndarray:
        """Where the annotations have the counted instances, picture after picture, int64."""
        counts = self.instances_per_image
        before = np.cumsum(counts) - counts
        first = self._counted_before[self.dataset.annotations.first_instance[self.positions]]
        return np.flatnonzero(self.counted)[np.arange(counts.sum()) + np.repeat(first - before, counts)]

    def size(self, index: int) -> Size:
        """(height, width) of a picture."""
        height, width = self.dataset.annotations.sizes[self.positions[index]]
        return int(height), int(width)

    def image_id(self, index: int) -> int:
        """The data set's own id of a picture."""
        return int(self.dataset.annotations.image_ids[self.positions[index]])

    def instances(self, index: int) -> tuple[list[Outline], np.ndarray]:
        """Outlines inside the picture, and labels int64 [n]."""
        height, width = self.size(index)
        annotations = self.dataset.annotations
        first, last = annotations.first_instance[self.positions[index] :][:2]
        numbers = first + np.flatnonzero(self.counted[first:last])
        outlines = [annotations.outline(number).clip((0, 0, width, height)) for number in numbers]
        return outlines, self._label_of[annotations.labels[numbers]]

    def read(self, index: int, *, shrink: int = 1) -> np.ndarray:
        """The pixels, uint8 [ceil(H / shrink), ceil(W / shrink), 3].

        Raises:
            UserError: The file is missing, damaged, or not of the annotated size.
        """
        return self.dataset.read_image(int(self.positions[index]), shrink=shrink)

    def ground_truth(self) -> dict[str, Any] | None:
        """What scoring compares with, as a parsed COCO instances file; None where nothing is annotated."""
        annotations = self.dataset.annotations
        if not annotations.annotated:
            return None
        return annotations.ground_truth(self.positions, categories=[category["id"] for category in self.categories])

    @property
    def _counted_before(self) -> np.ndarray:
        """How many instances count before instance 0..M."""
        return np.concatenate(([0], np.cumsum(self.counted)))


def _chosen(categories: list[dict[str, Any]], classes: Sequence[str] | None, *, source: str) -> list[dict[str, Any]]:
    if classes is None:
        return categories
    names = [category["name"] for category in categories]
    for name in classes:
        if name not in names:
            close = get_close_matches(str(name), names, n=1)
            hint = f"did you mean {close[0]}?" if close else f"it has {', '.join(names[:10])}"
            raise UserError(f"data.classes: {source} has no category {name}; {hint}")
    return [category for category in categories if category["name"] in classes]
