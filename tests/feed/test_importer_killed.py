"""An importer killed with SIGKILL at any moment: whole batches are there, the next start goes on, nothing is doubled. More times: KILLS=100."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import sqlalchemy as sa

from nullius.feed import database as feed_database
from nullius.feed import tables
from nullius.feed.importers import running

from .source_server import daily, entry

PAPERS = 1200
KILLS = int(os.environ.get("KILLS", "3"))
PROGRAM = "import sys; from nullius.feed.importers import running; running.import_from(sys.argv[1])"


def imported():
    with feed_database.reading() as connection:
        papers = connection.execute(sa.select(sa.func.count()).select_from(tables.paper).where(tables.paper.c.slug.is_(None))).scalar()
        sources = connection.execute(
            sa.select(sa.func.count()).select_from(tables.paper_source).where(tables.paper_source.c.source == "huggingface")
        )
        return papers, sources.scalar()


def test_an_importer_killed_at_any_moment_loses_and_doubles_nothing(sqlite, tmp_path):
    draw = random.Random(0)
    path = tmp_path / "papers.json"
    path.write_text(json.dumps([daily(entry(number)) for number in range(1, PAPERS + 1)]), "utf-8")
    for _ in range(KILLS):
        process = subprocess.Popen([sys.executable, "-c", PROGRAM, str(path)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        before, end = imported()[0], time.monotonic() + 60
        while process.poll() is None and imported()[0] == before and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        process.wait()
        papers, sources = imported()
        assert papers == sources
        assert papers % running.BATCH == 0 or papers == PAPERS
    report = running.import_from(str(path))
    assert report.error == ""
    assert imported() == (PAPERS, PAPERS)
    with feed_database.reading() as connection:
        assert connection.exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"
