from collections.abc import Callable
from typing import Any

import pytest
from torch import Tensor

from maskrcnn.models.mask_rcnn import MaskRCNN

Factory = Callable[..., Any]
State = dict[str, Tensor]


@pytest.fixture(scope="package")
def state(make_tiny_torchvision: Factory) -> State:
    """The state dict of a small torchvision model with 3 foreground classes."""
    return dict(make_tiny_torchvision(num_classes=3).state_dict())


@pytest.fixture
def model(make_tiny_model: Factory) -> MaskRCNN:
    """Ours of the same sizes."""
    model: MaskRCNN = make_tiny_model(preset="torchvision")
    return model
