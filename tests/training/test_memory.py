"""What an error of CUDA says; the way through the commands is in test_guard_rails.py."""

import pytest
import torch

from maskrcnn.ops.image_batch import ImageBatch
from maskrcnn.training.memory import OutOfMemory

CUDA = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 15 GiB"


@pytest.fixture
def after():
    """The message of an error after some hooks of the callback."""

    def message(error, **hooks):
        callback = OutOfMemory()
        for name, batch in hooks.items():
            getattr(callback, name)(None, None, batch, 0)
        callback.on_exception(None, None, error)
        return str(error)

    return message


TRAINING = (ImageBatch(torch.zeros(2, 3, 96, 64), [(90, 64), (80, 50)]), [{"labels": torch.ones(n)} for n in (3, 4)])
VALIDATION = ([torch.zeros(3, 40, 90), torch.zeros(3, 70, 60)], [1, 2])


def test_batch_of_the_error_is_described(after):
    training = after(torch.OutOfMemoryError(CUDA), on_train_batch_start=TRAINING)
    assert training.startswith(
        "CUDA out of memory, in training, on 2 pictures padded to 96 x 64 with 7 instances; lower "
    )
    both = {"on_train_batch_start": TRAINING, "on_validation_batch_start": VALIDATION}
    validation = after(torch.OutOfMemoryError(CUDA), **both)
    assert validation.startswith("CUDA out of memory, in validation, on 2 pictures of up to 70 x 90; lower ")
    assert "model.input.max_size" in validation
    assert "accumulate" not in validation


def test_other_errors_and_those_before_the_first_batch_are_left_alone(after):
    assert after(torch.OutOfMemoryError(CUDA)) == CUDA
    assert after(RuntimeError("something"), on_train_batch_start=TRAINING) == "something"
