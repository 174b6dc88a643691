"""Batches are the same on any number of workers and ranks, and carry no dense masks."""

import json
import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from pytorch_lightning import Trainer

from maskrcnn.config import build, config_folder
from maskrcnn.data.augment import Augment
from maskrcnn.data.coco import CocoDataset
from maskrcnn.data.datamodule import DetectionDataModule
from maskrcnn.data.geometry import HorizontalFlip
from maskrcnn.data.pixels import ColorJitter
from maskrcnn.data.shapes import ShapesDrawing
from maskrcnn.errors import UserError


@pytest.fixture(scope="session")
def shapes_root(tmp_path_factory):
    return tmp_path_factory.mktemp("shapes")


@pytest.fixture
def shapes(shapes_root):
    """A data module over small shapes, both splits loaded."""

    def make(*, rank=0, world_size=1, max_epochs=4, **settings):
        settings = {"batch_size": 4, "num_workers": 0, "min_sizes": [48, 64, 80], "max_size": 96} | settings
        draw = ShapesDrawing(train_images=14, val_images=11, image_size=64)
        data = DetectionDataModule(root=str(shapes_root), draw=draw, **settings)
        data.load(train=True)
        loop = Trainer(max_epochs=max_epochs, logger=False, enable_checkpointing=False).fit_loop
        data.trainer = SimpleNamespace(
            global_rank=rank, world_size=world_size, num_devices=1, max_epochs=max_epochs, fit_loop=loop
        )
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


def preset(name, *changes):
    """An option of `conf/augment`."""
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        cfg = compose("train", overrides=[f"augment={name}", *(f"augment.{change}" for change in changes)])
    return build(cfg.augment, key="augment")


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


def by_id(batches):
    """Picture without padding, and target, of each image id."""
    return {
        int(target["image_ids"][0]): (pixels[:, : size[0], : size[1]], target)
        for batch, targets in batches
        for pixels, size, target in zip(batch.pixels, batch.sizes, targets, strict=True)
    }


AUGMENTS = {
    "flip and color": lambda: Augment(flip=HorizontalFlip(p=0.5), color=ColorJitter(p=0.8)),
    "mosaic_mixup": lambda: preset("mosaic_mixup", "blur.p=0.5", "noise.p=0.5"),
    "lsj_copy_paste": lambda: preset("lsj_copy_paste"),
}


@pytest.fixture(params=AUGMENTS)
def augment(request):
    return AUGMENTS[request.param]()


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


def test_samples_do_not_depend_on_the_order(shapes, augment):
    dataset = shapes(augment=augment).train_dataloader().dataset
    keys = [(epoch, index) for epoch in (0, 3) for index in range(4)]
    forwards = {key: dataset[key] for key in keys}
    assert all(equal(forwards[key], dataset[key]) for key in reversed(keys))
    assert not any(equal(forwards[0, index], forwards[3, index]) for index in range(4))


def test_ranks_share_the_epoch(shapes, augment):
    """A picture is the same sample whichever rank gets it."""
    alone = by_id(epoch_of(shapes(augment=augment), 2))
    halves = [shapes(augment=augment, rank=rank, world_size=2, batch_size=2) for rank in (0, 1)]
    shared = by_id(batch for half in halves for batch in epoch_of(half, 2))
    assert shared.keys() == alone.keys()
    assert all(equal(shared[image_id], alone[image_id]) for image_id in alone)


# --- the last epochs


@pytest.mark.parametrize("name", ["mosaic_mixup", "lsj_copy_paste"])
def test_the_last_epochs_do_without_mixing(shapes, name):
    always = preset(name, "mixup.p=1")
    never = preset(name, "mosaic.p=0", "mixup.p=0", "copy_paste.p=0")
    closing = preset(name, "mixup.p=1", "close_mixing_epochs=2")
    for epoch in range(4):
        found = epoch_of(shapes(augment=closing), epoch)
        assert all(map(equal, found, epoch_of(shapes(augment=always if epoch < 2 else never), epoch)))
        assert not any(map(equal, found, epoch_of(shapes(augment=never if epoch < 2 else always), epoch)))


def test_more_closing_epochs_than_there_are(shapes):
    mixed, plain = preset("mosaic_mixup", "close_mixing_epochs=9"), preset("mosaic_mixup", "mosaic.p=0", "mixup.p=0")
    assert all(map(equal, epoch_of(shapes(augment=mixed), 0), epoch_of(shapes(augment=plain), 0)))


