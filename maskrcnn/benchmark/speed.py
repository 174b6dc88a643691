"""Suite speed: this package beside torchvision's maskrcnn_resnet50_fpn, with the same weights and pictures.

Each side lives in a process of its own, and they take turns: what slows the machine down for a while slows both.
Round 0 warms up.
"""

from contextlib import ExitStack
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch

from maskrcnn.benchmark.agreement import compare
from maskrcnn.benchmark.epochs import why_no_epoch
from maskrcnn.benchmark.meter import Cost
from maskrcnn.benchmark.models import choose_device, device_name, make_work, usable_precisions
from maskrcnn.benchmark.our_side import OurSide
from maskrcnn.benchmark.process import Resident
from maskrcnn.benchmark.report import Result, Spread, check_counts
from maskrcnn.benchmark.scoring import largest_difference
from maskrcnn.benchmark.speed_side import ENCODE, Job, Sample
from maskrcnn.benchmark.speed_table import draw_table
from maskrcnn.benchmark.torchvision_side import TorchvisionSide
from maskrcnn.config import variant
from maskrcnn.errors import UserError

PARTS = ("inference", "train", "epoch", "scoring")
# torchvision's own settings, the stages that it freezes where its weights are not random, and our faster RoIAlign.
PEER_MODEL = ("model=torchvision", "model.backbone.frozen_stages=2", "model.roi_align.gather=true")


def measure(settings: dict[str, Any]) -> Result:
    """Measure both sides.

    Raises:
        UserError: A setting is out of range, or the model is none that torchvision has.
    """
    check_counts(settings, "rounds", "instances", "epochs", "pictures")
    parts, counts = _choices(settings)
    device = choose_device(settings["device"])
    precisions, missing = usable_precisions(settings["precisions"] or ["fp32", "bf16"], device)
    node = variant(PEER_MODEL, node="model")
    work = make_work(node, settings, device)
    no_epoch = why_no_epoch(settings, num_classes=work.num_classes) if "epoch" in parts else None
    values: dict[str, Any] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        job = Job(node, work, folder / "weights.pth", settings)
        peer = stack.enter_context(Resident(TorchvisionSide, job))  # first: it writes the weights
        ours = stack.enter_context(Resident(OurSide, job))
        sides = Sides(ours, peer, rounds=settings["rounds"])
        values["agreement"] = compare(*sides.each("detections"))
        sides.each("settle")
        if "inference" in parts:  # before training, since it needs less memory
            values["inference"] = {
                f"b{count}": sides.compare(precisions, "infer", count, label=f"inference of {count}")
                for count in counts
            }
        if "train" in parts:
            values["train"] = sides.compare(precisions, "train", label="train step")
            values["host_syncs"] = sides.host_syncs(precisions, device)
        if "epoch" in parts:
            values["epoch"] = {"absent": no_epoch} if no_epoch else sides.epochs(precisions, settings["epochs"])
        if "scoring" in parts:
            values["scoring"] = sides.scoring()
    values["setup"] = {
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "size": list(work.size),
        "batch_size": work.batch_size,
        "instances": work.instances,
        "num_classes": work.num_classes,
        "rounds": settings["rounds"],
        "absent": missing,
        "pictures": settings["pictures"],
        "scoring": settings["scoring"],
    }
    return Result(values, draw_table(values, precisions=precisions))


def _choices(settings: dict[str, Any]) -> tuple[list[str], list[int]]:
    """The parts, and the pictures of an inference."""
    parts, counts = settings["parts"], settings["inference_batches"]
    unknown = next((part for part in parts if part not in PARTS), None)
    if unknown or not parts:
        raise UserError(f"parts: no part {unknown}; known are {', '.join(PARTS)}")
    if "scoring" in parts:
        check_counts(settings["scoring"], *settings["scoring"], prefix="scoring.")
    if not isinstance(counts, list) or not all(type(count) is int and count > 0 for count in counts):
        raise UserError(f"inference_batches={counts}: must be a list of whole numbers, each at least 1")
    return parts, counts


