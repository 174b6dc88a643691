"""Sweeps through the command line, and their table against what the jobs left on disk."""

import csv
import json

import pytest
import yaml

from maskrcnn.data.shapes import draw_shapes
from maskrcnn.sweep import print_table, read_jobs, write_table
from tests.cli_tools import TINY, files, run

HIDES_ALL = 0.99  # no detection of a model that has hardly trained scores as high


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A drawn set, and a model that has learnt a little of its pictures."""
    folder = tmp_path_factory.mktemp("sweep")
    draw_shapes(folder / "shapes", train_images=4, val_images=2, image_size=64)
    steps = ["optim=adamw", "optim.lr=1e-3", "schedule.warmup_epochs=0", "trainer.max_epochs=10"]
    steps += ["trainer.check_val_every_n_epoch=10", "model.score_thresh=0.0", f"hydra.run.dir={folder / 'first'}"]
    outcome = run("train", *settings(folder), *steps)
    assert outcome.code == 0, outcome.err
    assert json.loads((folder / "first" / "metrics.json").read_text())["mask"]["ap"] > 0
    return folder


def settings(folder):
    return [
        *(setting for setting in TINY if not setting.startswith("model.score_thresh=")),
        "model/backbone=resnet18",  # learns masks in ten epochs
        "data=coco",
        f"data.root={folder / 'shapes'}",
        "data.val_annotations=annotations/instances_train2017.json",
        "data.val_images=train2017",
        "augment=none",
        "trainer.enable_progress_bar=false",
        "logger=none",
    ]


def sweep(start, folder, *arguments):
    """Jobs of one step that hardly changes the weights."""
    first = f"init={start / 'first' / 'checkpoints' / 'last.ckpt'}"
    length = ["trainer.max_epochs=1", "optim.lr=1e-7", "trainer.enable_checkpointing=false"]
    return run("train", "-m", *settings(start), first, *length, f"hydra.sweep.dir={folder}", *arguments)


def table(folder):
    with (folder / "sweep.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def score(folder):
    scores = json.loads((folder / "metrics.json").read_text())
    return scores["mask"]["ap"], scores["box"]["ap"]


def errors(outcome):
    return [line for line in outcome.err.splitlines() if line.startswith("error: ")]


# --- the table alone


def job(sweep, number, overrides, *, folder=None, mask=None, box=None, error=None):
    """What a job leaves behind."""
    folder = sweep / (folder or str(number))
    (folder / ".hydra").mkdir(parents=True)
    settings = {"hydra": {"job": {"num": number}, "overrides": {"task": overrides}}}
    (folder / ".hydra" / "hydra.yaml").write_text(yaml.safe_dump(settings))
    if mask is not None:
        (folder / "metrics.json").write_text(json.dumps({"box": {"ap": box}, "mask": {"ap": mask}, "images": 3}))
    if error:
        (folder / "error.txt").write_text(error)


@pytest.fixture
def jobs(tmp_path):
    job(tmp_path, 0, ["seed=1", "optim.lr=0.1", "+new=a"], error="optim: too high, at last")
    job(tmp_path, 1, ["seed=1", "optim.lr=0.2", "+new=a"], mask=0.25, box=0.75)
    job(tmp_path, 2, ["seed=1", "optim.lr=0.3", "+new=b"])
    job(tmp_path, 4, ["seed=1", "optim.lr=0.4"], mask=0.123456789, box=0.875, folder="deeper/lr=0.4")
    job(tmp_path, 5, ["seed=1", "optim.lr=0.5", "+new=b"], mask=0.5, box=0.5)
    return tmp_path


def test_table_is_sorted_by_mask_ap_and_knows_what_is_not_scored(jobs):
    write_table(jobs, read_jobs(jobs))
    assert (jobs / "sweep.csv").read_text().splitlines() == [
        "job,optim.lr,new,mask_ap,box_ap,status,folder",
        f"5,0.5,b,0.5,0.5,done,{jobs / '5'}",
        f"1,0.2,a,0.25,0.75,done,{jobs / '1'}",
        f"4,0.4,,0.123456789,0.875,done,{jobs / 'deeper/lr=0.4'}",
        f'0,0.1,a,,,"failed: optim: too high, at last",{jobs / "0"}',
        f"2,0.3,b,,,no score,{jobs / '2'}",
        "3,,,,,missing,",
    ]


def test_a_failure_counts_more_than_scores_of_an_earlier_run(jobs):
    (jobs / "5" / "error.txt").write_text("gone")
    assert read_jobs(jobs)[0].number == 1


def test_terminal_shows_the_same_rows(jobs, capsys):
    print_table(jobs, read_jobs(jobs))
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line]
    assert lines == [
        ["job", "optim.lr", "new", "mask", "AP", "box", "AP", "folder"],
        ["5", "0.5", "b", "0.5000", "0.5000", "5"],
        ["1", "0.2", "a", "0.2500", "0.7500", "1"],
        ["4", "0.4", "0.1235", "0.8750", "deeper/lr=0.4"],
        ["0", "0.1", "a", "failed", "0"],
        ["2", "0.3", "b", "no", "score", "2"],
        ["3", "missing"],
        ["sweep:", str(jobs / "sweep.csv")],
    ]


@pytest.mark.parametrize("columns", [70, 80, 200])
def test_long_values_are_shortened_in_the_terminal_alone(tmp_path, capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    keys = ("model.rpn.sampler.positive_fraction", "data.train_annotations", "optim.weight_decay", "seed")
    for number in range(2):
        values = [f"/a/folder/with/a/long/name/{number}/file.json" for _ in keys]
        job(tmp_path, number, [f"{key}={value}" for key, value in zip(keys, values, strict=True)], mask=0.5, box=0.5)
    jobs = read_jobs(tmp_path)
    write_table(tmp_path, jobs)
    print_table(tmp_path, jobs)
    *lines, _ = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= min(columns, 80)
    assert sum(line.count("…") for line in lines) == 8
    assert [row["seed"] for row in table(tmp_path)] == [f"/a/folder/with/a/long/name/{n}/file.json" for n in range(2)]


def test_numbers_that_a_search_has_drawn_are_rounded_in_the_terminal(tmp_path, capsys):
    for number, lr in enumerate(("0.00000125", "0.0012520653814999472", "1.0e-4")):
        job(tmp_path, number, [f"optim.lr={lr}"], mask=0.5, box=0.5)
    print_table(tmp_path, read_jobs(tmp_path))
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [row[1] for row in rows if row[-1:] in (["0"], ["1"], ["2"])] == ["1.25e-06", "0.001252", "1.0e-4"]


def test_sweep_without_jobs_or_differences(tmp_path, capsys):
    print_table(tmp_path, read_jobs(tmp_path))
    job(tmp_path, 0, ["seed=1"], mask=0.5, box=0.5)
    print_table(tmp_path, read_jobs(tmp_path))
    assert "seed" not in capsys.readouterr().out


# --- grids


def test_grid_ends_with_the_table_although_a_job_fails(start, tmp_path):
    outcome = sweep(start, tmp_path, f"model.score_thresh={HIDES_ALL},0.0", "optim.weight_decay=1e-4,-1")
    assert outcome.code == 1
    rows = table(tmp_path)
    assert list(rows[0]) == ["job", "model.score_thresh", "optim.weight_decay", "mask_ap", "box_ap", "status", "folder"]
    assert [row["job"] for row in rows] == ["2", "0", "1", "3"]
    assert [row["model.score_thresh"] for row in rows] == ["0.0", str(HIDES_ALL), str(HIDES_ALL), "0.0"]
    for row in rows[:2]:
        assert (float(row["mask_ap"]), float(row["box_ap"])) == score(tmp_path / row["job"])
        assert row["status"] == "done"
        assert row["folder"] == str(tmp_path / row["job"])
    assert float(rows[0]["mask_ap"]) > float(rows[1]["mask_ap"])
    refusal = "optim: Invalid weight_decay value: -1"
    assert [row["status"] for row in rows[2:]] == [f"failed: {refusal}"] * 2
    assert errors(outcome) == [f"error: {refusal}"] * 2 + [
        "error: 2 of 4 jobs failed; see the column status of sweep.csv"
    ]
    assert "Traceback" not in outcome.err
    printed = outcome.out.splitlines()
    header = next(number for number, line in enumerate(printed) if line.startswith("job "))
    assert [line.split()[0] for line in printed[header + 1 : header + 5]] == ["2", "0", "1", "3"]
    assert printed[-1] == f"sweep: {tmp_path / 'sweep.csv'}"


def test_an_unforeseen_error_is_shown_and_the_next_job_runs(start, tmp_path, monkeypatch):
    import train

    conclude = train.conclude

    def fails_once(trainer, module):
        monkeypatch.setattr("train.conclude", conclude)
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("train.conclude", fails_once)
    outcome = sweep(start, tmp_path, "seed=0,1")
    assert outcome.code == 1
    assert "ZeroDivisionError: a bug" in outcome.err
    assert [(row["seed"], row["status"]) for row in table(tmp_path)] == [
        ("1", "done"),
        ("0", "failed: ZeroDivisionError: a bug"),
    ]


def test_ctrl_c_ends_the_sweep_and_keeps_the_table(start, tmp_path, monkeypatch):
    import train

    conclude = train.conclude

    def stops(trainer, module):
        if trainer.default_root_dir == str(tmp_path / "1"):
            raise KeyboardInterrupt
        return conclude(trainer, module)

    monkeypatch.setattr("train.conclude", stops)
    assert sweep(start, tmp_path, "seed=0,1,2").code == 130
    assert [row["job"] for row in table(tmp_path)] == ["0"]
    assert not (tmp_path / "2").exists()


def test_an_interval_needs_a_search(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcome = run("train", "-m", "optim.lr=interval(1e-4,1e-2)")
    assert outcome.code == 1
    (line,) = outcome.err.splitlines()
    assert line.startswith("error: optim.lr=interval(1e-4,1e-2): a grid takes single values")
    assert list(tmp_path.iterdir()) == []


# --- searches


SEARCH = "hydra/sweeper=optuna_mask_ap"


def search(start, folder, *arguments, trials=2):
    pytest.importorskip("optuna", exc_type=ImportError)
    return sweep(start, folder, SEARCH, f"hydra.sweeper.n_trials={trials}", *arguments)


def results(folder):
    return yaml.safe_load((folder / "optimization_results.yaml").read_text())


def test_search_finds_the_higher_ap_and_goes_on_with_its_study(start, tmp_path):
    first, second = tmp_path / "first", tmp_path / "the second"
    outcome = search(start, first, f"model.score_thresh={HIDES_ALL},0.0")
    assert outcome.code == 0, outcome.err
    rows = table(first)
    assert {row["model.score_thresh"] for row in rows} == {"0.0", str(HIDES_ALL)}
    best = results(first)
    assert best["best_params"] == {"model.score_thresh": 0.0}
    assert best["best_value"] == float(rows[0]["mask_ap"]) > float(rows[1]["mask_ap"])
    config = yaml.safe_load((first / "0" / ".hydra" / "config.yaml").read_text())
    assert config["trainer"]["devices"] == 1
    assert "alembic" not in outcome.out

    storage = f"hydra.sweeper.storage=sqlite:///{first / 'study.db'}"
    outcome = search(start, second, f"model.score_thresh={HIDES_ALL},0.0", "optim.lr=1e-8", storage, trials=1)
    assert outcome.code == 0, outcome.err
    import optuna

    study = optuna.load_study(study_name="mask_ap", storage=f"sqlite:///{first / 'study.db'}")
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 3
    assert len(table(second)) == 1
    assert files(second) & {"study.db"} == set()


def test_search_goes_on_after_a_trial_that_fails(start, tmp_path):
    outcome = search(start, tmp_path, "optim.weight_decay=1e-4,-1", "hydra.sweeper.sampler.seed=0")
    assert outcome.code == 1
    states = {row["optim.weight_decay"]: row["status"].partition(":")[0] for row in table(tmp_path)}
    assert states == {"0.0001": "done", "-1": "failed"}
    assert results(tmp_path)["best_params"] == {"optim.weight_decay": 0.0001}
    assert "Traceback" not in outcome.err
    assert errors(outcome)[-1] == "error: 1 of 2 jobs failed; see the column status of sweep.csv"


def test_search_in_which_all_fails_ends_with_a_line(start, tmp_path):
    outcome = search(start, tmp_path, "optim.weight_decay=-2,-1")
    assert outcome.code == 1
    assert errors(outcome)[-1] == "error: no trial ended with a mask AP; the errors are above"
    assert "Traceback" not in outcome.err
    assert [row["status"].partition(":")[0] for row in table(tmp_path)] == ["failed"] * 2


def test_search_without_validations_ends_at_the_first_trial(start, tmp_path):
    outcome = search(start, tmp_path, "seed=0,1", "trainer.fast_dev_run=true")
    assert outcome.code == 1
    assert errors(outcome)[-1].startswith("error: the trial ended without a validation, so there is no mask AP")
    assert [row["status"] for row in table(tmp_path)] == ["no score"]


def test_search_for_the_lowest_ap_is_refused(start, tmp_path):
    pytest.importorskip("optuna", exc_type=ImportError)
    outcome = sweep(start, tmp_path / "sweep", "hydra/sweeper=optuna", "seed=0,1")
    assert outcome.code == 1
    (line,) = errors(outcome)
    assert line.startswith("error: hydra.sweeper.direction: the returned mask AP is to be maximised; ")
    assert list(tmp_path.iterdir()) == []


def test_optuna_that_is_not_installed_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("maskrcnn.sweep.find_spec", lambda name: None)
    monkeypatch.chdir(tmp_path)
    outcome = run("train", "-m", SEARCH, "optim.lr=interval(1e-4,1e-2)")
    assert outcome.code == 1
    assert outcome.err == f"error: {SEARCH}: Optuna is not installed; pip install 'maskrcnn-lightning[sweep]'\n"
    assert list(tmp_path.iterdir()) == []
