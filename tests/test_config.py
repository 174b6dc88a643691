"""Quoting is checked with Hydra's own parser, building with the real classes."""

import os
import time
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch.optim import SGD

from maskrcnn.config import (
    PATH_KEYS,
    _remove_unused,
    _unquote,
    build,
    config_folder,
    native_precision,
    plain,
    quote_path,
)
from maskrcnn.data.augment import Augment
from maskrcnn.data.geometry import HorizontalFlip
from maskrcnn.errors import UserError
from maskrcnn.models.matching import Matcher

FLIP = {"_target_": "maskrcnn.data.geometry.HorizontalFlip", "p": 0.25}


def parsed(argument):
    """What Hydra makes of a command-line argument."""
    override = OverridesParser.create().parse_override(argument)
    return override.key_or_group, override.value()


@pytest.mark.parametrize(
    "path",
    [
        "/data/coco",
        "/my photos/set 1",
        "a=b/c=d",
        "run[1]/x{2}",
        "a,b,c",
        "~/data",
        "données/été/图像",
        "it's",
        'the "best"',
        "'half",
        "C:\\data\\set",
        "ends in a backslash\\",
        "two\\\\",
        "\\'",
        "a\\'b\\\\'c",
        "x:y;z|w",
        "#1",
        "100%",
        "true",
        "007",
        "1e5",
        "${now:%Y}",
        "$HOME/a",
        "a(b)",
        "@group",
        " padded ",
    ],
)
def test_any_path_survives_hydras_parser(path):
    argument = quote_path(f"data.root={path}")
    assert parsed(argument) == ("data.root", path)
    assert _unquote(argument.removeprefix("data.root=")) == path


@given(path=st.text(st.characters(exclude_categories=["C", "Z"]) | st.sampled_from("\\'\"=,[]{}() ~$"), min_size=1))
def test_random_paths_survive_hydras_parser(path):
    argument = quote_path(f"ckpt={path}")
    if argument == f"ckpt={path}":  # looked quoted already, or is a keyword
        assert path == "null" or path[0] in "'\"" or path.startswith("choice(")
        return
    assert parsed(argument) == ("ckpt", path)
    assert _unquote(argument.removeprefix("ckpt=")) == path


@pytest.mark.parametrize(
    "argument",
    [
        "optim.lr=1e-4,1e-3",
        "data=coco",
        "data.min_sizes=[480,512]",
        "~callbacks.pictures",
        "-m",
        "--cfg",
        "init=null",
        "ckpt=",
        "data.root='a b'",
        'data.root="a b"',
        "data.root=choice(a,b)",
        "source=[a.jpg,b c.png,0]",
    ],
)
def test_other_arguments_come_back_as_they_are(argument):
    assert quote_path(argument) == argument


@pytest.mark.parametrize("prefix", ["", "+", "++"])
def test_added_and_forced_paths_are_quoted_too(prefix):
    assert parsed(quote_path(f"{prefix}data.root=a b,c")) == ("data.root", "a b,c")


def test_path_keys_exist():
    keys = set()

    def walk(node, prefix):
        for key, value in node.items():
            keys.add(prefix + key)
            if isinstance(value, dict):
                walk(value, f"{prefix}{key}.")

    for file, prefix in (
        ("train.yaml", ""),
        ("evaluate.yaml", ""),
        ("predict.yaml", ""),
        ("data/coco.yaml", "data."),
        ("model/backbone/resnet50.yaml", "model.backbone."),
    ):
        walk(OmegaConf.to_container(OmegaConf.load(config_folder() / file)), prefix)
    assert keys >= PATH_KEYS


def test_build_makes_what_the_node_describes():
    augment = build(
        OmegaConf.create({"_target_": "maskrcnn.data.augment.Augment", "flip": FLIP, "max_aspect": None}),
        key="augment",
    )
    assert isinstance(augment, Augment)
    assert isinstance(augment.flip, HorizontalFlip)
    assert augment.flip.p == 0.25
    assert augment.max_aspect is None


def test_build_leaves_plain_nodes_as_they_are():
    assert build({"a": [1, {"b": "c"}], "d": None}, key="x") == {"a": [1, {"b": "c"}], "d": None}
    assert [one.p for one in build([FLIP, FLIP], key="x")] == [0.25, 0.25]


def test_partial_waits_for_what_is_missing(make_tiny_model):
    make = build({"_target_": "maskrcnn.training.optimizers.sgd", "_partial_": True, "lr": 0.5}, key="optim")
    optimizer = make(make_tiny_model(), batch_size=1, fused=False)
    assert isinstance(optimizer, SGD)
    assert optimizer.defaults["lr"] == 0.5


def test_extra_arguments_go_to_the_outermost_call_and_win():
    node = {"_target_": "maskrcnn.data.augment.Augment", "flip": FLIP, "max_aspect": "ignored"}
    assert build(node, key="augment", max_aspect=3.0).max_aspect == 3.0


@pytest.mark.parametrize(
    "target",
    [
        "torch.load",
        "torch.hub.load",
        "os.system",
        "builtins.eval",
        "maskrcnn.models.weights.read_weights",
        "maskrcnn.data.augment.Augment.__init__",
        "pytorch_lightning.Trainer.fit",
        "maskrcnn.training.optimizers.sgd ",
        "",
        None,
        ["torch.load"],
    ],
)
def test_what_is_not_on_the_list_is_not_built(target):
    node = {"layers": [{"_target_": target, "command": "true"}]}
    with pytest.raises(UserError, match=r"^model\.layers\.0\._target_=.* is not among the classes") as caught:
        build(node, key="model", trust=["mine"])
    assert "trust=" in str(caught.value)


