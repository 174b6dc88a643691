"""Batches are the same on any number of workers and ranks, and carry no dense masks."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from maskrcnn.data.augment import Augment, HorizontalFlip
from maskrcnn.data.datamodule import DetectionDataModule, EpochSampler
from maskrcnn.data.pixels import ColorJitter
from maskrcnn.data.shapes import ShapesDrawing
from maskrcnn.errors import UserError


@pytest.fixture(scope="session")
def shapes_root(tmp_path_factory):
    return tmp_path_factory.mktemp("shapes")


@pytest.fixture
def shapes(shapes_root):
    """A data module over small shapes, both splits loaded."""

    def make(*, rank=0, world_size=1, **settings):
        settings = {"batch_size": 4, "num_workers": 0, "min_sizes": [48, 64, 80], "max_size": 96} | settings
        draw = ShapesDrawing(train_images=14, val_images=11, image_size=64)
        data = DetectionDataModule(root=str(shapes_root), draw=draw, **settings)
        data.load("train", "val")
        data.trainer = SimpleNamespace(global_rank=rank, world_size=world_size, num_devices=1)
        return data

    return make


@pytest.fixture
def two_splits(tmp_path, write, content):
    """A data module over the set by hand."""

    def make(**settings):
        for split in ("train", "val"):
            write(tmp_path, content, split=split)
        return DetectionDataModule(root=str(tmp_path), **({"num_workers": 0} | settings))

    return make


def tensors(batch):
    """All tensors of a nested batch."""
    if isinstance(batch, torch.Tensor):
        return [batch]
    if isinstance(batch, dict):
        batch = list(batch.values())
    return [tensor for part in batch for tensor in tensors(part)] if isinstance(batch, list | tuple) else []


def equal(one, other):
    one, other = tensors(one), tensors(other)
    return len(one) == len(other) and all(map(torch.equal, one, other))


def epoch_of(data, epoch):
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)
    return list(loader)


@pytest.fixture
def augment():
    return Augment(flip=HorizontalFlip(), color=ColorJitter(p=0.8))


def test_batches_do_not_depend_on_the_number_of_workers(shapes, augment):
    alone = epoch_of(shapes(augment=augment), 1)
    shared = epoch_of(shapes(augment=augment, num_workers=2), 1)
    assert len(alone) == len(shared) == 4
    assert all(map(equal, alone, shared))


def test_batches_follow_from_seed_and_epoch(shapes, augment):
    first = epoch_of(shapes(augment=augment), 0)
    assert all(map(equal, first, epoch_of(shapes(augment=augment), 0)))
    assert not any(map(equal, first, epoch_of(shapes(augment=augment), 1)))
    assert not any(map(equal, first, epoch_of(shapes(augment=augment, seed=1), 0)))


def test_ranks_share_the_epoch(shapes, augment):
    """A picture is the same sample whichever rank gets it."""

    def by_id(*parts):
        return {
            int(target["image_id"]): (pixels[:, : size[0], : size[1]], target)
            for part in parts
            for batch, targets in part
            for pixels, size, target in zip(batch.pixels, batch.sizes, targets, strict=True)
        }

    alone = by_id(epoch_of(shapes(augment=augment), 0))
    halves = [shapes(augment=augment, rank=rank, world_size=2, batch_size=2) for rank in (0, 1)]
    shared = by_id(*(epoch_of(half, 0) for half in halves))
    assert shared.keys() == alone.keys()
    assert all(equal(shared[image_id], alone[image_id]) for image_id in alone)


def test_training_batch(shapes):
    batch, targets = next(iter(shapes().train_dataloader()))
    assert batch.pixels.dtype == torch.uint8
    assert batch.pixels.shape[:2] == (4, 3)
    assert all(side % 32 == 0 for side in batch.pixels.shape[2:])
    for pixels, (height, width), target in zip(batch.pixels, batch.sizes, targets, strict=True):
        assert not pixels[:, height:].any()
        assert not pixels[:, :, width:].any()
        assert max(height, width) <= 96
        assert (target["boxes"] >= 0).all()
        assert (target["boxes"][:, 2:] <= torch.tensor([width, height])).all()
        assert len(target["boxes"]) == len(target["labels"]) == len(target["masks"]) > 0
        assert (target["labels"] >= 1).all()
        assert (target["labels"] <= 5).all()


@pytest.mark.parametrize("min_size", [64, 640])
def test_no_batch_carries_dense_masks(shapes, min_size):
    """An instance costs 112 x 112 bytes, whatever the size of its picture."""
    for batch, targets in shapes(min_sizes=[min_size], max_size=704).train_dataloader():
        instances = sum(len(target["boxes"]) for target in targets)
        assert sum(target["masks"].nbytes for target in targets) == instances * 112 * 112
        everything = sum(tensor.nbytes for tensor in tensors((batch, targets)))
        assert everything - batch.pixels.nbytes - instances * 112 * 112 < 100 * (instances + len(targets))


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("num_images", [1, 7, 24, 25])
def test_ranks_draw_disjoint_shares_that_cover_the_set(num_images, world_size):
    def shares(epoch, seed=3):
        samplers = [
            EpochSampler(num_images, batch_size=2, seed=seed, rank=rank, world_size=world_size)
            for rank in range(world_size)
        ]
        for sampler in samplers:
            sampler.set_epoch(epoch)
        assert {len(sampler) for sampler in samplers} == {len(list(sampler)) for sampler in samplers}
        return [list(sampler) for sampler in samplers]

    parts = shares(epoch=5)
    assert {key[0] for part in parts for key in part} == {5}
    drawn = [index for group in zip(*parts, strict=True) for _, index in group]  # in the order of the steps
    assert set(drawn) == set(range(num_images))
    assert len(drawn) % (2 * world_size) == 0
    assert len(drawn) < num_images + 2 * world_size
    assert sorted(drawn[:num_images]) == list(range(num_images))  # none twice before all came once
    assert parts == shares(epoch=5)
    if num_images > 1:
        assert parts != shares(epoch=6)
        assert parts != shares(epoch=5, seed=4)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_evaluation_batches_are_dealt_whole_and_none_twice(shapes, world_size):
    fixed = [image_ids for _, image_ids in shapes().val_dataloader()]
    dealt = [
        [image_ids for _, image_ids in shapes(rank=rank, world_size=world_size).val_dataloader()]
        for rank in range(world_size)
    ]
    assert sorted(batch for part in dealt for batch in part) == sorted(fixed)
    assert sorted(image_id for batch in fixed for image_id in batch) == sorted(shapes().val_image_ids)
    assert len(shapes().val_image_ids) == len(set(shapes().val_image_ids)) == 11


def test_evaluation_sees_whole_pictures(shapes):
    data = shapes()
    for images, image_ids in data.val_dataloader():
        for image, image_id in zip(images, image_ids, strict=True):
            position = data.val_image_ids.index(image_id)
            assert image.dtype == torch.uint8
            assert np.array_equal(image.numpy().transpose(1, 2, 0), data.datasets["val"].image(position)[0])


def test_blank_pictures_are_left_out_of_training_alone(two_splits):
    data = two_splits()
    data.load("train", "val")
    assert data.datasets["train"].indices.tolist() == [0, 2, 3]
    assert data.val_image_ids == [12, 7, 4, 30]
    data = two_splits(remove_blank=False)
    data.load("train")
    assert len(data.datasets["train"]) == 4


def test_a_picture_with_a_crowd_alone_is_blank(two_splits, content):
    del content["annotations"][5]
    data = two_splits()
    data.load("train")
    assert data.datasets["train"].indices.tolist() == [0, 2]
    data = two_splits(use_crowd=True)
    data.load("train")
    assert data.datasets["train"].indices.tolist() == [0, 2, 3]


def test_limit_takes_the_first_pictures_of_each_split(two_splits):
    data = two_splits(limit=2)
    data.load("train", "val")
    assert data.datasets["train"].indices.tolist() == [0, 2]
    assert data.val_image_ids == [12, 7]


def test_a_damaged_picture_beyond_the_limit_does_no_harm(two_splits, tmp_path):
    limited, whole = two_splits(limit=2), two_splits()
    (tmp_path / "val2017" / "c.png").write_bytes(b"")
    limited.load("val")
    with pytest.raises(UserError, match=r"c\.png \(image id 30\)"):
        whole.load("val")


def test_ground_truth_is_the_parsed_file(two_splits, content):
    data = two_splits()
    data.load("val")
    assert data.ground_truth == content
    assert data.class_names == ["boat", "cup", "kite"]


def test_splits_of_different_categories_are_refused(tmp_path, write, content):
    write(tmp_path, content)
    content["categories"][1] = {"id": 5, "name": "ship"}
    write(tmp_path, content, split="val")
    data = DetectionDataModule(root=str(tmp_path))
    with pytest.raises(UserError, match=r"train2017\.json and .*val2017\.json have different categories") as caught:
        data.load("train", "val")
    assert "5 boat" in str(caught.value)
    assert "5 ship" in str(caught.value)


def test_order_of_the_categories_does_not_matter(tmp_path, write, content):
    write(tmp_path, content)
    write(tmp_path, content | {"categories": content["categories"][::-1]}, split="val")
    DetectionDataModule(root=str(tmp_path)).load("train", "val")


def test_paths_are_relative_to_root_unless_absolute(tmp_path, write, content):
    write(tmp_path / "elsewhere", content)
    data = DetectionDataModule(
        root=str(tmp_path / "elsewhere"),
        val_annotations=str(tmp_path / "elsewhere" / "annotations" / "instances_train2017.json"),
        val_images="train2017",
    )
    data.load("val")
    assert len(data.datasets["val"]) == 4


def test_missing_root_says_what_to_download(tmp_path):
    with pytest.raises(UserError, match=r"data\.root=.*nowhere: no such folder") as caught:
        DetectionDataModule(root=str(tmp_path / "nowhere")).load("val")
    for hint in (
        "train2017.zip",
        "annotations_trainval2017.zip",
        "instances_{train,val}2017.json",
        "experiment=demo",
    ):
        assert hint in str(caught.value)


def test_missing_folder_of_pictures_is_named(two_splits):
    with pytest.raises(UserError, match=r"data\.val_images=.*none: no such folder"):
        two_splits(val_images="none").load("val")


def test_set_without_pictures_is_refused(two_splits, content):
    content["annotations"] = []
    with pytest.raises(UserError, match=r"has no picture with an instance; data\.remove_blank=false"):
        two_splits().load("train")
    content["images"] = []
    with pytest.raises(UserError, match=r"instances_val2017\.json: has no picture"):
        two_splits().load("val")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("batch_size", 0),
        ("num_workers", -1),
        ("min_sizes", []),
        ("min_sizes", [0]),
        ("min_sizes", [900]),
        ("limit", 0),
        ("mask_size", 7),
        ("seed", -1),
    ],
)
def test_invalid_values_are_named(key, value):
    with pytest.raises(ValueError, match=key):
        DetectionDataModule(root="x", **{key: value})
