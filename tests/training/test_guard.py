"""A step that is left out must leave no trace: the run ends as one on the same batches without the bad one."""

import json
import math
import traceback
from types import SimpleNamespace

import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from pytorch_lightning.plugins.precision import MixedPrecision
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader

from maskrcnn.errors import UserError
from maskrcnn.training import guard as guard_module
from maskrcnn.training.guard import Guard
from tests.test_resume import assert_equal

STEPS = 6

OPTIMIZERS = {
    "adam": lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.1, fused=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1, fused=True),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.1, fused=True),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1, fused=True),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, fused=True),
    "not fused": lambda p: torch.optim.RAdam(p, lr=0.1, weight_decay=0.1),
}


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    """Where a run leaves its report."""
    monkeypatch.chdir(tmp_path)


class Small(LightningModule):
    """A linear layer behind a BatchNorm, and a loss that goes wrong in a way that the batch asks for."""

    def __init__(self, optimizer="adam"):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2))
        self.optimizer = optimizer

    def training_step(self, batch, _):
        (x, wrong), _ = batch
        loss = self.layers(x * torch.nan if wrong == "input" else x).square().mean()
        if wrong == "loss":
            loss = loss + torch.nan  # whose gradient is finite
        if wrong == "gradient":
            loss = loss + (0 * self.layers[1].weight).sqrt().sum()  # 0, with an infinite slope
        self.log("train/loss", loss)
        return {"loss": loss, "loss_a": loss.detach(), "loss_b": 2 * loss.detach()}

    def configure_optimizers(self):
        return OPTIMIZERS[self.optimizer](self.parameters())


class Record(Callback):
    """Keeps weights, buffers and optimizer state after every batch."""

    def __init__(self):
        self.states = []

    def on_train_batch_end(self, trainer, pl_module, *_):
        state = {"model": pl_module.state_dict(), "optimizer": trainer.optimizers[0].state_dict()["state"]}
        self.states.append(clone(state))


def clone(state):
    if isinstance(state, dict):
        return {key: clone(value) for key, value in state.items()}
    return state.clone() if isinstance(state, torch.Tensor) else state


def batches(wrong=None, count=STEPS):
    """Batches of 4 whose pictures are numbered; `wrong` has what goes wrong in some of them."""
    x = torch.randn(count, 4, 3, generator=torch.Generator().manual_seed(1))
    made = []
    for i in range(count):
        ids = [torch.tensor([10 * i + k, 100 + 10 * i]) for k in range(4)]  # the second was mixed in
        made.append(((x[i], (wrong or {}).get(i)), [{"image_ids": one} for one in ids]))
    return made