@pytest.mark.parametrize("trust", [["collections"], "collections", ["other", "collections"]])
def test_trusted_packages_are_built_from(trust):
    assert build({"_target_": "collections.OrderedDict", "a": 1}, key="x", trust=trust) == {"a": 1}


@pytest.mark.parametrize("trust", [["collection"], "collection", "c", ["collections.abc"], []])
def test_trust_is_for_whole_package_names(trust):
    with pytest.raises(UserError, match="not among"):
        build({"_target_": "collections.OrderedDict"}, key="x", trust=trust)


@pytest.mark.parametrize("target", ["collections.Nothing", "collections.nothing.Nothing", "collections."])
def test_trusted_target_that_does_not_exist(target):
    with pytest.raises(UserError, match=r"^x\._target_=collections.*: cannot be imported"):
        build({"_target_": target}, key="x", trust=["collections"])


def matcher(**settings):
    node = {"rpn": {"matcher": {"_target_": "maskrcnn.models.matching.Matcher", **settings}}}
    return build(node, key="model")["rpn"]["matcher"]


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("allow_low_quality", "Ture", "valid boolean"),
        ("allow_low_quality", 1, "valid boolean"),
        ("high_threshold", "0.7", "valid number"),
        ("high_threshold", None, "valid number"),
        ("treshold", 0.7, "unknown key; model.rpn.matcher takes high_threshold, low_threshold"),
    ],
)
def test_wrong_types_and_unknown_keys_are_named(key, value, problem):
    with pytest.raises(UserError) as caught:
        matcher(**{key: value})
    assert str(caught.value).startswith(f"model.rpn.matcher.{key}")
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


def test_integers_pass_for_numbers():
    assert isinstance(matcher(high_threshold=1, low_threshold=0), Matcher)


def test_lists_are_checked_item_by_item():
    node = {"_target_": "maskrcnn.data.datamodule.DetectionDataModule", "root": "x"}
    for sizes in (["480", 512], [480.5], "480", 480, [[480]], [None]):
        with pytest.raises(UserError, match=r"^data\.min_sizes="):
            build(node | {"min_sizes": sizes}, key="data")
    assert build(node | {"min_sizes": [480, 512], "max_size": 512}, key="data").transform.side == 512


def test_lists_pass_for_tuples(make_tiny_model):
    node = {"_target_": "maskrcnn.training.optimizers.adam", "_partial_": True, "betas": [0.8, 0.9]}
    assert build(node, key="optim")(make_tiny_model(), batch_size=1, fused=False).defaults["betas"][0] == 0.8
    with pytest.raises(UserError, match=r"^optim\.betas="):
        build(node | {"betas": [0.8]}, key="optim")


def test_refusal_of_the_constructor_names_the_key():
    with pytest.raises(UserError, match=r"^model\.rpn\.matcher: low_threshold and high_threshold must"):
        matcher(low_threshold=0.9)


def test_missing_argument_is_named():
    with pytest.raises(UserError, match=r"^data: .*root"):
        build({"_target_": "maskrcnn.data.datamodule.DetectionDataModule"}, key="data")


def test_literals_name_the_choices():
    node = {
        "_target_": "maskrcnn.models.backbones.ResNet",
        "name": "resnet18",
        "norm": "batch",
        "weights": None,
    }
    with pytest.raises(UserError, match=r"^model\.backbone\.norm=batch: .*'bn'.*'frozen_bn'.*'gn'"):
        build(node, key="model.backbone")


def test_plain_resolves_references():
    cfg = OmegaConf.create({"a": {"b": 3}, "c": "${a.b}", "d": ["${c}"]})
    assert plain(cfg) == {"a": {"b": 3}, "c": 3, "d": [3]}


def test_plain_refuses_values_that_are_still_to_be_given():
    with pytest.raises(OmegaConfBaseException, match=r"data\.root"):
        plain(OmegaConf.create({"data": {"root": "???"}}))


def run_folder(root):
    folder = root / "run"
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "config.yaml").write_text("a: 1")
    (folder / "train.log").write_text("")
    return folder


def test_folder_of_a_run_that_got_nowhere_is_removed(tmp_path):
    folder = run_folder(tmp_path)
    _remove_unused(folder, since=time.time())
    assert list(tmp_path.iterdir()) == []


def test_folder_with_checkpoints_stays(tmp_path):
    folder = run_folder(tmp_path)
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "last.ckpt").write_text("weights")
    _remove_unused(folder, since=time.time())
    assert (folder / "train.log").exists()


def test_folder_with_curves_stays(tmp_path):
    folder = run_folder(tmp_path)
    (folder / "metrics.csv").write_text("step")
    _remove_unused(folder, since=time.time())
    assert (folder / "metrics.csv").exists()


def test_folder_with_something_older_stays(tmp_path):
    folder = run_folder(tmp_path)
    notes = folder / "notes.txt"
    notes.write_text("mine")
    os.utime(notes, (1, 1))
    _remove_unused(folder, since=time.time())
    assert notes.read_text() == "mine"


def test_missing_folder_is_no_error(tmp_path):
    _remove_unused(tmp_path / "none", since=0)


def test_config_folder_is_the_one_of_the_checkout():
    assert config_folder() == Path(__file__).parents[1] / "conf"
    assert (config_folder() / "train.yaml").is_file()


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [({}, "32-true"), ({"avx512_bf16": False, "amx_bf16": True}, "bf16-mixed"), ({"avx512_bf16": True}, "bf16-mixed")],
)
def test_native_precision_of_a_cpu(monkeypatch, capabilities, expected):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: capabilities, raising=False)
    assert native_precision() == expected


@pytest.mark.parametrize(("native", "expected"), [(True, "bf16-mixed"), (False, "16-mixed")])
def test_native_precision_of_a_gpu(monkeypatch, native, expected):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: native)
    assert native_precision() == expected
