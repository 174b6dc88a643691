"""The progress bar, and how often the host waits for what is shown and logged."""

import pytest
import torch
from pytorch_lightning import Callback, Trainer
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader

from maskrcnn.models.mask_rcnn import LOSSES
from maskrcnn.training.loggers import CSVCurves, TensorBoardCurves
from maskrcnn.training.module import MaskRCNNModule
from maskrcnn.training.progress import _SHORT_NAMES, ProgressBar, _number
from maskrcnn.training.speed import Speed

EVERY = 4  # steps between two rows of the curves
STEPS = 12


class Model(nn.Module):
    """A model whose losses cost no read; it finds nothing."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))

    def forward(self, images, targets):
        return {name: (self.weight * i).sum() for i, name in enumerate(LOSSES)}

    def predict(self, images):
        return []


def fit(folder, *callbacks, epochs=1, accumulate=1, val_batches=0):
    module = MaskRCNNModule(
        model=Model(),
        categories=[],
        ground_truth=None,
        optimizer=lambda model, **_: torch.optim.SGD(model.parameters(), lr=0.5),
        schedule=lambda optimizer, **_: LambdaLR(optimizer, lambda step: 0.5**step),
    )
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        log_every_n_steps=EVERY,
        accumulate_grad_batches=accumulate,
        logger=[CSVCurves(folder=str(folder)), TensorBoardCurves(folder=str(folder))],
        callbacks=list(callbacks),
        default_root_dir=folder,
        enable_checkpointing=False,
        enable_model_summary=False,
        limit_val_batches=val_batches,
        num_sanity_val_steps=0,
    )
    batches = [(torch.zeros(1), [{}, {}])] * STEPS
    validation = [([], [])] * 3
    trainer.fit(module, *(DataLoader(each, batch_size=None) for each in (batches, validation)))
    return trainer


class Reads(TorchDispatchMode):
    """Counts values that go from tensors to Python: on a GPU, each waits for it."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


class Steps(Callback):
    """What happened between the start of each step and the next one's."""

    def __init__(self, reads, table):
        self.reads, self.table = reads, table
        self.seen = []

    def on_train_batch_start(self, *_):
        self.seen.append((self.reads.count, self.table.stat().st_mtime_ns if self.table.exists() else 0))

    def on_train_end(self, *_):
        self.on_train_batch_start()

    @property
    def changes(self):
        pairs = zip(self.seen, self.seen[1:], strict=False)
        return [(after[0] - before[0], after[1] != before[1]) for before, after in pairs]


@pytest.fixture
def reads(monkeypatch):
    mode = Reads()

    def counting(method):
        def count(self, *args, **kwargs):
            mode.count += 1
            return method(self, *args, **kwargs)

        return count

    for name in ("tolist", "cpu", "numpy"):  # which the mode does not see
        monkeypatch.setattr(torch.Tensor, name, counting(getattr(torch.Tensor, name)))
    with mode:
        yield mode


@pytest.fixture
def terminal(monkeypatch, capsys):
    """What is drawn."""
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("COLUMNS", "80")
    return lambda: capsys.readouterr().out


def test_the_host_reads_and_writes_at_log_steps_alone(tmp_path, reads, terminal, monkeypatch):
    floats = []
    log = MaskRCNNModule.log

    def noting(self, name, value, *args, **kwargs):
        if not isinstance(value, torch.Tensor):  # Lightning copies it to the device, and waits
            floats.append((self.trainer.global_step, name))
        log(self, name, value, *args, **kwargs)

    monkeypatch.setattr(MaskRCNNModule, "log", noting)
    steps = Steps(reads, tmp_path / "metrics.csv")
    fit(tmp_path, steps, ProgressBar(), Speed())
    assert len(steps.changes) == STEPS
    for step, (read, written) in enumerate(steps.changes):
        is_log_step = step % EVERY == EVERY - 1
        assert (read > 0) == (is_log_step or step == 0), step  # the bar shows the first losses, too
        assert written == is_log_step, step
    assert {step for step, _ in floats} == {4, 8, 12}  # counted from 1
    assert "epoch 0/0" in terminal()


def test_speed_and_bar_keep_to_the_steps_of_the_loggers(tmp_path, reads, terminal):
    """Epochs and accumulation that do not go with the interval."""
    steps = Steps(reads, tmp_path / "metrics.csv")
    fit(tmp_path, steps, ProgressBar(), Speed(), accumulate=5, epochs=3)  # optimizer steps behind batches 5, 10, 12
    written = [batch for batch, (_, changed) in enumerate(steps.changes) if changed]
    read = [batch for batch, (count, _) in enumerate(steps.changes) if count]
    assert written == [STEPS + 4, 2 * STEPS + 9]  # the fourth and the eighth step
    assert set(read) <= {0, *written, STEPS - 1, 2 * STEPS - 1}  # a new epoch draws a seed
    rows = (tmp_path / "metrics.csv").read_text().splitlines()
    assert len(rows) == 3
    assert "perf/data_wait" in rows[0]
    assert ",," not in "".join(rows)


def test_bar_shows_losses_rate_and_time_left(tmp_path, terminal):
    fit(tmp_path, ProgressBar(), epochs=2, val_batches=3)
    shown = terminal()
    assert "epoch 0/1" in shown
    assert "epoch 1/1" in shown
    assert "12/12" in shown
    assert "validation" in shown
    assert "ETA 0:00:0" in shown
    assert "loss 20.00  obj " in shown  # 2 x (0 + 1 + 2 + 3 + 4)
    assert "lr 5.0e-01" in shown


def test_nothing_is_drawn_where_there_is_no_terminal(tmp_path, capsys):
    fit(tmp_path, ProgressBar())
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("loss", 0.12345, "0.123"),
        ("loss", 9.9999, "10.000"),
        ("loss", 12.3, "12.30"),
        ("loss", -123.456, "-123.46"),
        ("loss", 123456.0, "1.23e+05"),
        ("loss", float("nan"), "nan"),
        ("lr", 1.234e-4, "1.2e-04"),
    ],
)
def test_numbers_are_short(name, value, shown):
    assert _number(name, value) == shown


def test_names_of_all_losses_are_known():
    assert set(_SHORT_NAMES) == {"train/loss", "train/lr", *(f"train/{name}" for name in LOSSES)}