def fit(guard, loader, *, module=None, callbacks=(), ckpt_path=None, **settings):
    record = Record()
    trainer = Trainer(
        **{"max_epochs": 1, "log_every_n_steps": 3, "logger": False, "enable_checkpointing": False} | settings,
        accelerator="cpu",
        callbacks=[*([guard] if guard else []), record, *callbacks],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module = module or Small()
    module.trained_by = trainer
    loader = DataLoader(loader, batch_size=None, collate_fn=lambda batch: batch)
    trainer.fit(module, loader, ckpt_path=ckpt_path, weights_only=True if ckpt_path else None)
    return record.states


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("bad", [0, 3])
def test_step_that_is_left_out_leaves_no_trace(optimizer, bad):
    guard = Guard()
    states = fit(guard, batches({bad: "input"}), module=Small(optimizer))
    without = [batch for i, batch in enumerate(batches()) if i != bad]
    assert_equal(states[-1], fit(Guard(), without, module=Small(optimizer))[-1])
    if bad:
        assert_equal(states[bad], states[bad - 1])
    assert not torch.equal(states[-1]["model"]["layers.1.weight"], states[bad]["model"]["layers.1.weight"])
    assert guard.skips == 1


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_steps_that_are_good_are_those_without_a_guard(optimizer):
    assert_equal(fit(Guard(), batches(), module=Small(optimizer)), fit(None, batches(), module=Small(optimizer)))


@pytest.mark.parametrize("wrong", ["loss", "gradient", "input"])
@pytest.mark.parametrize("optimizer", ["adam", "not fused"])
def test_loss_and_gradient_both_count(wrong, optimizer, tmp_path, capsys):
    states = fit(Guard(), batches({3: wrong}), module=Small(optimizer), default_root_dir=tmp_path)
    assert_equal(states[3], states[2])
    culprit = "gradient" if wrong == "gradient" else "loss"
    line = f"step 3: {culprit} is not finite, update left out (image ids 30, 130, 31, 32, 33)\n"
    assert capsys.readouterr().out == line


def test_without_a_guard_everything_is_lost():
    (end,) = fit(None, batches({3: "input"}))[-1:]
    assert end["model"]["layers.1.weight"].isnan().all()
    assert end["model"]["layers.0.running_mean"].isnan().all()


def test_bad_batch_loses_the_whole_step_of_accumulated_gradients(tmp_path):
    guard = Guard()
    states = fit(guard, batches({2: "input"}), accumulate_grad_batches=2, default_root_dir=tmp_path)
    without = [batch for i, batch in enumerate(batches()) if i not in (2, 3)]
    assert_equal(states[-1], fit(Guard(), without, accumulate_grad_batches=2)[-1])
    (step,) = json.loads((tmp_path / "non_finite.json").read_text())["steps"]
    assert step["step"] == 1
    assert step["image_ids"] == [20, 120, 21, 22, 23, 30, 130, 31, 32, 33]


def test_ranks_agree_and_report_the_pictures_of_all(monkeypatch, tmp_path):
    """The other rank, which is played here, has a loss of NaN in step 3, and a finite gradient."""
    calls = iter(range(STEPS))
    theirs = {
        "step": 3,
        "image_ids": [7, 30],
        "losses": {"loss_a": math.nan, "loss_b": 3.0},
        "lr": 0.1,
        "grad_norm": 1.0,
    }

    def gather(gathered, ours):
        gathered[:] = [ours, [theirs]]

    played = SimpleNamespace(
        is_initialized=lambda: True,
        ReduceOp=guard_module.dist.ReduceOp,
        all_reduce=lambda skip, op: skip.add_(next(calls) == 3),
        get_world_size=lambda: 2,
        all_gather_object=gather,
    )
    monkeypatch.setattr(guard_module, "dist", played)
    states = fit(Guard(), batches())
    assert_equal(states[3], states[2])
    (step,) = json.loads((tmp_path / "non_finite.json").read_text())["steps"]
    assert step["image_ids"] == [30, 130, 31, 32, 33, 7]
    assert step["losses"]["loss_a"] == "nan"
    assert 1.5 < step["losses"]["loss_b"] < 10


def scaled(scale):
    return MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=9999))


def test_gradient_that_overflows_under_a_scaler_is_no_skip(tmp_path, capsys):
    module, guard = Small("not fused"), Guard(max_skips=0)
    states = fit(guard, batches({3: "gradient"}), module=module, plugins=[scaled(2.0)], default_root_dir=tmp_path)
    assert_equal(states[3]["optimizer"], states[2]["optimizer"])  # the scaler left it out
    assert guard.skips == 0
    assert module.trained_by.precision_plugin.scaler.get_scale() == 1
    assert capsys.readouterr().out == ""


def test_loss_that_is_not_finite_under_a_scaler_is_one(tmp_path):
    guard = Guard()
    states = fit(
        guard, batches({3: "loss"}), module=Small("not fused"), plugins=[scaled(2.0)], default_root_dir=tmp_path
    )
    assert_equal(states[3], states[2])
    assert guard.skips == 1


