"""The average is compared with the same sum in plain Python, step by step."""

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader

from maskrcnn.evaluation.coco import CocoMetric
from maskrcnn.training.ema import EMA

STEPS = 6


class Small(LightningModule):
    """A linear layer behind a BatchNorm, which has float and integer buffers."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2))
        self.validated = []

    def training_step(self, batch, _):
        return self.layers(batch).square().mean()

    def validation_step(self, batch, _):
        self.validated.append(snapshot(self))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.5)


class Record(Callback):
    """Keeps the weights and the average after every step."""

    def __init__(self, ema):
        self.ema = ema
        self.weights, self.averages = [], []

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.weights.append(snapshot(pl_module))
        self.averages.append(snapshot(self.ema._average_model.module))


def snapshot(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def batches(count=STEPS):
    return DataLoader(torch.randn(count * 4, 3, generator=torch.Generator().manual_seed(1)), batch_size=4)


def fit(ema, folder, *, max_epochs=1, ckpt_path=None, **settings):
    module, record = Small(), Record(ema)
    saver = ModelCheckpoint(dirpath=folder, filename="last", every_n_train_steps=1, enable_version_counter=False)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=max_epochs,
        callbacks=[ema, record, saver],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **settings,
    )
    trainer.fit(module, batches(), batches(1), ckpt_path=ckpt_path, weights_only=True if ckpt_path else None)
    return module, record


def expected(start, weights, ema):
    """The average after each of the steps."""
    average, averages = start, []
    for step, current in enumerate(weights, start=1):
        keep = ema.decay * (1 - math.exp(-max(step - ema.start_step, 0) / ema.tau))
        average = {
            name: keep * average[name] + (1 - keep) * value if value.is_floating_point() else value
            for name, value in current.items()
        }
        averages.append(average)
    return averages


@pytest.mark.parametrize(
    ("decay", "tau", "start_step"), [(0.9, 2.0, 0), (0.9999, 2000.0, 0), (0.5, 1.0, 3), (0.0, 1.0, 0)]
)
def test_average_is_the_sum_by_hand(tmp_path, decay, tau, start_step):
    ema = EMA(decay=decay, tau=tau, start_step=start_step)
    _, record = fit(ema, tmp_path)
    assert len(record.weights) == STEPS
    for found, wanted in zip(record.averages, expected(snapshot(Small()), record.weights, ema), strict=True):
        for name, value in wanted.items():
            torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-7)
    for i in range(start_step):
        assert all(torch.allclose(record.averages[i][n], v, atol=1e-7) for n, v in record.weights[i].items())


def test_validation_and_checkpoint_have_the_average_and_training_goes_on_from_the_weights(tmp_path):
    module, record = fit(EMA(decay=0.9, tau=2.0), tmp_path)
    assert not equal(record.weights[-1], record.averages[-1])
    assert equal(module.validated[-1], record.averages[-1])
    assert equal(snapshot(module), record.weights[-1])
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert equal(saved["state_dict"], record.averages[-1])
    assert equal(saved["current_model_state"], record.weights[-1])


def test_a_resumed_average_goes_on_where_it_was(tmp_path):
    settings = {"decay": 0.9, "tau": 2.0, "start_step": 1}
    whole, record = fit(EMA(**settings), tmp_path / "whole", max_epochs=2)
    fit(EMA(**settings), tmp_path / "parts")
    resumed, rest = fit(EMA(**settings), tmp_path / "parts", ckpt_path=tmp_path / "parts" / "last.ckpt", max_epochs=2)
    assert len(record.averages) == 2 * STEPS
    assert len(rest.averages) == STEPS
    assert all(map(equal, rest.averages, record.averages[STEPS:]))
    assert equal(snapshot(resumed), snapshot(whole))
    assert equal(resumed.validated[-1], whole.validated[-1])


def test_only_optimizer_steps_count(tmp_path):
    ema = EMA(decay=0.9, tau=2.0)
    _, record = fit(ema, tmp_path, accumulate_grad_batches=3)
    stepped = [record.weights[2], record.weights[5]]
    # BatchNorm sees every batch; the parameters change, and are averaged, at each third.
    for found, wanted in zip(
        (record.averages[2], record.averages[5]), expected(snapshot(Small()), stepped, ema), strict=True
    ):
        torch.testing.assert_close(found["layers.1.weight"], wanted["layers.1.weight"])


def test_the_average_shares_the_ground_truth():
    metric = CocoMetric({"images": [], "annotations": [], "categories": []})
    assert copy.deepcopy(metric)._ground_truth is metric._ground_truth


@pytest.mark.parametrize("argument", [{"decay": 1.0}, {"decay": -0.1}, {"tau": 0.0}, {"start_step": -1}])
def test_arguments_are_checked(argument):
    (name,) = argument
    with pytest.raises(ValueError, match=f"^{name} must be"):
        EMA(**argument)


def test_average_is_made_where_the_model_will_be():
    # Lightning sets callbacks up before it moves the model.
    trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("meta")))
    ema = EMA()
    ema.setup(trainer, Small(), "fit")
    assert {tensor.device.type for tensor in ema._average_model.state_dict().values()} == {"meta"}
