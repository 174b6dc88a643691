"""Check a data set and show what it holds: `python -m maskrcnn.check_data data=custom data.root=/my/set`."""

from pathlib import Path

from maskrcnn.check_data.contact_sheet import draw_contact_sheet
from maskrcnn.check_data.findings import find_problems, try_to_start
from maskrcnn.check_data.pictures import check_pictures
from maskrcnn.check_data.plots import draw_plots
from maskrcnn.check_data.report import print_summary, write_report
from maskrcnn.check_data.splits import read_splits
from maskrcnn.check_data.statistics import Statistics
from maskrcnn.config import Config, build, command


@command("check_data")
def main(cfg: Config) -> None:
    """List every problem, count and draw what there is; the exit code says whether training can start."""
    data = build(cfg.data, key="data", trust=cfg.trust)
    splits, findings = read_splits(data)
    for split in splits:
        check_pictures(split, workers=data.num_workers)
    findings += find_problems(data, splits)
    findings += try_to_start(data, findings)
    statistics = {split.name: Statistics.of(split) for split in splits}
    folder = Path(cfg.folder)
    sheet = draw_contact_sheet(data, splits, count=cfg.pictures)
    write_report(folder, findings, statistics, root=data.root, plots=draw_plots(statistics), sheet=sheet)
    if not print_summary(folder, findings, statistics, root=data.root):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
