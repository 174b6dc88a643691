"""Between the command line and the objects: the only module of the package that knows Hydra and OmegaConf."""

import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from functools import wraps
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException, HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import OutOfMemoryError

from maskrcnn.building import build as build_plain
from maskrcnn.building import one_line
from maskrcnn.errors import UserError
from maskrcnn.launch import GRACE, check_multirun, is_child, job, job_folder, own_rank, run_stamp, watch_parent
from maskrcnn.loading import is_exported, read_checkpoint
from maskrcnn.memory import keep_freed_memory
from maskrcnn.models.weights import Weights
from maskrcnn.sweep import check_plugins
from maskrcnn.training.checkpoints import (
    full_disk_in_words,
    newest_checkpoint,
    newest_run,
    read_training_state,
)
from maskrcnn.training.guard import REPORT

# Keys whose values are paths: quoted before Hydra parses them, since Hydra's grammar claims = , [ ] ~ and spaces.
PATH_KEYS = frozenset(
    {
        "ckpt",
        "data.cache",
        "data.root",
        *(f"data.{split}_{kind}" for split in ("train", "val", "test") for kind in ("annotations", "images")),
        "hydra.run.dir",
        "hydra.sweep.dir",
        "init",
        "model.backbone.weights",
        "output",
        "predictions",
        "resume",
        "source",
    }
)

Config = DictConfig  # what a command is called with, for modules that do not know OmegaConf

_QUOTED = re.compile(r"""'.*'|".*"|choice\(.*\)|null|""", re.DOTALL)
_TRACED = "HYDRA_FULL_ERROR"
_SHOWN_ONLY = {"--help", "-h", "--hydra-help", "--shell-completion", "-sc"}


def command(
    config_name: str, *, owned_by_checkpoint: bool = False, resumable: bool = False
) -> Callable[[Callable[[DictConfig], Any]], Callable[[], Any]]:
    """Make a function of the config a command: compose, run, and turn a user's mistake into one line.

    Args:
        config_name: The primary config in `conf/`.
        owned_by_checkpoint: The checkpoint `ckpt=` brings its `model`, and its `data` where the command takes data,
            as config group options.
        resumable: `resume=` continues a run in its own folder, with its own config.
    """

    def decorate(task: Callable[[DictConfig], Any]) -> Callable[[], Any]:
        def main() -> Any:
            started, traced = time.time(), os.environ.get(_TRACED, "0")

            @wraps(task)
            def guarded(cfg: DictConfig) -> Any:
                os.environ[_TRACED] = traced
                run = Path(HydraConfig.get().runtime.output_dir)
                keep_freed_memory()
                try:
                    with job(run), full_disk_in_words(run):
                        return task(cfg)
                except KeyboardInterrupt:
                    raise SystemExit(128 + signal.SIGINT) from None
                except (UserError, MisconfigurationException, OmegaConfBaseException, OutOfMemoryError) as error:
                    if HydraConfig.get().mode is RunMode.MULTIRUN and own_rank() == 0:
                        raise CompactHydraException(f"error: {one_line(error)}") from error  # the next job is due
                    _remove_unused(run, since=started)
                    _exit(error)

            try:
                arguments = [quote_path(argument) for argument in sys.argv[1:]]
                check_plugins(arguments)
                check_multirun(arguments)
                folder, name = config_folder(), config_name
                if is_child():
                    watch_parent()
                    folder, name, arguments = child_config()
                elif owned_by_checkpoint:
                    arguments = add_checkpoint_options(arguments, config_name)
                elif resumable:
                    folder, name, arguments = primary_config(config_name, arguments)
            except UserError as error:
                _exit(error)
            sys.argv[1:] = arguments
            os.environ[_TRACED] = "1"  # or Hydra would print lines of its own about what cannot be composed
            try:
                return hydra.main(version_base="1.3", config_path=str(folder), config_name=name)(guarded)()
            except (HydraException, OmegaConfBaseException) as error:
                _exit(UserError(_in_words(error)))

        return main

    return decorate


