"""The splits of a data set as far as they can be read, whatever is wrong with them."""

import re
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from maskrcnn.data.annotations import Annotations
from maskrcnn.data.datamodule import DetectionDataModule
from maskrcnn.data.dataset import InstanceDataset
from maskrcnn.data.split import Split
from maskrcnn.errors import UserError

# What would break a line, a terminal or an encoding.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


@dataclass(frozen=True)
class Finding:
    """Something that is wrong, or worth knowing.

    Attributes:
        grade: "error" if training cannot start or would stop, else "warning".
        kind: What it has in common with others, in the plural.
        split: Where it was found.
        message: One line.
        file, image_id, annotation_id: Which picture and annotation, where it is about one.
    """

    grade: Literal["error", "warning"]
    kind: str
    split: str
    message: str
    file: str | None = None
    image_id: int | None = None
    annotation_id: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "message", printable(self.message))
        object.__setattr__(self, "file", None if self.file is None else printable(self.file))


@dataclass
class CheckedSplit:
    """One split: what was read of it, and what was found out.

    Attributes:
        name: "train", "val" or "test"; "train + val" where `data.val_fraction` divides one file.
        dataset: Where its pictures come from.
        content: All of its pictures, with the instances that count.
        used: bool [N], pictures that training or validation reads.
        whole: bool [N], pictures that could be decoded; False until `check_pictures`.
        digests: Of the bytes of each picture file, empty where there is none; likewise.
        findings: What is wrong with single pictures.
    """

    name: str
    dataset: InstanceDataset
    content: Split
    used: np.ndarray
    whole: np.ndarray
    digests: list[bytes] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    @property
    def annotations(self) -> Annotations:
        """What could be read of the annotation file."""
        return self.dataset.annotations

    def about_image(
        self, position: int, message: str, *, grade: Literal["error", "warning"] = "warning", kind: str, **more: Any
    ) -> Finding:
        """A finding about image 0..N-1; `message` follows its name, with a colon if it begins with one."""
        name = self.annotations.file_name(position)
        image_id = int(self.annotations.image_ids[position])
        separator = "" if message.startswith(":") else " "
        text = f"{self.dataset.image_path(position)} (image id {image_id}){separator}{message}"
        return Finding(grade, kind, self.name, text, file=name, image_id=image_id, **more)


def read_splits(data: DetectionDataModule) -> tuple[list[CheckedSplit], list[Finding]]:
    """Every split that can be read, and what is wrong with the annotation files.

    Raises:
        UserError: There is nothing to check: no folder, no such class, neither split can be read.
    """
    data.prepare_files()
    splits: list[CheckedSplit] = []
    findings: list[Finding] = []
    for name in ("train", "val", "test"):
        if (name == "val" and data.val_fraction is not None) or (name == "test" and not _has_test(data)):
            continue
        title = "train + val" if name == "train" and data.val_fraction is not None else name
        try:
            dataset = data.open(name)
            annotations, problems = dataset.read_annotations()
        except UserError as error:
            findings.append(_of_file(title, "annotation files that cannot be read", str(error)))
            continue
        # Read in spite of its problems; otherwise they would be raised on first use.
        dataset.annotations = annotations
        findings += [_of_file(title, "broken annotations", problem.message) for problem in problems]
        splits.append(_checked_split(title, dataset, data))
    if not splits:
        raise UserError(findings[0].message)
    return splits, findings


def printable(text: str) -> str:
    """The text with line breaks, control characters and what no encoding holds as escapes."""
    return _UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def _checked_split(title: str, dataset: InstanceDataset, data: DetectionDataModule) -> CheckedSplit:
    count = len(dataset.annotations.image_ids)
    content = Split(dataset, positions=np.arange(count), classes=data.classes, use_crowd=data.use_crowd)
    used = np.full(count, title != "test")
    if title == "train" and data.remove_blank:
        used &= content.instances_per_image > 0
    return CheckedSplit(title, dataset, content, used, whole=np.zeros(count, dtype=bool), digests=[b""] * count)


def _has_test(data: DetectionDataModule) -> bool:
    try:
        return data.files("test")[0].exists()
    except UserError:
        return False


def _of_file(split: str, kind: str, message: str) -> Finding:
    return Finding("warning" if split == "test" else "error", kind, split, message)
