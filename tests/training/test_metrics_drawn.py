"""The figure of training runs, from the files that they leave."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from nullius.cli.main import app
from nullius.errors import UsageError
from nullius.lab import training_curves


def write(folder: Path, losses, held_out=()):
    folder.mkdir()
    records = [{"step": i, "loss": loss} for i, loss in enumerate(losses, 1)]
    records += [{"step": step, "held_out": loss} for step, loss in held_out]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records), "utf-8")
    return folder


def test_losses_are_drawn_and_thinned(tmp_path):
    long = write(tmp_path / "long", [4.0 - i / 1000 for i in range(1000)], [(500, 3.7), (1000, 3.2)])
    drawn = training_curves.figure(
        {"long": training_curves.read(long), "short": training_curves.read(write(tmp_path / "short", [5.0, 4.0]))}
    )
    training, held_out = drawn.panels
    assert [series.name for series in training.series] == ["long", "short"]
    assert training.series[0].x[0] == 3
    assert training.series[0].y[0] == pytest.approx((4.0 + 3.999 + 3.998) / 3)
    assert len(training.series[0].x) <= training_curves.MOST
    assert list(training.series[1].y) == [5.0, 4.0]
    assert list(held_out.series[0].y) == [3.7, 3.2]


def test_what_is_no_run(tmp_path):
    with pytest.raises(UsageError, match="no metrics of a training run"):
        training_curves.read(tmp_path)
    folder = write(tmp_path / "run", [3.0, 2.0])
    path = folder / "metrics.jsonl"
    path.write_text(path.read_text("utf-8") + '{"step": 3, "lo', "utf-8")  # being written
    assert len(training_curves.read(folder)) == 2
    path.write_text("nothing\n" + path.read_text("utf-8"), "utf-8")
    with pytest.raises(UsageError, match=r"metrics.jsonl, line 1: no record"):
        training_curves.read(path)
    with pytest.raises(UsageError, match="holds no loss yet"):
        training_curves.read(write(tmp_path / "new", []))
    with pytest.raises(UsageError, match="at most 6 runs"):
        training_curves.figure({str(i): [] for i in range(7)})


@pytest.mark.parametrize("kind", ["html", "svg"])
def test_from_the_command_line(tmp_path, kind):
    out = tmp_path / f"figure.{kind}"
    done = CliRunner().invoke(app, ["curves", str(write(tmp_path / "run", [3.0, 2.0, 1.5])), "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert "nats per token" in out.read_text("utf-8")
