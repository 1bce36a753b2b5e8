"""The catalogue: complete, well formed, cheap to read."""

import re
import subprocess
import sys

import pytest

from nullius.errors import NulliusError, UsageError
from nullius.feed import catalogue
from nullius.feed.catalogue import paper, papers
from nullius.lab import studies


def test_papers_have_everything_a_reader_needs():
    assert len({entry.slug for entry in papers()}) == len({entry.arxiv for entry in papers()}) == len(papers()) >= 53
    for entry in papers():
        assert re.fullmatch(r"\d{4}\.\d{5}", entry.arxiv)
        assert entry.authors >= 1
        assert entry.summary.endswith(".")
        assert len(entry.summary) < 200
        assert 80 <= len(entry.about.split()) <= 150
        assert entry.about.endswith(".")
        assert "  " not in entry.about


def test_an_entry_that_is_not_whole_is_named(monkeypatch):
    monkeypatch.setattr(
        catalogue, "_table", lambda: {"paper": [{"slug": "mine", "titel": "Mine", "date": None, "question": "", "summary": ""}]}
    )
    papers.cache_clear()
    with pytest.raises(NulliusError, match="'mine': lacks about, lacks arxiv, lacks authors, lacks title, has 'titel'; CONTRIBUTING"):
        papers()


def test_newest_first():
    dates = [entry.date for entry in papers()]
    assert dates == sorted(dates, reverse=True)


def test_every_study_has_a_paper_in_its_room():
    for slug in studies.modules():
        assert paper(slug).question == studies.question(slug)


@pytest.mark.parametrize("key", ["factual-recall", "2310.15910", "arXiv:2310.15910v2"])
def test_a_paper_by_slug_or_arxiv_id(key):
    assert paper(key).slug == "factual-recall"


def test_a_misspelt_paper_names_the_nearest():
    with pytest.raises(UsageError, match="nearest: factual-recall"):
        paper("factual-recal")


def test_reading_the_catalogue_imports_no_torch():
    code = "import sys, nullius.feed.catalogue as c; c.papers(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
