"""A model that cannot learn sixteen pictures by heart has a bug somewhere between file and loss."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import evaluate
import train

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("MASKRCNN_REAL_DATA" not in os.environ, reason="needs real pictures in MASKRCNN_REAL_DATA"),
]

SMALL_AREA = 32**2


def test_sixteen_real_pictures_are_learned_by_heart(tmp_path, monkeypatch):
    root = Path(os.environ["MASKRCNN_REAL_DATA"]) / "coco_tiny"
    annotations = "annotations/instances_train2017.json"
    overrides = [
        f"data.root={root}",
        f"data.val_annotations={annotations}",
        "data.val_images=train2017",
        "data.limit=16",
        "data.remove_blank=false",
        "data.min_sizes=[512]",
        "data.max_size=512",
        "data.batch_size=2",
        "data.num_workers=0",
        "augment=none",
        "model/backbone=resnet18",
        "model.backbone.weights=null",
        "model.input.min_size=512",
        "model.input.max_size=512",
        "model.neck.out_channels=64",
        "model.roi_align.aligned=true",
        "model.box_head.hidden_dim=512",
        "model.mask_head.channels=64",
        "model.mask_head.paste=detectron2",
        "model.rpn.pre_nms_top_n_train=500",
        "model.rpn.post_nms_top_n_train=500",
        "model.rpn.nms_thresh=0.8",
        "model.roi.sampler.batch_size_per_image=128",
        "model.roi.sampler.positive_fraction=0.5",
        "model.box_head.class_agnostic=true",
        "model.loss_weights.loss_mask=2.0",
        "optim=adamw",
        "optim.lr=1e-3",
        "optim.weight_decay=0.0",
        "schedule.warmup_epochs=5",
        "schedule.floor=0.01",
        "trainer.precision=${native_precision:}",
        "trainer.gradient_clip_val=10.0",
        "trainer.max_epochs=140",
        "trainer.check_val_every_n_epoch=70",
        "trainer.num_sanity_val_steps=0",
        "trainer.log_every_n_steps=8",
    ]
    run, scored = tmp_path / "run", tmp_path / "scored"
    monkeypatch.setattr(sys, "argv", ["train.py", *overrides, f"hydra.run.dir={run}"])
    train.main()
    monkeypatch.setattr(
        sys,
        "argv",
        ["evaluate.py", f"ckpt={run / 'checkpoints' / 'last.ckpt'}", "data.limit=16", f"hydra.run.dir={scored}"],
    )
    evaluate.main()

    truth = COCO(root / annotations)
    scoring = COCOeval(truth, truth.loadRes(str(scored / "predictions.json")), "segm")
    scoring.params.imgIds = [image["id"] for image in truth.dataset["images"][:16]]
    scoring.params.iouThrs = np.array([0.5])
    scoring.params.areaRng, scoring.params.areaRngLbl = [[SMALL_AREA, 1e10]], ["medium and large"]
    scoring.evaluate()
    scoring.accumulate()
    precision = scoring.eval["precision"][0, :, :, 0, -1]
    ap50 = precision[:, precision[0] > -1].mean()
    print(f"\nmask AP50 of medium and large instances: {ap50:.3f}")
    assert ap50 >= 0.9
