"""Where the curves of many runs come together: Weights & Biases, MLflow."""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from pytorch_lightning.loggers import MLFlowLogger, WandbLogger
from pytorch_lightning.utilities import rank_zero_only

from maskrcnn.errors import UserError


class WandbCurves(WandbLogger):
    """Weights & Biases; a resumed run goes on as the same run.

    Args:
        folder: What it keeps on this machine goes to `wandb/` in there.
        project: The project of the run.
        name: Of the run; null lets Weights & Biases make one up.
        offline: Send nothing; `wandb sync` does it later.
    """

    def __init__(
        self, *, folder: str, project: str = "maskrcnn", name: str | None = None, offline: bool = False
    ) -> None:
        _require("wandb")
        super().__init__(save_dir=folder, project=project, name=name, offline=offline)

    @property
    def where(self) -> str:
        """What to type, or where to go."""
        return f"wandb sync {Path(self._wandb_init['dir']) / 'wandb'}" if self._offline else self.experiment.url

    def resume(self, first_step: int) -> None:
        """Go on with the newest run that was logged from this folder. What it logged is not taken back."""
        runs = sorted(Path(self._wandb_init["dir"]).glob("wandb/*run-*-*"), key=lambda path: path.stat().st_mtime)
        if runs:
            self._id = self._wandb_init["id"] = runs[-1].name.rpartition("-")[2]

    @rank_zero_only
    def add_picture(self, name: str, picture: np.ndarray, step: int) -> None:
        """As an image."""
        self.log_image(name, [picture], step)

    @rank_zero_only
    def add_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[str]], step: int) -> None:
        """As a table."""
        self.log_table(name, columns=list(columns), data=[list(row) for row in rows], step=step)


class MLflowCurves(MLFlowLogger):
    """MLflow; a resumed run goes on as the same run.

    Args:
        folder: The run folder; the run carries it as its name and as the tag `run_folder`.
        experiment: The experiment of the run.
        tracking_uri: A server, or a database file, which is made if it is not there; the files of its runs are
            kept beside it.
    """

    def __init__(
        self, *, folder: str, experiment: str = "maskrcnn", tracking_uri: str = "sqlite:///outputs/mlflow.db"
    ) -> None:
        _require("mlflow")
        self._folder = str(Path(folder).resolve())
        files = None
        if tracking_uri.startswith("sqlite:///"):
            files = Path(tracking_uri.removeprefix("sqlite:///")).resolve().parent / "mlflow"
            files.parent.mkdir(parents=True, exist_ok=True)
        super().__init__(
            experiment_name=experiment,
            run_name=Path(folder).name,
            tracking_uri=tracking_uri,
            tags={"run_folder": self._folder},
            artifact_location=None if files is None else files.as_uri(),
        )

    @property
    def where(self) -> str:
        """What to type."""
        return f"mlflow ui --backend-store-uri {self._tracking_uri}"

    @rank_zero_only
    def resume(self, first_step: int) -> None:
        """Go on with the newest run that was logged from this folder. What it logged is not taken back."""
        experiment = self._mlflow_client.get_experiment_by_name(self._experiment_name)
        if experiment is not None:
            mark = "'" if '"' in self._folder else '"'
            runs = self._mlflow_client.search_runs(
                [experiment.experiment_id], f"tags.run_folder = {mark}{self._folder}{mark}"
            )
            if runs:
                self._run_id = runs[0].info.run_id  # the newest is first

    @rank_zero_only
    def log_hyperparams(self, params: Mapping[str, Any]) -> None:  # type: ignore[override]
        """Those that the run does not have yet: MLflow lets none be changed."""
        known = self.experiment.get_run(self.run_id).data.params
        super().log_hyperparams({key: value for key, value in params.items() if key not in known})

    @rank_zero_only
    def add_picture(self, name: str, picture: np.ndarray, step: int) -> None:
        """As an image with steps."""
        self.experiment.log_image(self.run_id, picture, key=name, step=step)

    @rank_zero_only
    def add_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[str]], step: int) -> None:
        """As a file for each step."""
        cells = {title: [row[i] for row in rows] for i, title in enumerate(columns)}
        self.experiment.log_table(self.run_id, cells, f"{name}/{step}.json")


def _require(package: str) -> None:
    """The extras have the names of their packages."""
    if find_spec(package) is None:
        raise UserError(
            f"logger={package}: the package {package} is not installed; "
            f"pip install 'maskrcnn-lightning[{package}]', or choose another logger"
        )
