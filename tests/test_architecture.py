"""Who may know whom, read from the imports and calls of every module."""

import ast
import fnmatch
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "maskrcnn"
COMMANDS = [ROOT / "train.py", ROOT / "evaluate.py"]
MODULES = sorted(PACKAGE.rglob("*.py"))
NAMES = [str(path.relative_to(ROOT)) for path in MODULES]

# Room -> what of ours it may import.
ROOMS = {
    "errors": set(),
    "memory": set(),
    "ops": {"ops", "errors"},
    "models": {"models", "ops", "errors"},
    "data": {"data", "ops", "errors"},
    "evaluation": {"evaluation", "data", "ops", "errors"},
    "plotting": set(),
    "report": {"report", "evaluation", "data", "plotting", "errors"},
    "launch": {"errors"},
    "training": {"training", "building", "evaluation", "data", "models", "ops", "launch", "errors"},
    "building": {"errors"},
    "sweep": {"launch", "errors"},
    "config": {"building", "loading", "training", "models", "launch", "memory", "sweep", "errors"},
    "check_data": {"check_data", "config", "evaluation", "data", "plotting", "errors"},
    "export": {"export", "config", "loading", "models", "ops", "errors"},
    "loading": {"building", "models", "errors"},
    "predict": {"predict", "config", "evaluation", "data", "loading", "models", "ops", "errors"},
    "web": {"web", "config", "predict", "errors"},
    "benchmark": {
        "benchmark",
        "building",
        "config",
        "data",
        "evaluation",
        "memory",
        "models",
        "ops",
        "plotting",
        "training",
        "errors",
    },
}

# Libraries that stay behind the modules named here.
ONLY_IN = {
    "hydra": {"config.py", "sweep.py"},  # whose hooks Hydra calls with its own objects
    "omegaconf": {"config.py", "sweep.py"},
    "albumentations": {"data/pixels.py"},
    "pytorch_lightning": {"building.py", "config.py", "launch.py", "data/datamodule.py", "training/*.py"},
    "tensorboard": set(),
    "rich": {"training/progress.py", "check_data/pictures.py", "predict/run.py", "sweep.py"},
    "onnx": set(),
    "onnxruntime": {"models/exported/onnx_model.py"},
    "onnxscript": {"export/suppression.py"},
    "matplotlib": {
        "benchmark/growth_plot.py",
        "check_data/plots.py",
        "evaluation/visualize.py",  # its font
        "plotting.py",
        "report/plots.py",
    },
    "jinja2": {"check_data/report.py", "report/page.py"},
    "torchmetrics": {"evaluation/coco.py"},
    "gradio": {"web/page.py"},
    "pickle": {"models/weights/files.py"},  # whose reader has a list of what a file may name
    "lightning_fabric": {"predict/predictor.py", "training/slurm.py"},
    "logging": {"config.py", "data/*.py", "export/writers.py", "predict/predictor.py", "training/*.py"},
}

READS = {"open", "read_text", "read_bytes", "torch.load", "numpy.load", "cv2.imread", "Image.open"}
WRITES = {
    "open",
    "write_text",
    "write_bytes",
    "mkdir",
    "touch",
    "unlink",
    "rename",
    "save",
    "imwrite",
    "rmtree",
}

VISIBLE = {
    "conf",
    "evaluate.py",
    "LICENSE",
    "maskrcnn",
    "outputs",
    "pyproject.toml",
    "README.md",
    "tests",
    "train.py",
}
IGNORED = {"build", "data", "dist", "*.egg-info", "__pycache__"}


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path) -> Iterator[str]:
    """Dotted names of everything that is imported, anywhere in the file."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            assert node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """Dotted names of everything that is called, and the calls."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def is_one_of(call: str, names: set[str]) -> bool:
    return call in names or any("." not in name and call.endswith(f".{name}") for name in names)


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", MODULES, ids=NAMES)
def test_a_room_imports_only_what_it_may(path):
    if room(path) == "__init__":
        eager = [node for node in tree(path).body if isinstance(node, ast.Import | ast.ImportFrom)]
        assert {getattr(node, "module", "") for node in eager} == {"importlib", "typing"}  # it imports in no time
        return
    ours = {name.split(".")[1] for name in imports(path) if name.startswith("maskrcnn.")}
    assert ours <= ROOMS[room(path)]


@pytest.mark.parametrize("library", ONLY_IN)
def test_libraries_stay_behind_their_modules(library):
    users = {
        str(path.relative_to(PACKAGE))
        for path in MODULES
        if any(name.split(".")[0] == library for name in imports(path))
    }
    strangers = {user for user in users if not any(fnmatch.fnmatch(user, known) for known in ONLY_IN[library])}
    assert strangers == set()


def test_nothing_of_the_package_imports_the_commands():
    commands = {path.stem for path in COMMANDS}
    assert not [path for path in MODULES if commands & {name.split(".")[0] for name in imports(path)}]


def test_of_the_models_only_the_weights_touch_files():
    users = {
        str(path.parent.relative_to(PACKAGE))
        for path in MODULES
        if room(path) == "models" and any(is_one_of(name, READS | WRITES) for name, _ in calls(path))
    }
    assert users == {"models/weights"}


def test_of_training_only_what_keeps_a_run_writes():
    users = {
        path.name
        for path in MODULES
        if room(path) == "training" and any(is_one_of(name, WRITES) for name, _ in calls(path))
    }
    assert users == {
        "checkpoints.py",
        "guard.py",
        "initialization.py",
        "loggers.py",
        "pictures.py",
        "report.py",
        "trackers.py",
    }


def test_ops_and_evaluation_write_nothing():
    for path in MODULES:
        if room(path) in ("ops", "evaluation"):
            assert not [name for name, _ in calls(path) if is_one_of(name, WRITES)], path


def test_every_load_takes_tensors_and_plain_types_alone():
    loads = [(path, call) for path in (*MODULES, *COMMANDS) for name, call in calls(path) if name == "torch.load"]
    assert loads
    for path, call in loads:
        weights_only = [word.value for word in call.keywords if word.arg == "weights_only"]
        assert [ast.unparse(value) for value in weights_only] == ["True"], f"{path}:{call.lineno}"


def test_nothing_else_unpickles_or_evaluates():
    dangerous = {
        "eval",
        "exec",
        "pickle.load",
        "pickle.loads",
        "torch.hub.load",
        "np.load",
        "numpy.load",
        "yaml.load",
        "os.system",
        "hydra.utils.instantiate",
        "instantiate",
    }
    for path in (*MODULES, *COMMANDS):
        assert not [name for name, _ in calls(path) if name in dangerous], path
        assert "torch.load" not in set(imports(path)), path


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.name)
def test_a_command_fits_on_one_screen(path):
    (main,) = [node for node in tree(path).body if isinstance(node, ast.FunctionDef) and node.name == "main"]
    assert main.end_lineno - main.lineno <= 40


def test_top_level_holds_the_known_entries_alone():
    visible = {path.name for path in ROOT.iterdir() if not path.name.startswith(".")}
    found = {name for name in visible if not any(fnmatch.fnmatch(name, pattern) for pattern in IGNORED)}
    assert found == VISIBLE


def test_every_package_is_installed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    packages = {".".join(path.parent.relative_to(ROOT).parts) for path in MODULES if path.name == "__init__.py"}
    assert set(project["tool"]["setuptools"]["packages"]) == packages | {"maskrcnn.conf"}