def native_precision() -> str:
    """`bf16-mixed` where the GPU, or else the CPU, computes in bfloat16 by itself; else `16-mixed`, or `32-true`."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if computes_bfloat16(device):
        return "bf16-mixed"
    return "16-mixed" if device == "cuda" else "32-true"


def computes_bfloat16(device: str) -> bool:
    """Whether a device, `cpu` or `cuda`, computes in bfloat16 by itself."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # older torch does not tell
    return capabilities.get("avx512_bf16", False) or capabilities.get("amx_bf16", False)


OmegaConf.register_new_resolver("native_precision", native_precision, replace=True)
OmegaConf.register_new_resolver("run_stamp", run_stamp, use_cache=True, replace=True)  # one for all jobs of a sweep
OmegaConf.register_new_resolver("expanduser", lambda path: str(Path(str(path)).expanduser()), replace=True)


def config_folder() -> Path:
    """The `conf` tree: inside the package where it is installed, beside it in a checkout."""
    package = Path(__file__).parent
    return package / "conf" if (package / "conf").is_dir() else package.parent / "conf"


def quote_path(argument: str) -> str:
    """Quote the value of a `key=path` argument; anything else comes back as it is."""
    key, equals, value = argument.partition("=")
    if not equals or key.lstrip("+") not in PATH_KEYS or _QUOTED.fullmatch(value):
        return argument
    if key.lstrip("+") == "source" and re.fullmatch(r"\[.*\]", value, re.DOTALL) and not Path(value).exists():
        return argument  # a list of them
    # In Hydra's grammar a backslash is special only before a quote or at the end.
    escaped = re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), value)
    return f"{key}='{escaped}'"


def add_checkpoint_options(arguments: list[str], config_name: str) -> list[str]:
    """Offer what the checkpoint `ckpt=` brings as the config group option `checkpoint`, and choose it.

    A file from elsewhere implies options such as `model=torchvision`; a checkpoint of ours is scored in the
    precision of its training, so that the numbers come out again. What the user chose replaces the checkpoint's.

    Args:
        arguments: Of the command.
        config_name: Its primary config; what this lacks is left out.

    Raises:
        UserError: The checkpoint cannot be read.
    """
    values = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    path = _unquote(values.get("ckpt", "null"))
    if path in ("null", "") or _SHOWN_ONLY & set(arguments):
        return arguments
    weights = read_checkpoint(path)
    fixed = next((key for key in values if re.split(r"[./]", key)[0] in ("model", "tta")), None)
    if fixed and is_exported(path):
        raise UserError(
            f"{fixed}: the settings of an exported model are fixed; leave this key out, or give the checkpoint "
            "that it was made of"
        )
    chosen = weights.groups
    if not chosen:
        _store_options(weights)
        precision = _node(weights.config, "trainer", weights).get("precision", "32-true")
        chosen = {"model": "checkpoint", "data": "checkpoint", "trainer.precision": precision}
    chosen = chosen | {f"model.{key}": value for key, value in weights.settings.items()}
    primary = OmegaConf.load(config_folder() / f"{config_name}.yaml")
    nodes = {group for entry in primary.defaults if isinstance(entry, DictConfig) for group in entry} | set(primary)
    options = [
        f"{key}={value}" for key, value in chosen.items() if key not in values and re.split(r"[./]", key)[0] in nodes
    ]
    after = next(i for i, argument in enumerate(arguments, start=1) if argument.startswith("ckpt="))
    return arguments[:after] + options + arguments[after:]  # in one block: the parser takes no second one