@pytest.mark.parametrize("max_epochs", [None, -1])
def test_closing_epochs_need_to_know_the_last_one(shapes, max_epochs):
    data = shapes(augment=preset("mosaic_mixup", "close_mixing_epochs=1"), max_epochs=max_epochs)
    with pytest.raises(UserError, match=r"^augment\.close_mixing_epochs: needs trainer\.max_epochs"):
        data.train_dataloader()
    shapes(augment=preset("mosaic_mixup"), max_epochs=max_epochs).train_dataloader()


def test_a_mosaic_may_leave_the_canvas(shapes):
    far = preset("mosaic_mixup", "mosaic.p=1", "mosaic.translate=1", "mosaic.scale=[0.1,0.2]")
    batches = [batch for epoch in range(3) for batch in epoch_of(shapes(augment=far), epoch)]
    assert {tuple(batch.pixels.shape[2:]) for batch, _ in batches} == {(96, 96)}


# --- batches


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
def test_evaluation_batches_are_dealt_whole_and_none_twice(shapes, world_size):
    fixed = [image_ids for _, image_ids in shapes().val_dataloader()]
    dealt = [
        [image_ids for _, image_ids in shapes(rank=rank, world_size=world_size).val_dataloader()]
        for rank in range(world_size)
    ]
    assert sorted(batch for part in dealt for batch in part) == sorted(fixed)
    assert sorted(image_id for batch in fixed for image_id in batch) == sorted(shapes().val_image_ids)
    assert len(shapes().val_image_ids) == len(set(shapes().val_image_ids)) == 11


def test_training_boxes_without_a_size_are_refused_on_the_host(shapes):
    data = shapes()
    pixels, targets = next(iter(data.train_dataloader()))
    data.trainer.training = True
    assert data.on_before_batch_transfer((pixels, targets), 0)[1] is targets
    targets[1]["boxes"] = torch.tensor([[5.0, 5, 9, 5]])
    with pytest.raises(ValueError, match=r"invalid box \[5.0, 5.0, 9.0, 5.0\] for target at index 1"):
        data.on_before_batch_transfer((pixels, targets), 0)
    data.trainer.training = False
    batch = next(iter(data.val_dataloader()))
    assert data.on_before_batch_transfer(batch, 0) is batch


def test_evaluation_sees_whole_pictures(shapes):
    data = shapes()
    for images, image_ids in data.val_dataloader():
        for image, image_id in zip(images, image_ids, strict=True):
            position = data.val_image_ids.index(image_id)
            assert image.dtype == torch.uint8
            assert np.array_equal(image.numpy().transpose(1, 2, 0), data.datasets["val"][position].image)


@pytest.mark.filterwarnings("error::UserWarning", "ignore:The .srun. command is available")
def test_loading_warns_of_nothing(shapes):
    torch.set_warn_always(True)  # PyTorch's own come only once, and maybe in another test
    try:
        data = shapes(augment=preset("mosaic_mixup"))
        list(data.train_dataloader())
        list(data.val_dataloader())
    finally:
        torch.set_warn_always(False)


def test_blank_pictures_are_left_out_of_training_alone(two_splits):
    data = two_splits()
    data.load(train=True)
    assert data.datasets["train"].image_ids == [12, 4, 30]
    assert data.val_image_ids == [12, 7, 4, 30]
    data = two_splits(remove_blank=False)
    data.load(train=True, evaluate=None)
    assert len(data.datasets["train"]) == 4


def test_a_picture_with_a_crowd_alone_is_blank(two_splits, content):
    del content["annotations"][5]
    data = two_splits()
    data.load(train=True, evaluate=None)
    assert data.datasets["train"].image_ids == [12, 4]
    data = two_splits(use_crowd=True)
    data.load(train=True, evaluate=None)
    assert data.datasets["train"].image_ids == [12, 4, 30]


def test_limit_takes_the_first_pictures_of_each_split(two_splits):
    data = two_splits(limit=2)
    data.load(train=True)
    assert data.datasets["train"].image_ids == [12, 4]
    assert data.val_image_ids == [12, 7]


def test_a_damaged_picture_beyond_the_limit_does_no_harm(two_splits, tmp_path):
    limited, whole = two_splits(limit=2), two_splits()
    (tmp_path / "val2017" / "c.png").write_bytes(b"")
    limited.load()
    with pytest.raises(UserError, match=r"c\.png \(image id 30\)"):
        whole.load()


