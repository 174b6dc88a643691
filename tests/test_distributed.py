"""Several processes on CPUs, started by the commands themselves or by torchrun."""

import inspect
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from subprocess import PIPE

import cv2
import numpy as np
import pytest
import torch

from maskrcnn.data.samplers import EpochSampler
from maskrcnn.data.shapes import draw_shapes
from maskrcnn.training.module import MaskRCNNModule
from tests.cli_tools import TINY, Outcome, files, run
from tests.test_resume import assert_same_end, load

TOP = Path(__file__).parent.parent
ALONE = (*TINY, "trainer.enable_progress_bar=false", "data=coco")
TRAIN = (*ALONE, "trainer.max_epochs=2", "trainer.log_every_n_steps=1", "logger=csv", "data.batch_size=2")
STEPS = 3  # per epoch, of two processes with two pictures each


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Five pictures to validate are three batches: dealt whole, the ranks get different numbers of them."""
    folder = tmp_path_factory.mktemp("distributed") / "shapes"
    draw_shapes(folder, train_images=13, val_images=5, image_size=64)
    return folder


def launch(command, *arguments, folder, patch=None, by=(sys.executable,)):
    """Run `command.py arguments...` in `folder`, as a process that starts others; `patch` is called in each."""
    script = TOP / f"{command}.py"
    if patch:
        script = folder / "patched.py"
        body = f"    {patch.__name__}()\n    import {command}\n    {command}.main()\n"
        source = f"{inspect.getsource(patch)}\nif __name__ == '__main__':\n{body}"
        script.write_text(source, encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(TOP)}
    command = [*by, str(script), *arguments]
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdout=PIPE, stderr=PIPE, text=True, start_new_session=True
    )
    try:
        out, err = process.communicate(timeout=300)  # until the last of the processes has ended
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return Outcome(process.returncode, out, err)


def report():
    """Each rank writes to the run folder what it has at each validation, and what it validated."""
    import json
    from pathlib import Path

    from maskrcnn.training.module import MaskRCNNModule

    start, end = MaskRCNNModule.on_validation_epoch_start, MaskRCNNModule.on_validation_epoch_end

    def digest(tensors):
        return [float(tensor.double().abs().sum()) for tensor in tensors]

    def on_validation_epoch_start(self):
        start(self)
        self.__dict__.setdefault("tables", []).append(
            {"parameters": digest(self.parameters()), "buffers": digest(self.buffers())}
        )

    def on_validation_epoch_end(self):
        self.tables[-1]["images"] = len(self.metric._by_image)
        end(self)
        self.tables[-1]["scores"] = self.scores
        path = Path(self.trainer.default_root_dir) / f"rank{self.global_rank}.json"
        path.write_text(json.dumps(self.tables), encoding="utf-8")

    MaskRCNNModule.on_validation_epoch_start = on_validation_epoch_start
    MaskRCNNModule.on_validation_epoch_end = on_validation_epoch_end


def reports(folder, ranks=2):
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(ranks)]


def assert_one_model(folder, images=([3, 3], [2, 2])):
    """All ranks validated the same weights and statistics, each on its own pictures, with one result."""
    tables = reports(folder, len(images))
    for rank, seen in enumerate(images):
        assert [table.pop("images") for table in tables[rank]] == seen
    assert all(table == tables[0] for table in tables)
    assert tables[0][0]["parameters"] != tables[0][1]["parameters"]
    scores = json.loads((folder / "metrics.json").read_text())
    assert {kind: scores[kind] for kind in ("box", "mask")} == tables[0][-1]["scores"]


@pytest.mark.parametrize("ema", ["default", pytest.param("none,default", marks=pytest.mark.slow)])
def test_sweep_on_two_devices(root, ema, tmp_path):
    """Plain BatchNorm, with the averages of EMA, which only rank 0 saves, and without."""
    jobs = ema.split(",")
    arguments = (*TRAIN, f"data.root={root}", "trainer.devices=2", "trainer.sync_batchnorm=true")
    outcome = launch("train", "-m", *arguments, f"ema={ema}", folder=tmp_path, patch=report)
    assert outcome.code == 0, outcome.err
    assert "error" not in outcome.err
    assert outcome.out.count("trainer.sync_batchnorm: ignored on CPUs") == len(jobs)
    (sweep,) = (tmp_path / "outputs").iterdir()
    folders = [str(number) for number in range(len(jobs))]
    assert {path.name for path in sweep.iterdir()} >= {*folders, "multirun.yaml"}
    for job in folders:
        assert_one_model(sweep / job)
        assert load(sweep / job)["global_step"] == 2 * STEPS
        of_rank_0 = {".hydra/config.yaml", "metrics.csv", "metrics.json", "train.log", "checkpoints/last.ckpt"}
        assert files(sweep / job) >= {*of_rank_0, "rank0.json", "rank1.json"}
        assert not [name for name in files(sweep / job) if "ddp" in name]


@pytest.mark.slow
def test_mixed_pictures_on_three_devices(root, tmp_path):
    """Two batches to validate are too few for them: one validates again what another has."""
    arguments = (
        *TRAIN,
        f"data.root={root}",
        "trainer.devices=3",
        "augment=mosaic_mixup",
        "ema=default",
        "data.limit=4",
    )
    outcome = launch("train", *arguments, "hydra.run.dir=a run = [1]", folder=tmp_path, patch=report)
    assert outcome.code == 0, outcome.err
    assert_one_model(tmp_path / "a run = [1]", images=([2, 2], [2, 2], [2, 2]))
    assert json.loads((tmp_path / "a run = [1]" / "metrics.json").read_text())["images"] == 4


def gradients():
    """Each rank writes the gradients of its step to the run folder."""
    from pathlib import Path

    import torch

    from maskrcnn.training.module import MaskRCNNModule

    def on_before_optimizer_step(self, _):
        found = {name: parameter.grad.clone() for name, parameter in self.named_parameters()}
        torch.save(found, Path(self.trainer.default_root_dir) / f"gradients{self.global_rank}.pt")

    MaskRCNNModule.on_before_optimizer_step = on_before_optimizer_step


def draw_alike(root):
    """Four pictures of one size with an instance at the same place; their pixels differ."""
    rng = np.random.default_rng(0)
    x, y, side = 12, 20, 24
    for split in ("train2017", "val2017"):
        (root / split).mkdir(parents=True)
    for number in range(1, 5):
        picture = rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)
        for split in ("train2017", "val2017"):
            cv2.imwrite(str(root / split / f"{number}.png"), picture)
    content = {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 64, "height": 64} for i in range(1, 5)],
        "annotations": [
            {
                "id": i,
                "image_id": i,
                "category_id": 1 + i % 2,
                "bbox": [x, y, side, side],
                "area": side**2,
                "iscrowd": 0,
                "segmentation": [[x, y, x + side, y, x + side, y + side, x, y + side]],
            }
            for i in range(1, 5)
        ],
        "categories": [{"id": 1, "name": "one"}, {"id": 2, "name": "two"}],
    }
    (root / "annotations").mkdir()
    for split in ("train2017", "val2017"):
        path = root / "annotations" / f"instances_{split}.json"
        path.write_text(json.dumps(content), encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["frozen_bn", "gn"])
def test_gradients_do_not_depend_on_the_number_of_processes(norm, tmp_path, monkeypatch):
    """2 x batch 2 and 1 x batch 4: every anchor is taken, and of the RoIs the one that is the ground truth."""
    draw_alike(tmp_path / "alike")
    arguments = (
        *TRAIN,
        f"data.root={tmp_path / 'alike'}",
        "augment=none",
        "trainer.max_steps=1",
        "trainer.limit_val_batches=0",
        "optim=sgd",
        f"model.backbone.norm={norm}",
        "model.rpn.sampler.batch_size_per_image=100000",
        "model.roi.stages.0.matcher.high_threshold=1.0",
        "model.roi.stages.0.matcher.low_threshold=1.0",
        "model.roi.sampler.batch_size_per_image=1",
        "model.roi.sampler.positive_fraction=1.0",
    )
    monkeypatch.setattr(MaskRCNNModule, "on_before_optimizer_step", None, raising=False)
    gradients()
    alone = run("train", *arguments, "data.batch_size=4", f"hydra.run.dir={tmp_path / 'one'}")
    assert alone.code == 0, alone.err
    together = launch("train", *arguments, "trainer.devices=2", "hydra.run.dir=two", folder=tmp_path, patch=gradients)
    assert together.code == 0, together.err
    expected = torch.load(tmp_path / "one" / "gradients0.pt", weights_only=True)
    assert max(gradient.abs().max() for gradient in expected.values()) > 0.1
    for rank in range(2):
        found = torch.load(tmp_path / "two" / f"gradients{rank}.pt", weights_only=True)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def trained(root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    arguments = (*TRAIN, f"data.root={root}", "data.batch_size=4", "optim.lr=0.001", "trainer.limit_val_batches=1")
    outcome = run("train", *arguments, f"hydra.run.dir={folder}")
    assert outcome.code == 0, outcome.err
    return folder / "checkpoints" / "last.ckpt"


@pytest.mark.slow
@pytest.mark.parametrize("devices", [2, 3])
def test_scores_and_detections_do_not_depend_on_the_number_of_processes(devices, trained, tmp_path):
    arguments = (f"ckpt={trained}", "data.batch_size=2", "data.num_workers=0", "trainer.accelerator=cpu")
    arguments += ("trainer.enable_progress_bar=false", "report=false", "callbacks.pictures.count=0")
    arguments += ("model.input.max_size=96",)  # upright and wide pictures are padded to their batch mates
    alone = run("evaluate", *arguments, "trainer.devices=1", f"hydra.run.dir={tmp_path / 'one'}")
    assert alone.code == 0, alone.err
    together = launch("evaluate", *arguments, f"trainer.devices={devices}", "hydra.run.dir=more, [2]", folder=tmp_path)
    assert together.code == 0, together.err
    for name in ("predictions.json", "metrics.json"):
        expected = json.loads((tmp_path / "one" / name).read_text())
        assert json.loads((tmp_path / "more, [2]" / name).read_text()) == expected
    assert expected["images"] == 5
    assert expected["box"]["ar100"] > 0
    assert together.out.count("box (5 images)") == 1


def fail():
    """Some ranks meet their end in the first step of the second epoch; FAILURE says how, and which."""
    import os
    import signal
    from pathlib import Path

    from maskrcnn.errors import UserError
    from maskrcnn.training.module import MaskRCNNModule

    how, *ranks = os.environ["FAILURE"].split()
    step = MaskRCNNModule.training_step

    def training_step(self, batch, number):
        if self.trainer.global_step == 3 and str(self.global_rank) in ranks:
            (Path(self.trainer.default_root_dir) / "failure").touch()
            if how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise UserError(f"{self.global_rank}.jpg: is broken") if how == "mistake" else KeyError("strange")
        return step(self, batch, number)

    MaskRCNNModule.training_step = training_step


STOPPED = "; the run is stopped; go on with resume={run}/checkpoints/last.ckpt"


@pytest.mark.parametrize(
    ("failure", "lines"),
    [
        pytest.param("kill 1", ["rank 1 ended with exit code -9 (SIGKILL)" + STOPPED], marks=pytest.mark.slow),
        pytest.param("kill 0", ["rank 0 has died" + STOPPED], marks=pytest.mark.slow),
        pytest.param("error 1", ["rank 1 ended with exit code 1" + STOPPED], marks=pytest.mark.slow),
        pytest.param(
            "mistake 1", ["1.jpg: is broken", "rank 1 ended with exit code 1" + STOPPED], marks=pytest.mark.slow
        ),
        pytest.param("mistake 0 1 2", ["0.jpg: is broken"], marks=pytest.mark.slow),
    ],
)
def test_rank_that_ends_ends_the_run(failure, lines, root, tmp_path, monkeypatch):
    """With a line, and soon: the others would wait for it half an hour in their next collective operation."""
    monkeypatch.setenv("FAILURE", failure)
    arguments = (*TRAIN, f"data.root={root}", "trainer.devices=3", "hydra.run.dir=run")
    outcome = launch("train", *arguments, folder=tmp_path, patch=fail)
    run_folder = tmp_path / "run"
    assert outcome.code == (-signal.SIGKILL if failure == "kill 0" else 1), outcome.err
    assert time.time() - (run_folder / "failure").stat().st_mtime < 60
    said = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
    assert said == [f"error: {line.format(run=run_folder)}" for line in lines], outcome.err
    assert outcome.err.count("Traceback") == ("error" in failure)


@pytest.mark.slow
def test_batch_without_instances_on_one_rank(root, tmp_path):
    """All pictures of rank 1 are blank."""
    shutil.copytree(root, tmp_path / "shapes")
    path = tmp_path / "shapes" / "annotations" / "instances_train2017.json"
    content = json.loads(path.read_text())
    content["images"] = content["images"][:4]
    first = EpochSampler(4, batch_size=2, seed=0, rank=1, world_size=2)
    blank = [content["images"][index]["id"] for _, index in first]
    kept = {image["id"] for image in content["images"]} - set(blank)
    content["annotations"] = [note for note in content["annotations"] if note["image_id"] in kept]
    path.write_text(json.dumps(content), encoding="utf-8")
    arguments = (*TRAIN, f"data.root={tmp_path / 'shapes'}", "data.remove_blank=false", "trainer.devices=2")
    arguments += ("augment=none",)
    outcome = launch("train", *arguments, "trainer.max_epochs=1", "hydra.run.dir=run", folder=tmp_path, patch=instances)
    assert outcome.code == 0, outcome.err
    assert [int((tmp_path / "run" / f"instances{rank}").read_text()) > 0 for rank in range(2)] == [True, False]
    assert all(tensor.isfinite().all() for tensor in load(tmp_path / "run")["state_dict"].values())


def instances():
    """Each rank writes how many instances its last batch had."""
    from pathlib import Path

    from maskrcnn.training.module import MaskRCNNModule

    step = MaskRCNNModule.training_step

    def training_step(self, batch, number):
        path = Path(self.trainer.default_root_dir) / f"instances{self.global_rank}"
        path.write_text(str(sum(len(target["labels"]) for target in batch[1])))
        return step(self, batch, number)

    MaskRCNNModule.training_step = training_step


@pytest.mark.slow
def test_torchrun(root, tmp_path):
    """One folder, though each process composes by itself."""
    by = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    arguments = (*TRAIN, f"data.root={root}", "trainer.devices=2", "ema=default")
    outcome = launch("train", *arguments, folder=tmp_path, patch=report, by=by)
    assert outcome.code == 0, outcome.err
    (folder,) = (tmp_path / "outputs").iterdir()
    assert_one_model(folder)
    assert outcome.out.count("run folder: ") == 1


def test_sweep_by_torchrun_is_refused(tmp_path, monkeypatch):
    """From the second job on its processes would not find each other."""
    for name, value in (("TORCHELASTIC_RUN_ID", "none"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    outcome = run("train", "-m", "seed=1,2", f"hydra.sweep.dir={tmp_path / 'sweep'}")
    assert outcome.code == 1
    assert outcome.err.startswith("error: --multirun: a sweep starts the processes of each job by itself")
    assert not (tmp_path / "sweep").exists()


def kill_all():
    """Kill all processes of the run at once, in the middle of the second epoch."""
    import os
    import signal

    from maskrcnn.training.module import MaskRCNNModule

    step = MaskRCNNModule.training_step

    def deadly(self, batch, number):
        loss = step(self, batch, number)
        if self.trainer.global_step == 5 and self.global_rank == 0:
            os.killpg(0, signal.SIGKILL)
        return loss

    MaskRCNNModule.training_step = deadly


@pytest.mark.slow
def test_killed_run_resumes_exactly_on_two_devices(root, tmp_path):
    arguments = (*TRAIN, f"data.root={root}", "trainer.devices=2", "checkpoint.every_n_steps=1", "ema=default")
    arguments += ("augment=mosaic_mixup", "data.num_workers=1")
    for name, patch, code in (("whole", None, 0), ("killed = [1]", kill_all, -signal.SIGKILL)):
        outcome = launch("train", *arguments, f"hydra.run.dir={name}", folder=tmp_path, patch=patch)
        assert outcome.code == code, outcome.err
    killed = tmp_path / "killed = [1]"
    assert load(killed)["global_step"] == 5
    outcome = launch("train", f"resume={killed / 'checkpoints' / 'last.ckpt'}", folder=tmp_path)
    assert outcome.code == 0, outcome.err
    assert_same_end(killed, tmp_path / "whole")


def test_unreadable_config_is_refused_before_processes_start(root, tmp_path):
    arguments = (*TRAIN, f"data.root={root}", "trainer.devices=2", "hydra.output_subdir=null")
    outcome = run("train", *arguments, f"hydra.run.dir={tmp_path / 'run'}")
    assert outcome.code == 1
    assert outcome.err.splitlines()[-1] == (
        "error: hydra.output_subdir: must be .hydra on several devices; leave this key out"
    )
