"""Curves of runs that diverged, and of files that are no metrics."""

import json

import pytest

from nullius.errors import UsageError
from nullius.lab import training_curves


def write(path, *records):
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records), "utf-8")
    return training_curves.read(path)


def test_where_a_run_diverged_there_is_no_point(tmp_path):
    records = write(tmp_path / "m.jsonl", *({"step": i, "loss": loss} for i, loss in enumerate((3.0, 2.0, float("nan"), None))))
    (panel,) = training_curves.figure({"run": records}).panels
    assert list(panel.series[0].y) == [3.0, 2.0, None, None]


def test_what_is_no_number_is_passed_over(tmp_path):
    records = write(
        tmp_path / "m.jsonl", {"step": 0, "loss": 3.0}, {"step": 1, "loss": "three"}, {"loss": 2.0}, {"step": 3, "held_out": None}
    )
    (panel,) = training_curves.figure({"run": records}).panels
    assert (list(panel.series[0].x), list(panel.series[0].y)) == ([0.0], [3.0])


def test_files_that_are_no_metrics(tmp_path):
    for records, said in (
        ((3, {"loss": 1.0}), "line 1: no record"),
        (({"step": 1},), "holds no loss yet"),
        (([1], [2]), "line 1: no record"),
    ):
        with pytest.raises(UsageError, match=said):
            write(tmp_path / "m.jsonl", *records)
    records = write(tmp_path / "m.jsonl", {"step": 0, "loss": float("nan")})
    with pytest.raises(UsageError, match="no loss of run is a finite number"):
        training_curves.figure({"run": records})