class Sides:
    """Asks both sides in turn.

    Args:
        ours, peer: Where they live.
        rounds: Of the clock.
    """

    def __init__(self, ours: Resident, peer: Resident, *, rounds: int) -> None:
        self.ours = ours
        self.peer = peer
        self.rounds = rounds

    def each(self, method: str, *args: Any) -> tuple[Any, Any]:
        """What both say."""
        return self.ours.call(method, *args), self.peer.call(method, *args)

    def compare(self, precisions: list[str], method: str, *args: Any, label: str) -> dict[str, Any]:
        """A row for each precision; ratios say how many times faster ours is."""
        rows: dict[str, Any] = {}
        for precision in precisions:
            _tell(f"{label}, {precision}")
            self.each("rest")
            pairs = [self.each(method, *args, precision) for _ in range(self.rounds + 1)]
            rows[precision] = row(*zip(*pairs, strict=True))
            if "fp32" in rows:
                rows[precision]["ratio_to_fp32"] = rows["fp32"]["peer_seconds"] / rows[precision]["seconds"]
        return rows

    def host_syncs(self, precisions: list[str], device: torch.device) -> dict[str, Any]:
        """Of a training step, for each precision: the places of ours, and the number of the peer's."""
        if device.type != "cuda":
            return {"absent": "that needs device=cuda"}
        rows = {}
        for precision in precisions:
            ours, peer = self.each("host_syncs", precision)
            rows[precision] = {
                "number": sum(ours.values()),
                "places": ours,
                "peer_number": sum(peer.values()),
                "peer_places": peer,
            }
        return rows

    def epochs(self, precisions: list[str], count: int) -> dict[str, Any]:
        """Pictures per second of both, of so many epochs."""
        _tell("loaders")
        _, peer_absent = self.each("open_loader")
        rows: dict[str, Any] = {"peer_absent": peer_absent}
        for precision in precisions:
            _tell(f"epochs, {precision}")
            self.each("train", precision)  # warms up
            ours, peers = [], []
            for number in range(1, count + 1):
                ours.append(self.ours.call("epoch", number, precision))
                if not peer_absent:
                    peers.append(self.peer.call("epoch", number, precision))
            rows[precision] = {
                "images_per_second": median(ours),
                "images_per_second_range": Spread(ours).limits,
                "peer_images_per_second": median(peers) if peers else None,
                "peer_images_per_second_range": Spread(peers).limits if peers else None,
                "ratio": median(ours) / median(peers) if peers else None,
            }
        return rows

    def scoring(self) -> dict[str, Any]:
        """Seconds of both, and how far their numbers are apart."""
        _tell("scoring")
        self.each("rest")
        pairs = [self.each("score") for _ in range(self.rounds + 1)]
        ours, peer = zip(*pairs, strict=True)
        found = row([sample for sample, _ in ours], [sample for sample, _ in peer])
        return found | {"largest_difference": largest_difference(ours[0][1], peer[0][1])}


def row(ours: Any, peer: Any) -> dict[str, Any]:
    """The figures of both sides from the `Sample`s of all rounds, of which the first warmed up."""
    values = Cost.of_rounds([sample[:2] for sample in ours]).values()
    peer_values = Cost.of_rounds([sample[:2] for sample in peer]).values()
    values |= {f"peer_{name}": value for name, value in peer_values.items()}
    values["ratio"] = values["peer_seconds"] / values["seconds"]
    values["stages"], values["peer_stages"] = _stages(ours), _stages(peer)
    pasted = [sample.seconds - sample.stages[ENCODE] for sample in peer[1:] if ENCODE in sample.stages]
    if pasted:
        values["detections"], values["peer_detections"] = ours[0].detections, peer[0].detections
        values["peer_pasted_seconds"] = median(pasted)
        values["ratio_to_pasted"] = values["peer_pasted_seconds"] / values["seconds"]
    return values


def _stages(samples: list[Sample]) -> dict[str, float]:
    return {name: median(sample.stages[name] for sample in samples[1:]) for name in samples[0].stages}


def _tell(what: str) -> None:
    print(what, flush=True)
