"""The figures of the data suite for a terminal of 80 columns."""

from collections.abc import Sequence
from typing import Any

from maskrcnn.benchmark.side import STAGES

PEER = "torchvision lsj"


def draw_table(values: dict[str, Any], presets: Sequence[str]) -> str:
    """Lines of speed and weight of each preset and the peer, then of the milliseconds per picture and stage."""
    setup, mosaics = values["setup"], values["batch_of_mosaics"]
    lines = [
        f"data: {setup['rounds']} rounds of {setup['pictures']} pictures, sides up to {setup['max_size']} pixels, "
        f"batches of {setup['batch_size']}",
        "",
        f"{'one worker process':19}{'images/s':>9}  {'min..max':15}{'ratio':>6}   {'MB pixels':>9}  targets  inst.",
    ]
    for name in presets:
        row = values[name]
        lines.append(
            _row(name, row["images_per_second"], row["images_per_second_range"], row["ratio"], row["mb_per_batch"])
        )
    row = values[presets[0]]
    if setup["peer_absent"]:
        lines.append(f"{PEER:19}absent: {setup['peer_absent']}")
    else:
        speed, limits = row["peer_images_per_second"], row["peer_images_per_second_range"]
        lines.append(_row(PEER, speed, limits, None, row["peer_mb_per_batch"]))
    lines += [
        f"4 mosaics with {mosaics['instances']} instances: {mosaics['mb']:.1f} MB; "
        f"with dense float32 masks {mosaics['dense_mb']:.1f} MB",
        "",
        f"{'ms per picture':15}" + "".join(f"{stage:>{_width(stage)}}" for stage in STAGES),
    ]
    for name in presets:
        stages = values[name]["stages"]
        lines.append(f"{name[:14]:15}" + "".join(f"{stages[stage]:{_width(stage)}.2f}" for stage in STAGES))
    overhead = max(values[name]["timing_overhead"] for name in presets)
    lines.append(f"(transfer: what the loader adds; the timers take up to {overhead:.3f} ms of these)")
    return "\n".join(lines)


def _row(name: str, speed: float, limits: Sequence[float], ratio: float | None, weight: dict[str, float]) -> str:
    spread = f"{limits[0]:.1f}..{limits[1]:.1f}"
    factor = "" if ratio is None else f"{ratio:.1f}x"
    return (
        f"{name[:18]:19}{speed:9.1f}  {spread:15}{factor:>6}   "
        f"{weight['pixels']:9.2f}{weight['targets']:9.2f}{weight['instances']:7.1f}"
    )


def _width(stage: str) -> int:
    return max(len(stage) + 1, 6)
