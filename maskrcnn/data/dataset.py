"""What the data module asks of a data set: its annotations, and one picture after the other."""

from functools import cached_property
from pathlib import Path

import numpy as np

from maskrcnn.data.annotations import Annotations, Problem
from maskrcnn.data.images import check_images, read_image
from maskrcnn.errors import UserError


class InstanceDataset:
    """Base class of a data set; a format of your own overrides `read_annotations`.

    For example, a file of lines "picture width height x y w h", all of one class::

        class Boxes(InstanceDataset):
            def read_annotations(self):
                images, annotations = {}, []
                for line in self.source.read_text().splitlines():
                    name, *numbers = line.split()
                    width, height, *box = map(int, numbers)
                    image = images.setdefault(name, {"id": len(images) + 1, "file_name": name})
                    image |= {"width": width, "height": height}
                    annotations.append({"image_id": image["id"], "category_id": 1, "bbox": box})
                return index_annotations(
                    source=self.source,
                    categories=[{"id": 1, "name": "thing"}],
                    images=images.values(),
                    annotations=annotations,
                )

    Args:
        annotations: The annotation file.
        images: Folder of the picture files.
        cache: Folder of indexed annotation files, for formats that use one; null for the default.

    Attributes:
        source: The annotation file.
        images: Folder of the picture files.
        cache: Folder of indexed annotation files, or None.
    """

    def __init__(self, *, annotations: Path, images: Path, cache: Path | None = None) -> None:
        self.source = Path(annotations)
        self.images = Path(images)
        self.cache = None if cache is None else Path(cache)

    def read_annotations(self) -> tuple[Annotations, list[Problem]]:
        """Read the annotation file; `index_annotations` does the checks and makes the arrays.

        Returns:
            What could be read, and everything that is wrong with the rest.

        Raises:
            UserError: The file as a whole can't be read.
        """
        raise NotImplementedError(f"{type(self).__name__} must override read_annotations")

    @cached_property
    def annotations(self) -> Annotations:
        """The annotations, read once.

        Raises:
            UserError: The file can't be read, or has problems: the first of them.
        """
        annotations, problems = self._content
        if problems:
            more = len(problems) - 1
            others = f"{more} more problem{'s' if more > 1 else ''}; python -m maskrcnn.check_data lists them"
            raise UserError(f"{problems[0].message}{f' (and {others})' if more else ''}")
        return annotations

    @property
    def problems(self) -> list[Problem]:
        """Everything that is wrong with single entries of the annotation file.

        Raises:
            UserError: The file as a whole can't be read.
        """
        return self._content[1]

    def image_path(self, position: int) -> Path:
        """The file of image 0..N-1."""
        return self.images / self.annotations.file_name(position)

    def read_image(self, position: int, *, shrink: int = 1) -> np.ndarray:
        """RGB uint8 [ceil(H / shrink), ceil(W / shrink), 3] of image 0..N-1; `shrink` is 1, 2, 4 or 8.

        Raises:
            UserError: The file is missing, damaged, or not of the annotated size.
        """
        height, width = self.annotations.sizes[position].tolist()
        image_id = int(self.annotations.image_ids[position])
        return read_image(self.image_path(position), image_id=image_id, size=(height, width), shrink=shrink)

    def check_images(self, positions: np.ndarray) -> None:
        """Look for damaged and missing files among some of the images before a run starts.

        Raises:
            UserError: The first file that is missing, truncated, not a picture or not of the annotated size.
        """
        annotations = self.annotations
        check_images(
            [self.image_path(position) for position in positions],
            annotations.image_ids[positions].tolist(),
            sizes=[(height, width) for height, width in annotations.sizes[positions].tolist()],
        )

    @cached_property
    def _content(self) -> tuple[Annotations, list[Problem]]:
        return self.read_annotations()