class Reads(TorchDispatchMode):
    """Counts when the guard makes the host wait for a value."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._local_scalar_dense.default and by_guard():
            self.count += 1
        return func(*args, **(kwargs or {}))


def by_guard():
    return any(frame.filename == guard_module.__file__ for frame in traceback.extract_stack(limit=40))


@pytest.mark.parametrize(("optimizer", "reads"), [("adam", 2), ("momentum", 2), ("not fused", 2 + 8)])
def test_host_reads_once_per_log_interval(optimizer, reads, monkeypatch):
    mode, listed = Reads(), []
    tolist = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda tensor: listed.append(by_guard()) or tolist(tensor))
    with mode:
        fit(Guard(), batches(count=8), module=Small(optimizer), log_every_n_steps=4)
    assert mode.count + sum(listed) == reads


class Curves(Callback):
    """What would go to a logger."""

    def __init__(self):
        self.norms = []

    def on_train_batch_end(self, trainer, *_):
        self.norms.append(float(trainer.callback_metrics["train/grad_norm"]))


def test_norm_of_the_gradient_is_logged_before_clipping():
    curves = Curves()
    fit(Guard(), batches(count=1), callbacks=[curves], gradient_clip_val=1e-3)
    module = Small()
    module.layers(batches(count=1)[0][0][0]).square().mean().backward()
    assert curves.norms == [pytest.approx(torch.cat([p.grad.view(-1) for p in module.parameters()]).norm().item())]


def test_too_many_skips_end_the_run_with_a_report(tmp_path, capsys):
    guard = Guard(max_skips=1)
    with pytest.raises(
        UserError, match=r"^guard\.max_skips=1: 3 updates were left out .* the last at step 3; "
    ) as error:
        fit(guard, batches({1: "loss", 2: "input", 3: "gradient"}), log_every_n_steps=4, default_root_dir=tmp_path)
    assert str(tmp_path / "non_finite.json") in str(error.value)
    assert capsys.readouterr().out.endswith(" left out (image ids 10, 110, 11, 12, 13); so were 2 more up to step 3\n")
    report = json.loads((tmp_path / "non_finite.json").read_text())
    assert report["skips"] == 3
    assert [step["step"] for step in report["steps"]] == [1, 2, 3]
    assert [step["image_ids"][0] for step in report["steps"]] == [10, 20, 30]
    assert [step["lr"] for step in report["steps"]] == [0.1] * 3
    first, second, third = report["steps"]
    assert first["losses"] == second["losses"] == {"loss_a": "nan", "loss_b": "nan"}
    assert 0 < first["grad_norm"] < 10
    assert second["grad_norm"] == "nan"
    assert third["losses"]["loss_b"] == pytest.approx(2 * third["losses"]["loss_a"])
    assert third["grad_norm"] == "nan"


@pytest.mark.parametrize(("max_skips", "bad", "ends"), [(0, 1, True), (1, 1, False), (1, 2, True), (None, 6, False)])
def test_how_many_skips_are_allowed(max_skips, bad, ends, tmp_path):
    guard = Guard(max_skips=max_skips)
    try:
        fit(guard, batches(dict.fromkeys(range(bad), "input")), default_root_dir=tmp_path)
        ended = False
    except UserError:
        ended = True
    assert ended == ends
    assert guard.skips == min(bad, 3 if ends else bad)


def test_count_goes_on_after_a_resume(tmp_path):
    saver = ModelCheckpoint(dirpath=tmp_path, filename="last", every_n_train_steps=2, enable_version_counter=False)
    settings = {"default_root_dir": tmp_path, "enable_checkpointing": True, "log_every_n_steps": 100}
    fit(Guard(max_skips=1), batches({1: "input"}), callbacks=[saver], max_steps=2, **settings)
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)["callbacks"]["Guard"]
    assert state["skips"] == 1  # not read at an interval, but for the checkpoint
    with pytest.raises(UserError, match=r"^guard\.max_skips=1: 2 updates .* the last at step 4; "):
        fit(Guard(max_skips=1), batches({2: "input"}), ckpt_path=tmp_path / "last.ckpt", **settings)
    steps = json.loads((tmp_path / "non_finite.json").read_text())["steps"]
    assert [step["step"] for step in steps] == [1, 4]


def test_negative_number_of_skips_is_refused():
    with pytest.raises(ValueError, match=r"^max_skips must be at least 0 or null, got -1$"):
        Guard(max_skips=-1)