def test_ground_truth_is_the_parsed_file(two_splits, content):
    data = two_splits()
    data.load()
    truth = data.ground_truth
    assert truth["images"] == content["images"]
    assert truth["categories"] == sorted(content["categories"], key=lambda category: category["id"])
    of = {annotation["id"]: annotation for annotation in truth["annotations"]}
    for annotation in content["annotations"]:
        same = ("image_id", "category_id", "bbox", "area", "iscrowd")
        assert {key: of[annotation["id"]][key] for key in same} == {key: annotation[key] for key in same}
    assert data.class_names == ["boat", "cup", "kite"]


def test_splits_of_different_categories_are_refused(tmp_path, write, content):
    write(tmp_path, content)
    content["categories"][1] = {"id": 5, "name": "ship"}
    write(tmp_path, content, split="val")
    data = DetectionDataModule(root=str(tmp_path))
    with pytest.raises(UserError, match=r"train2017\.json and .*val2017\.json have different categories") as caught:
        data.load(train=True)
    assert "5 boat" in str(caught.value)
    assert "5 ship" in str(caught.value)


def test_order_of_the_categories_does_not_matter(tmp_path, write, content):
    write(tmp_path, content)
    write(tmp_path, content | {"categories": content["categories"][::-1]}, split="val")
    DetectionDataModule(root=str(tmp_path)).load(train=True)


def test_paths_are_relative_to_root_unless_absolute(tmp_path, write, content):
    write(tmp_path / "elsewhere", content)
    data = DetectionDataModule(
        root=str(tmp_path / "elsewhere"),
        val_annotations=str(tmp_path / "elsewhere" / "annotations" / "instances_train2017.json"),
        val_images="train2017",
    )
    data.load()
    assert len(data.datasets["val"]) == 4


def test_missing_root_says_what_to_download(tmp_path):
    with pytest.raises(UserError, match=r"data\.root=.*nowhere: no such folder") as caught:
        DetectionDataModule(root=str(tmp_path / "nowhere")).load()
    for hint in (
        "train2017.zip",
        "annotations_trainval2017.zip",
        "instances_{train,val}2017.json",
        "experiment=demo",
    ):
        assert hint in str(caught.value)


def test_missing_folder_of_pictures_is_named(two_splits):
    with pytest.raises(UserError, match=r"data\.val_images=.*none: no such folder"):
        two_splits(val_images="none").load()


def test_set_without_pictures_is_refused(two_splits, content):
    content["annotations"] = []
    with pytest.raises(UserError, match=r"has no picture with an instance; data\.remove_blank=false"):
        two_splits().load(train=True, evaluate=None)
    content["images"] = []
    with pytest.raises(UserError, match=r"instances_val2017\.json: has no picture"):
        two_splits().load()


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
        ("val_seed", -1),
        ("val_fraction", 0.0),
        ("val_fraction", 1.0),
        ("classes", []),
        ("repeat_threshold", -0.1),
        ("repeat_threshold", 1.1),
    ],
)
def test_invalid_values_are_named(key, value):
    with pytest.raises(ValueError, match=key):
        DetectionDataModule(root="x", **{key: value})


# --- which pictures train and which validate


@pytest.fixture
def one_file(tmp_path, write):
    """A data module over one annotation file of 20 pictures, every fifth without instances."""
    rng = np.random.default_rng(0)
    ids = rng.permutation(np.arange(100, 120)).tolist()
    content = {
        "images": [{"id": i, "file_name": f"{i}.png", "height": 20, "width": 16 + 8 * (i % 2)} for i in ids],
        "categories": [{"id": 2, "name": "common"}, {"id": 7, "name": "rare"}],
        "annotations": [
            {"image_id": i, "category_id": 7 if i == 101 else 2, "bbox": [2, 2, 9, 9], "segmentation": [SQUARE]}
            for i in ids
            if i % 5
        ],
    }
    write(tmp_path, content)

    def load(*, train=True, evaluate="val", **settings):
        settings = {"val_fraction": 0.3, "num_workers": 0, "remove_blank": False} | settings
        data = DetectionDataModule(root=str(tmp_path), **settings)
        data.load(train=train, evaluate=evaluate)
        return data

    return load