def compose_config(config_name: str, arguments: Sequence[str]) -> DictConfig:
    """The config that a command would be called with, for a program that is none.

    Args:
        config_name: The primary config in `conf/`, of a command whose model the checkpoint owns.
        arguments: As on the command line.

    Raises:
        UserError: The checkpoint cannot be read, or an argument is not understood.
    """
    overrides = add_checkpoint_options([quote_path(argument) for argument in arguments], config_name)
    try:
        return _compose(config_name, overrides)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(_in_words(error)) from error


def primary_config(config_name: str, arguments: list[str]) -> tuple[Path, str, list[str]]:
    """Where the config to start from is, and the arguments on top of it.

    That is `config_name` in `conf/`; with `resume=` it is what the resumed run was composed of, in its own folder.

    Raises:
        UserError: The run cannot be continued.
    """
    values = {key.lstrip("+~"): value for key, _, value in (argument.partition("=") for argument in arguments)}
    resume = _unquote(values.get("resume", "null"))
    if resume in ("null", "") or _SHOWN_ONLY & set(arguments):
        return config_folder(), config_name, arguments
    if {"-m", "--multirun"} & set(arguments):
        raise UserError("resume: continues one run; not with --multirun")
    group = next((key for key in values if (config_folder() / key).is_dir()), None)
    if group:
        raise UserError(f"{group}={values[group]}: a resumed run keeps its own {group}; override single keys of it")
    settled = next((key for key in values if key.startswith("optim.") or key == "data.batch_size"), None)
    if settled:
        raise UserError(f"{settled}: a resumed run goes on with what is in the checkpoint; leave this key out")
    run_dir = _unquote(values.get("hydra.run.dir", ""))
    if resume == "auto":
        run = Path(run_dir).expanduser() if run_dir else newest_run(Path("outputs"))
        checkpoint = newest_checkpoint(run / "checkpoints")
        if checkpoint is None:
            raise UserError(f"resume=auto: {run / 'checkpoints'} holds no checkpoint that training can go on from")
    else:
        checkpoint = Path(resume).expanduser()
        read_training_state(checkpoint)
    checkpoint = checkpoint.resolve()
    run = checkpoint.parent.parent
    if not (run / ".hydra" / "config.yaml").is_file():
        raise UserError(f"resume={checkpoint}: is not in the checkpoints/ of a run folder, there is no {run}/.hydra")
    if run_dir and Path(run_dir).resolve() != run:
        raise UserError(f"hydra.run.dir={run_dir}: a resumed run stays in its own folder {run}; leave this key out")
    # In the place of the first, in one block: the parser takes no second one. ++ for a run from before this key.
    own = [key.lstrip("+") in ("resume", "hydra.run.dir") for key, _, _ in (a.partition("=") for a in arguments)]
    kept = [argument for argument, replaced in zip(arguments, own, strict=True) if not replaced]
    first = own.index(True)
    added = [quote_path(f"++resume={checkpoint}"), quote_path(f"hydra.run.dir={run}")]
    return run / ".hydra", "config", kept[:first] + added + kept[first:]


def child_config() -> tuple[Path, str, list[str]]:
    """The same for a process that a run started for a further device: what the run is composed of, in its folder."""
    run = job_folder()
    assert run
    arguments = [quote_path(f"hydra.run.dir={run}"), "hydra.output_subdir=null", "hydra/job_logging=stdout"]
    return run / ".hydra", "config", arguments


def _store_options(weights: Weights) -> None:
    store = ConfigStore.instance()
    model = _node(weights.config, "model", weights)
    subgroups = [
        entry.name for entry in (config_folder() / "model").iterdir() if entry.is_dir() and entry.name in model
    ]
    for name in subgroups:
        store.store(group=f"model/{name}", name="checkpoint", node=_node(model, name, weights))
        del model[name]
    defaults = [{name: "checkpoint"} for name in subgroups]
    store.store(group="model", name="checkpoint", node={"defaults": [*defaults, "_self_"], **model})
    store.store(group="data", name="checkpoint", node=_node(weights.config, "data", weights))


