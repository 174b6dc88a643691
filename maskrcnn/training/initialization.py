"""What a run took over from the weights that it starts from: a listing, and every name in `init.json`."""

import json
import re
from collections import Counter
from difflib import get_close_matches
from pathlib import Path
from textwrap import fill
from typing import Any

from pytorch_lightning import Trainer

from maskrcnn.models.weights import Differences, Transfer

_WIDTH = 80
_LISTED = 12  # names of classes in a line
_PARTS = ("backbone", "neck", "rpn", "box head", "mask head")
_HEADER = ("part", "kept", "by class", "fresh", "unused")


def announce_transfer(trainer: Trainer, transfer: Transfer, settings: Differences) -> None:
    """Print what was kept, carried over by the names of classes, freshly initialised and left; write all names.

    Args:
        trainer: Of the run.
        transfer: What the model took over.
        settings: Dotted keys of `model` that the weights were made for with another value: (there, here).
    """
    if not trainer.is_global_zero:
        return
    file = Path(trainer.default_root_dir) / "init.json"
    trial = bool(trainer.fast_dev_run)  # type: ignore[attr-defined]
    lines = [*transfer_lines(transfer, file=None if trial else file), *setting_lines(transfer.groups, settings)]
    print("\n".join(lines), flush=True)
    if not trial:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(_record(transfer, settings), indent=1), encoding="utf-8")


def transfer_lines(transfer: Transfer, *, file: Path | None = None) -> list[str]:
    """The listing of one transfer, by part of the model.

    Args:
        transfer: What the model took over.
        file: Where all names are, for a list that is cut short.
    """
    if transfer.complete:
        return [f"init={transfer.path}: all weights taken over"]
    columns = [
        Counter(map(_part, names)) for names in (transfer.kept, transfer.mapped, transfer.fresh, transfer.unused)
    ]
    parts = sorted(set().union(*columns), key=_place)
    rows = [_HEADER, *((part, *(str(column[part]) for column in columns)) for part in parts)]
    return [
        f"init={transfer.path}",
        *("".join((row[0].ljust(14), *(cell.rjust(10) for cell in row[1:]))) for row in rows),
        *_class_lines(transfer),
        *_reason_lines(transfer, file),
    ]


def _part(name: str) -> str:
    """What a parameter belongs to, in words."""
    head = re.match(r"roi_heads\.(?:box_heads\.(\d)|(mask_head))", name)
    if head:
        return "mask head" if head[2] else f"box head {int(head[1]) + 1}"
    return name.partition(".")[0]


def _place(part: str) -> tuple[int, str]:
    return next((i for i, known in enumerate(_PARTS) if part.startswith(known)), len(_PARTS)), part


def _class_lines(transfer: Transfer) -> list[str]:
    """Which classes have their rows from the file; names that are nearly those of another class."""
    old, new = transfer.old_classes, transfer.new_classes
    if old == new:
        return []
    carried, added = [name for name in new if name in old], [name for name in new if name not in old]
    left = list(dict.fromkeys(name for name in old if name not in new))  # COCO's gaps have one name
    if left == [str(label) for label in range(1, len(old) + 1)]:
        left = [f"{len(old)} classes that the file does not name"]
    lines = [
        _wrapped(f"{label:<9}{_names(names)}")
        for label, names in (("carried", carried), ("new", added), ("left", left))
        if names
    ]
    spelled = {_spelling(name): name for name in left}
    for name in added:
        near = get_close_matches(_spelling(name), spelled, n=1, cutoff=0.8)
        if near:
            there = spelled[near[0]]
            lines.append(_wrapped(f"{'similar':<9}{name} here, {there} there: only equal names are carried over"))
    return lines


def _spelling(name: str) -> str:
    return re.sub(r"[\W_]+", " ", name.casefold()).strip()


def _names(names: list[str]) -> str:
    more = f", and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def _reason_lines(transfer: Transfer, file: Path | None) -> list[str]:
    """For each part the first that is fresh, and why."""
    by_part: dict[str, list[str]] = {}
    for name in transfer.fresh:
        by_part.setdefault(_part(name), []).append(name)
    lines = []
    for names in by_part.values():
        more = f" (and {len(names) - 1} more of this part)" if len(names) > 1 else ""
        lines.append(_wrapped(f"{'fresh':<9}{names[0]}: {transfer.fresh[names[0]]}{more}"))
    return [*lines, f"{'all':<9}{file}"] if file else lines


def setting_lines(groups: dict[str, str], settings: Differences) -> list[str]:
    """The overrides that would make the model the one that the weights were made for.

    Args:
        groups: The config options that stand for that model, {} for a checkpoint of ours.
        settings: Dotted keys of `model`: (value there, value here).
    """
    if not settings:
        return []
    origin = " ".join(f"{group}={option}" for group, option in groups.items()) or "a model with other settings"
    pairs = [(f"model.{key}={_value(there)}", _value(here)) for key, (there, here) in settings.items()]
    return [f"made for {origin}; to have them here:", *(f"  {override}  # here {here}" for override, here in pairs)]


def _value(value: Any) -> str:
    """As one types it."""
    return json.dumps(value).replace('"', "").replace(", ", ",")


def _wrapped(line: str) -> str:
    return fill(line, _WIDTH, subsequent_indent=" " * 9, break_long_words=False, break_on_hyphens=False)


def _record(transfer: Transfer, settings: Differences) -> dict[str, Any]:
    return {
        "init": str(transfer.path),
        "kept": transfer.kept,
        "mapped": transfer.mapped,
        "fresh": transfer.fresh,
        "unused": transfer.unused,
        "old_classes": transfer.old_classes,
        "new_classes": transfer.new_classes,
        "settings": {key: {"there": there, "here": here} for key, (there, here) in settings.items()},
    }
