"""`nullius feed` and `nullius papers --search` as programs: what they print and how they exit."""

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from nullius.cli.main import app
from nullius.feed.search import weights

from .source_server import daily, entry, serving


@pytest.fixture
def nullius(sqlite, monkeypatch):
    monkeypatch.setattr(weights, "here", lambda: False)

    def call(*arguments, stdin=None):
        return CliRunner().invoke(app, list(arguments), input=stdin)

    return call


def listed(count, **change):
    return json.dumps([daily(entry(number, **change)) for number in range(1, count + 1)])


def test_import_from_a_file_says_how_many(nullius, tmp_path):
    path = tmp_path / "papers.json"
    path.write_text(listed(3).replace("2401.00002", "nonsense"), "utf-8")
    done = nullius("feed", "import", str(path))
    assert done.exit_code == 0
    assert "2 imported, 1 rejected (2 new, 0 changed)" in done.stdout
    assert "left out, record 2: 'nonsense' is no arXiv id" in done.output


def test_nothing_usable_is_exit_code_1(nullius, tmp_path):
    path = tmp_path / "page.html"
    path.write_text("<html><title>502 Bad Gateway</title>", "utf-8")
    done = nullius("feed", "import", str(path))
    assert done.exit_code == 1
    assert "502 Bad Gateway" in done.output


def test_import_as_json_from_standard_input(nullius):
    done = nullius("feed", "import", "-", "--json", stdin=listed(2))
    data = json.loads(done.stdout)
    assert data["schema"] == "nullius.imports/1"
    assert (data["imports"][0]["seen"], data["imports"][0]["error"]) == (2, "")


def test_import_from_a_mirror_that_is_allowed(nullius, monkeypatch):
    with serving() as source:
        source.papers = [entry(1)]
        monkeypatch.setenv("NULLIUS_IMPORT_HOSTS", source.address.removeprefix("http://"))
        assert nullius("feed", "import", f"{source.address}/papers/2401.00001").exit_code == 0
        monkeypatch.delenv("NULLIUS_IMPORT_HOSTS")
        assert nullius("feed", "import", f"{source.address}/papers/2401.00001").exit_code == 1


def test_imported_papers_are_found(nullius):
    nullius("feed", "import", "-", stdin=listed(2, abstract="About whales."))
    done = nullius("papers", "--search", "whales", "--json")
    data = json.loads(done.stdout)
    assert [paper["key"] for paper in data["papers"]] == ["2401.00002", "2401.00001"] or len(data["papers"]) == 2
    assert data["meaning"] is False
    assert "whales" not in nullius("papers", "--search", "whales runnable:yes").stdout
    assert json.loads(nullius("papers", "--search", "embers", "--runnable", "--json").stdout)["papers"][0]["slug"] == "embers"


def test_searching_imports_no_torch(sqlite):
    code = "import sys; from nullius.feed.search import engine; engine.search('attention heads'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