def _node(parent: Any, name: str, weights: Weights) -> dict[str, Any]:
    """A node of the checkpoint's config. A `defaults` list in it could reach into Hydra's own settings."""
    node = parent.get(name) if isinstance(parent, dict) else None
    if not isinstance(node, dict) or "defaults" in node:
        raise UserError(f"ckpt={weights.path}: its config holds no {name} that can be used")
    return dict(node)


def model_config(weights: Weights) -> dict[str, Any]:
    """The `model` node that weights were made for, as plain values; {} where nothing says."""
    if not weights.groups:
        return weights.config.get("model", {})
    options = [*weights.groups.items(), *((f"model.{key}", value) for key, value in weights.settings.items())]
    return plain(_compose("train", [f"{key}={value}" for key, value in options]).model)


def _compose(config_name: str, overrides: list[str]) -> DictConfig:
    running = GlobalHydra.instance().hydra  # a process has one; on a further device it reads the run's folder
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(config_folder()), version_base="1.3"):
            return compose(config_name, overrides=overrides)
    finally:
        if running:
            GlobalHydra.instance().initialize(running)


def plain(cfg: DictConfig) -> dict[str, Any]:
    """The config as plain dicts, lists and scalars, with every reference resolved."""
    return OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)  # type: ignore[return-value]


def variant(overrides: Sequence[str], *, node: str) -> dict[str, Any]:
    """A node of the config of the command under way, as it is with further overrides behind those that were typed.

    Raises:
        UserError: The config takes no such overrides.
    """
    command_line = HydraConfig.get()
    try:
        cfg = hydra.compose(command_line.job.config_name, [*command_line.overrides.task, *overrides])
    except HydraException as error:
        raise UserError(f"{' '.join(overrides)}: {_in_words(error)}") from error
    return plain(cfg)[node]


def build(node: Any, *, key: str, trust: Sequence[str] = (), **extra: Any) -> Any:
    """Build what a config node describes, references resolved; see `building.build`."""
    return build_plain(plain(node) if isinstance(node, DictConfig) else node, key=key, trust=trust, **extra)


def _in_words(error: HydraException | OmegaConfBaseException) -> str:
    """Why a config cannot be composed, on one line."""
    if isinstance(error, MissingConfigException) and error.options:
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        return f"{group}={option}: no such option; {group} is one of {', '.join(error.options)}"
    cause = error.__cause__
    if not isinstance(cause, ConfigKeyError | ConfigAttributeError):
        return one_line(error)
    parent, dot, key = str(cause.full_key).rpartition(".")
    known = [str(name) for name in cause.parent_node or ()]
    if "/" in key:
        known = [str(entry.relative_to(config_folder())) for entry in config_folder().rglob("*") if entry.is_dir()]
    near = get_close_matches(key, known, n=1)
    hint = f"did you mean {parent}{dot}{near[0]}?" if near else f"{parent or 'the config'} has {', '.join(known)}"
    return f"{cause.full_key}: unknown key; {hint if known else f'{parent} is a single value'}"


def _unquote(value: str) -> str:
    if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
        return re.sub(r"(\\+)('|$)", lambda m: "\\" * (len(m[1]) // 2) + m[2], value[1:-1])
    return value


def _remove_unused(folder: Path, *, since: float) -> None:
    """Remove the folder of a run that never got anywhere, unless something in it is older or of value."""
    valuable = [*folder.glob("checkpoints/*"), folder / "metrics.csv", folder / REPORT]
    valuable += [folder / "predictions.json", folder / "frames"]
    if own_rank() or not folder.is_dir() or any(path.exists() for path in valuable):
        return
    if all(entry.stat().st_mtime >= since - 1 for entry in folder.rglob("*")):
        shutil.rmtree(folder)


def _exit(error: BaseException) -> None:
    if own_rank():
        time.sleep(GRACE)  # rank 0 ends this process meanwhile if it says the same
    print(f"error: {one_line(error)}", file=sys.stderr)
    raise SystemExit(1)