SQUARE = [2, 2, 11, 2, 11, 11, 2, 11]


@pytest.mark.parametrize(("fraction", "held_out"), [(0.3, 6), (0.01, 1), (0.12, 2), (0.5, 10), (0.99, 19)])
def test_a_share_of_the_training_pictures_validates(one_file, fraction, held_out):
    data = one_file(val_fraction=fraction)
    train, val = data.datasets["train"].image_ids, data.val_image_ids
    assert len(val) == held_out
    assert len(train) + len(val) == 20
    assert set(train) | set(val) == set(range(100, 120))


def test_the_share_follows_from_its_own_seed_alone(one_file):
    val = one_file().val_image_ids
    assert one_file(seed=5, remove_blank=True, batch_size=1, classes=["common"]).val_image_ids == val
    assert one_file(train=False).val_image_ids == val
    assert one_file(limit=3).val_image_ids == val[:3]
    assert one_file(val_seed=1).val_image_ids != val


def test_blank_pictures_of_the_share_are_kept_in_evaluation_alone(one_file):
    data, whole = one_file(remove_blank=True, val_fraction=0.5), one_file(val_fraction=0.5)
    assert data.datasets["train"].image_ids == [i for i in whole.datasets["train"].image_ids if i % 5]
    assert data.val_image_ids == whole.val_image_ids
    assert any(i % 5 == 0 for i in data.val_image_ids)


def test_the_training_share_can_be_evaluated(one_file):
    assert one_file(train=False, evaluate="train").val_image_ids == one_file().datasets["train"].image_ids


def test_one_picture_cannot_be_divided(tmp_path, write, content):
    content |= {"images": content["images"][:1], "annotations": content["annotations"][:2]}
    write(tmp_path, content)
    with pytest.raises(UserError, match=r"train2017\.json: data\.val_fraction needs at least two pictures"):
        DetectionDataModule(root=str(tmp_path), val_fraction=0.5).load(train=True)


def test_unknown_split_is_refused(two_splits):
    with pytest.raises(UserError, match=r"^split=bogus: must be one of train, val, test$"):
        two_splits().load(evaluate="bogus")


@pytest.fixture
def unannotated(tmp_path, write, content):
    """The test split of the set by hand: pictures and categories."""
    path = write(tmp_path, content, split="test")
    path.write_text(json.dumps({key: content[key] for key in ("images", "categories")}))
    return {"test_annotations": str(path), "test_images": "test2017"}


def test_a_split_without_annotations_is_evaluated_without_ground_truth(two_splits, unannotated):
    data = two_splits(**unannotated)
    data.load(evaluate="test")
    assert data.ground_truth is None
    assert data.class_names == ["boat", "cup", "kite"]
    assert sorted(i for _, image_ids in data.val_dataloader() for i in image_ids) == [4, 7, 12, 30]


def test_a_split_without_annotations_does_not_train(two_splits, unannotated):
    data = two_splits(train_annotations=unannotated["test_annotations"], train_images=unannotated["test_images"])
    with pytest.raises(UserError, match=r"instances_test2017\.json: has no annotations; training needs them"):
        data.load(train=True)


# --- which instances


def test_chosen_classes_train_and_are_scored(two_splits, content):
    data = two_splits(classes=["kite", "cup"])
    data.load(train=True)
    assert data.categories == [{"id": 44, "name": "cup"}, {"id": 90, "name": "kite"}]
    assert data.datasets["train"].image_ids == [12, 4]  # 30 has boats alone
    assert data.val_image_ids == [12, 7, 4, 30]
    assert {annotation["category_id"] for annotation in data.ground_truth["annotations"]} == {44, 90}
    targets = {image_id: target for image_id, (_, target) in by_id(data.train_dataloader()).items()}
    assert targets[12]["labels"].tolist() == [2]
    assert targets[4]["labels"].tolist() == [2, 1]


def test_splits_may_differ_in_classes_that_do_not_take_part(tmp_path, write, content):
    write(tmp_path, content)
    content["categories"][1] = {"id": 5, "name": "ship"}
    write(tmp_path, content, split="val")
    DetectionDataModule(root=str(tmp_path), classes=["kite", "cup"]).load(train=True)


def test_unknown_class_is_named_with_its_file(two_splits):
    with pytest.raises(UserError, match=r"^data\.classes: .*has no category kit; did you mean kite\?"):
        two_splits(classes=["kit"]).load(train=True)


