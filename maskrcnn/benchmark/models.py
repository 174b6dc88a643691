"""Suite models: what each backbone, neck and head costs in parameters, operations, time and memory.

Each network and precision is measured in a process of its own. Inference comes first: it needs less memory.
"""

from dataclasses import dataclass
from itertools import product
from typing import Any

import torch

from maskrcnn.benchmark.meter import Meter, gigaflops
from maskrcnn.benchmark.models_table import draw_table
from maskrcnn.benchmark.networks import Work, ours, torchvisions
from maskrcnn.benchmark.process import in_own_process
from maskrcnn.benchmark.report import Result, check_counts
from maskrcnn.building import one_line
from maskrcnn.config import computes_bfloat16, variant
from maskrcnn.errors import UserError

PEER = "torchvision"  # its maskrcnn_resnet50_fpn
PRECISIONS = ("fp32", "bf16")


@dataclass(frozen=True)
class Job:
    """One measurement.

    Attributes:
        node: The plain config of the model.
        peer: Measure torchvision's in its place.
        trust: Packages that it may be built from, besides ours.
        work: What the network is given.
        precision: One of PRECISIONS.
        rounds: Of the clock.
    """

    node: dict[str, Any]
    peer: bool
    trust: list[str]
    work: Work
    precision: str
    rounds: int


def measure(settings: dict[str, Any]) -> Result:
    """Measure the networks of `models` and `grid`, and torchvision's beside them.

    A network that fails has the reason in its place.

    Raises:
        UserError: A setting is out of range, or overrides do not fit the config.
    """
    check_counts(settings, "rounds", "instances")
    device = choose_device(settings["device"])
    precisions, missing = usable_precisions(settings["precisions"] or ["fp32"], device)
    rows = _rows(settings)
    nodes = {name: variant(rows[name], node="model") for name in rows} | {PEER: settings["model"]}
    works = {name: make_work(node, settings, device) for name, node in nodes.items()}
    values: dict[str, Any] = {name: {} for name in nodes}
    for number, (name, precision) in enumerate(product(nodes, precisions), start=1):
        print(f"{number}/{len(nodes) * len(precisions)} {name} {precision}", flush=True)
        job = Job(nodes[name], name == PEER, settings["trust"], works[name], precision, settings["rounds"])
        try:
            found = in_own_process(measure_one, job)
        except Exception as error:  # whatever ends one network, the others are measured
            found = {"failed": one_line(error)}
        values[name] |= {key: found.pop(key) for key in ("parameters", "gflops") if key in found}
        values[name][precision] = found
    values["setup"] = {
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "size": list(works[PEER].size),
        "batch_size": works[PEER].batch_size,
        "instances": works[PEER].instances,
        "num_classes": works[PEER].num_classes,
        "rounds": settings["rounds"],
        "absent": missing,
    }
    return Result(values, draw_table(values, names=list(nodes), precisions=precisions))


def measure_one(job: Job) -> dict[str, Any]:
    """Parameters, operations of one picture, seconds and memory of a training step and of one picture."""
    meter = Meter(job.work.device, rounds=job.rounds)
    autocast = torch.autocast(job.work.device.type, dtype=torch.bfloat16, enabled=job.precision == "bf16")
    network = torchvisions(job.node, job.work) if job.peer else ours(job.node, job.work, trust=job.trust)
    inference = meter.measure(lambda: network.predict(autocast))
    train = meter.measure(lambda: network.train_step(autocast))
    gflops, detections = gigaflops(lambda: network.predict(autocast))
    return {
        "parameters": network.parameters,
        "gflops": gflops,
        "detections": len(detections["labels"]),
        "train": train.values(),
        "inference": inference.values(),
    }


def _rows(settings: dict[str, Any]) -> dict[str, list[str]]:
    """Name of each row -> its overrides."""
    known = settings["combinations"]
    rows = {}
    for name in settings["models"]:
        if name not in known:
            raise UserError(
                f"models: no combination {name}; known are {', '.join(known)} (one of your own: "
                """"+combinations.<name>=['model/backbone=...','model/neck=...']")"""
            )
        rows[name] = known[name]
    groups = settings["grid"]
    for choice in product(*groups.values()):
        rows["-".join(choice)] = [f"model/{group}={option}" for group, option in zip(groups, choice, strict=True)]
    return rows


def make_work(node: dict[str, Any], settings: dict[str, Any], device: torch.device) -> Work:
    """What the settings of the command give to a network of a config node `model`."""
    return Work(
        size=(node["input"]["min_size"], node["input"]["max_size"]),
        batch_size=settings["data"]["batch_size"],
        instances=settings["instances"],
        num_classes=node["num_classes"],
        seed=settings["seed"],
        device=device,
    )


def choose_device(name: str | None) -> torch.device:
    """The one that `device` names; the GPU where it is null and there is one."""
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device={name}: cannot be used ({one_line(error)})") from error
    return device


def device_name(device: torch.device) -> str:
    """For people."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def usable_precisions(names: list[str], device: torch.device) -> tuple[list[str], dict[str, str]]:
    """Those that the device computes in, and why the others are left out."""
    absent = {}
    for name in names:
        if name not in PRECISIONS:
            raise UserError(f"precisions: no precision {name}; known are {', '.join(PRECISIONS)}")
        if name == "bf16" and not computes_bfloat16(device.type):
            missing = ", it has no avx512_bf16" if device.type == "cpu" else ""
            absent[name] = f"this device does not compute in bfloat16 by itself{missing}"
    return [name for name in names if name not in absent], absent
