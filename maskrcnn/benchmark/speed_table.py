"""The figures of the speed suite for a terminal of 100 columns."""

from collections.abc import Sequence
from textwrap import shorten
from typing import Any

from maskrcnn.benchmark.agreement import SAME
from maskrcnn.benchmark.models_table import milliseconds
from maskrcnn.benchmark.speed_side import INFERENCE_STAGES, TRAIN_STAGES

_WIDTH = 100
_NAME = 22
_SIDES = {"ours": "", "torchvision": "peer_"}


def draw_table(values: dict[str, Any], *, precisions: Sequence[str]) -> str:
    """What was measured, a line for each piece of work and precision, then its stages, then the rest."""
    setup = values["setup"]
    height, width = setup["size"]
    lines = [
        f"speed: {height} x {width} pixels, {setup['instances']} instances each in training, "
        f"{setup['num_classes']} classes; {setup['device']}, threads: {setup['threads']}; rounds: {setup['rounds']}",
        f"train step: forward, backward, optimizer, {setup['batch_size']} pictures; inference: up to masks as run "
        "lengths",
        _agreement(values["agreement"]),
    ]
    lines += [f"{name}: not measured, {reason}" for name, reason in setup["absent"].items()]
    works = {f"inference {name[1:]}": rows for name, rows in values.get("inference", {}).items()}
    if "train" in values:
        works["train step"] = values["train"]
    rows = {f"{name} {precision}": works[name][precision] for name in works for precision in precisions}
    if "scoring" in values:
        rows["scoring"] = values["scoring"]
    if rows:
        lines += ["", *_costs(rows)]
    lines += _stages({name: row for name, row in rows.items() if name.startswith("train")}, TRAIN_STAGES)
    lines += _stages({name: row for name, row in rows.items() if name.startswith("inference")}, INFERENCE_STAGES)
    if "scoring" in values:
        counts = setup["scoring"]
        lines += [
            "",
            f"scoring: {counts['images']} images with {counts['detections']} detections each, boxes and masks; beside "
            "pycocotools,",
            f"largest difference of a number {values['scoring']['largest_difference']:.1g}",
        ]
    if "epoch" in values:
        lines += ["", *_epoch(values["epoch"], precisions, setup["pictures"])]
    if "host_syncs" in values:
        lines += ["", *_host_syncs(values["host_syncs"])]
    return "\n".join(lines)


def _agreement(found: dict[str, Any]) -> str:
    counts = f"{found['detections']} and {found['peer_detections']}"
    text = f"detections agree: of {counts}, {100 * found['matched']:.1f}% match (IoU >= {SAME})"
    if found["max_box_difference"] is None:
        return text
    return f"{text}, off by at most {found['max_box_difference']:.2g} px, score {found['max_score_difference']:.1g}"


def _costs(rows: dict[str, dict[str, Any]]) -> list[str]:
    """Times and memory; below an inference, what it takes the peer to get to its pasted masks."""
    sides = "".join(f"{side + ' ms':>15}{'min..max':>13}{'MB':>7}" for side in _SIDES)
    lines = [f"{'':{_NAME}}{sides}{'ratio':>8}"]
    for name, row in rows.items():
        lines.append(f"{name:{_NAME}}" + "".join(_cost(row, prefix) for prefix in _SIDES.values()) + _ratio(row))
        if "peer_pasted_seconds" in row:
            pasted = f"{milliseconds(row['peer_pasted_seconds']):>15}{'':20}"
            found = "{detections} and {peer_detections} detections".format_map(row)
            lines.append(f"{'  its masks pasted':{_NAME}}{found:>35}{pasted}{row['ratio_to_pasted']:7.2f}x")
        if row.get("ratio_to_fp32") and not name.endswith("fp32"):
            lines.append(f"{'  its fp32':{_NAME}}{'':70}{row['ratio_to_fp32']:7.2f}x")
    lines.append("(ratio: how many times faster ours is; MB: at most in use, more than before anything was loaded)")
    return lines


def _cost(row: dict[str, Any], prefix: str) -> str:
    low, high = (milliseconds(seconds) for seconds in row[f"{prefix}seconds_range"])
    peak = row[f"{prefix}peak_memory_mb"]
    memory = "-" if peak is None else f"{peak:.0f}"
    return f"{milliseconds(row[f'{prefix}seconds']):>15}{f'{low}..{high}':>13}{memory:>7}"


def _ratio(row: dict[str, Any]) -> str:
    return f"{row['ratio']:7.2f}x"


def _stages(rows: dict[str, dict[str, Any]], names: Sequence[str]) -> list[str]:
    """Milliseconds of each stage of each side."""
    if not rows:
        return []
    lines = ["", f"{'ms':35}" + "".join(f"{name:>10}" for name in names)]
    for work, row in rows.items():
        for side, prefix in _SIDES.items():
            stages = row[f"{prefix}stages"]
            cells = (milliseconds(stages[name]) if name in stages else "-" for name in names)
            lines.append(f"{f'{work}, {side}':35}" + "".join(f"{cell:>10}" for cell in cells))
    return lines


def _epoch(rows: dict[str, Any], precisions: Sequence[str], pictures: int) -> list[str]:
    if "absent" in rows:
        return _wrapped(f"epoch: not measured, {rows['absent']}")
    lines = [f"{f'epoch of {pictures} pictures':{_NAME}}{'ours':>10} images/s{'torchvision':>15}{'ratio':>8}"]
    for precision in precisions:
        row = rows[precision]
        peer, ratio = row["peer_images_per_second"], row["ratio"]
        text = f"{f'  {precision}':{_NAME}}{row['images_per_second']:10.2f}{'':9}"
        lines.append(text if peer is None else f"{text}{peer:15.2f}{ratio:7.2f}x")
    return [*lines, *_wrapped(f"torchvision absent: {rows['peer_absent']}")] if rows["peer_absent"] else lines


def _host_syncs(rows: dict[str, Any]) -> list[str]:
    if "absent" in rows:
        return [f"host syncs of a training step: not counted, {rows['absent']}"]
    lines = []
    for precision, row in rows.items():
        lines.append(f"host syncs of a training step, {precision}: {row['number']}; torchvision's {row['peer_number']}")
        lines += [shorten(f"{number:6} {place}", _WIDTH, placeholder=" ...") for place, number in row["places"].items()]
    return lines


def _wrapped(text: str) -> list[str]:
    return [shorten(text, _WIDTH, placeholder=" ...")]