def test_annotations_without_an_outline_are_refused(two_splits, content):
    for annotation in content["annotations"][:2]:
        del annotation["segmentation"]
    with pytest.raises(UserError) as caught:
        two_splits().load(train=True)
    for part in ("instances_train2017.json", "2 annotations", "annotation 3", "data.allow_boxes_only=true"):
        assert part in str(caught.value)


def test_outlines_that_do_not_take_part_may_be_missing(two_splits, content):
    del content["annotations"][1]["segmentation"]  # the boat of picture 12
    two_splits(classes=["kite", "cup"]).load(train=True)
    content["annotations"][1]["iscrowd"] = 1
    two_splits().load(train=True)


def test_outlines_of_pictures_that_do_not_take_part_may_be_missing(two_splits, content):
    del content["annotations"][5]["segmentation"]  # of the last picture
    two_splits(limit=2).load(train=True)


def test_boxes_alone_can_be_evaluated(two_splits, content):
    """Nothing is learnt in an evaluation."""
    del content["annotations"][0]["segmentation"]
    two_splits().load()


def test_boxes_alone_are_marked_in_the_targets(two_splits, content):
    del content["annotations"][0]["segmentation"]  # the kite of picture 12
    data = two_splits(allow_boxes_only=True, min_sizes=[48], max_size=64)
    data.load(train=True)
    targets = {image_id: target for image_id, (_, target) in by_id(data.train_dataloader()).items()}
    assert targets[12]["has_mask"].tolist() == [False, True]
    assert targets[12]["boxes"][0].tolist() == [10, 10, 31, 41]
    assert targets[4]["has_mask"].tolist() == [True, True]


def test_corrections_are_said_once_for_each_file(two_splits, content, caplog):
    content["annotations"][0]["bbox"] = [10, 10, 0, 31]
    content["categories"][2]["name"] = "boat"
    two_splits().load(train=True)
    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    for split in ("train", "val"):
        of_split = [line for line in lines if f"instances_{split}2017.json" in line]
        assert sum("1 annotations left out, their box has no area" in line for line in of_split) == 1
        assert sum("1 categories have the name of another" in line for line in of_split) == 1
    assert len(lines) == 4


def test_corrections_of_a_divided_file_are_said_once(two_splits, content, caplog):
    content["annotations"][0]["bbox"] = [10, 10, 0, 31]
    two_splits(val_fraction=0.5).load(train=True)
    assert len([record for record in caplog.records if record.levelno == logging.WARNING]) == 1


# --- how often, and in which company


def test_rare_classes_come_more_often(one_file):
    """One of the 14 training pictures shows the rare class."""
    data = one_file(repeat_threshold=0.5)
    sampler = data.train_dataloader().sampler
    expected = [(0.5 * 14) ** 0.5 if image_id == 101 else 1.0 for image_id in data.datasets["train"].image_ids]
    assert 101 in data.datasets["train"].image_ids
    assert sampler.repeats == pytest.approx(expected)
    assert one_file().train_dataloader().sampler.repeats is None


def test_batches_of_one_kind(one_file):
    data = one_file(group_by_aspect=True, batch_size=2, val_fraction=0.1)
    upright = [[height > width for height, width in batch.sizes] for batch, _ in epoch_of(data, 3)]
    assert sum(len(set(batch)) > 1 for batch in upright) <= 1
    assert {kind for batch in upright for kind in batch} == {True, False}


# --- a format of one's own


def test_data_set_class_of_ones_own(two_splits, tmp_path):
    made = []

    class Renamed(CocoDataset):
        def __init__(self, **paths):
            super().__init__(**paths)
            made.append(paths)

    data = two_splits(dataset=Renamed, cache=str(tmp_path / "cache"))
    data.load(train=True)
    assert [set(paths) for paths in made] == [{"annotations", "images", "cache"}] * 2
    assert made[0]["annotations"] == tmp_path / "annotations" / "instances_train2017.json"
    assert made[0]["cache"] == tmp_path / "cache"
    assert data.datasets["train"].image_ids == [12, 4, 30]


def test_data_set_of_another_kind_is_refused(two_splits):
    class Stranger:
        def __init__(self, **paths):
            pass

    with pytest.raises(UserError, match=r"^data\.dataset\._target_: Stranger is not a .*InstanceDataset"):
        two_splits(dataset=Stranger).load()
