"""A file of the size of COCO train2017: how long it takes, and what memory it needs."""

import json
import multiprocessing
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from torch.utils.data import DataLoader, Dataset

from maskrcnn.data.coco import CocoDataset

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="memory is read from /proc"),
]

IMAGES, INSTANCES, CATEGORIES = 118_000, 860_000, 80

LOAD = """
import json, sys, time
from pathlib import Path
from maskrcnn.data.coco import CocoDataset
start = time.perf_counter()
annotations = CocoDataset(annotations=Path(sys.argv[1]), images=Path("."), cache=Path(sys.argv[2])).annotations
seconds = time.perf_counter() - start
lines = [Path(f"/proc/self/{name}").read_text().splitlines() for name in ("status", "smaps_rollup")]
memory = {key: int(rest.split()[0]) / 2**20 for key, rest in (line.split(":", 1) for line in lines[0] + lines[1][1:])
          if rest.endswith("kB")}
print(json.dumps({
    "seconds": seconds,
    "peak_gb": memory["VmHWM"],
    "private_gb": memory["Private_Clean"] + memory["Private_Dirty"],
    "instances": len(annotations.labels),
    "images": len(annotations.image_ids),
    "notes": annotations.notes,
}))
"""


def outlines(rng, count=2000):
    """JSON texts of segmentation, area and bbox as COCO has them: 25 points on average, some in two parts."""
    texts = []
    for _ in range(count):
        rings, area = [], 0.0
        for _ in range(1 + (rng.random() < 0.1)):
            angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(6, 40)))
            radius = rng.uniform(20, 100)
            ring = np.round(np.stack((np.cos(angles), np.sin(angles)), axis=1) * radius + (320, 240), 2)
            x, y = ring.T
            area += abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2
            rings.append(ring)
        low, high = np.concatenate(rings).min(axis=0), np.concatenate(rings).max(axis=0)
        box = [*low.tolist(), *np.round(high - low, 2).tolist()]
        segmentation = json.dumps([ring.ravel().tolist() for ring in rings])
        texts.append(f'{{"segmentation": {segmentation}, "area": {area}, "iscrowd": 0, "bbox": {json.dumps(box)}, ')
    crowd = {"segmentation": {"counts": [0, 480 * 640], "size": [480, 640]}, "area": 480 * 640, "iscrowd": 1}
    texts += [json.dumps(crowd | {"bbox": [0, 0, 640, 480]})[:-1] + ", "] * (count // 100)
    return texts


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """The file: annotations in no order, categories last."""
    rng = np.random.default_rng(0)
    texts = outlines(rng)
    chosen = rng.integers(0, len(texts), INSTANCES)
    image_ids = rng.integers(1, IMAGES + 1, INSTANCES)
    category_ids = rng.integers(1, CATEGORIES + 1, INSTANCES)
    path = tmp_path_factory.mktemp("scale") / "instances_train2017.json"
    with path.open("w") as file:
        images = ({"file_name": f"{i:012d}.jpg", "height": 480, "width": 640, "id": i} for i in range(1, IMAGES + 1))
        file.write('{"info": {}, "licenses": [], "images": [')
        file.write(", ".join(map(json.dumps, images)))
        file.write('], "annotations": [')
        for i, (text, image_id, category_id) in enumerate(zip(chosen, image_ids, category_ids, strict=True)):
            entry = f'"image_id": {image_id}, "category_id": {category_id}, "id": {i + 1}}}'
            file.write(f"{', ' if i else ''}{texts[text]}{entry}")
        file.write('], "categories": ')
        json.dump([{"id": i, "name": f"thing {i}"} for i in range(1, CATEGORIES + 1)], file)
        file.write("}")
    yield path
    path.unlink()


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def load(source, cache):
    outcome = subprocess.run(
        [sys.executable, "-c", LOAD, source, cache], capture_output=True, text=True, check=True, timeout=600
    )
    return json.loads(outcome.stdout)


def test_first_and_second_load(source, cache):
    first, second = load(source, cache), load(source, cache)
    print(f"\n{source.stat().st_size / 1e6:.0f} MB of JSON\n first: {first}\nsecond: {second}")
    for figures in (first, second):
        assert (figures["images"], figures["instances"], figures["notes"]) == (IMAGES, INSTANCES, [])
    assert first["seconds"] < 60
    assert first["peak_gb"] < 3.5
    assert second["seconds"] < 2
    assert second["private_gb"] < 0.5


class Outlines(Dataset):
    """Number of points of image i."""

    def __init__(self, annotations):
        self.annotations = annotations

    def __len__(self):
        return len(self.annotations.image_ids)

    def __getitem__(self, index):
        instances = range(*self.annotations.first_instance[index : index + 2])
        outlines = [self.annotations.outline(instance) for instance in instances]
        return sum(np.isfinite(ring).all(axis=1).sum() for outline in outlines for ring in outline.polygons)


def proportional_memory(pid):
    """Megabytes; a page that n processes share counts 1 / n."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def test_memory_of_workers_is_flat(source, cache):
    annotations = CocoDataset(annotations=source, images=Path(), cache=cache).annotations
    loader = DataLoader(Outlines(annotations), batch_size=256, collate_fn=sum, num_workers=2, persistent_workers=True)
    memory = []
    for _ in range(5):
        assert sum(loader) == len(annotations.points)
        memory.append(sum(proportional_memory(child.pid) for child in multiprocessing.active_children()))
    print(f"\nMB of both workers after each pass: {[round(megabytes) for megabytes in memory]}")
    assert max(memory) < 1.05 * memory[0]
