"""`nullius models`: the list, as a page and as JSON; an unknown name; no torch needed."""

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from nullius.cli.models import app
from nullius.errors import UsageError
from nullius.models.sources import sources


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NULLIUS_CACHE", str(tmp_path))


def test_the_list_names_source_licence_size_and_what_is_here(tmp_path):
    place = tmp_path / "models" / "smollm2-135m"
    place.mkdir(parents=True)
    (place / "subject.json").write_text(json.dumps({"source": "hub x at 0123", "licence": "Apache-2.0", "quantisation": "", "name": "x"}))
    page = CliRunner().invoke(app, []).stdout
    assert max(map(len, page.splitlines())) <= 80
    for source in sources().values():
        assert source.name in page
        assert source.licence.split()[0] in page
    assert page.count("not fetched") == len(sources()) - 1
    assert "from hub x at 0123\n" in page
    assert "135 M parameters" in page
    listing = json.loads(CliRunner().invoke(app, ["--json"]).stdout)
    assert listing["schema"] == "nullius.models/1"
    here = {entry["name"]: entry["here"] for entry in listing["models"]}
    assert here.pop("smollm2-135m")
    assert not any(here.values())
    assert listing["models"][0]["provenance"]["source"] == "hub x at 0123"


def test_unknown_names_get_the_nearest():
    result = CliRunner().invoke(app, ["fetch", "smollm-135"])
    assert isinstance(result.exception, UsageError)
    assert "nearest: smollm2-135m" in str(result.exception)


def test_listing_imports_no_torch():
    program = "import sys; from nullius.cli.models import app; app(['--json'], standalone_mode=False); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
