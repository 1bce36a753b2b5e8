"""One paper on two subjects: rows, paired differences over the items both saw, the forest plot; and what cannot be compared."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from tests.lab.tiny import subject, tiny_study

from nullius.errors import UsageError
from nullius.lab import comparison, runner
from nullius.lab.statistics import mean_interval


@pytest.fixture(scope="module")
def subjects():
    first, second = subject(), subject()
    with torch.no_grad():
        second.hf.lm_head.weight.mul_(3)
    second = type(second).wrap(second.hf, second.tokenizer, "tiny times three")
    return first, second


def effects(record):
    finding = {}
    path = next(Path(entry["path"]) for entry in record.data["artefacts"] if entry["name"] == "samples.parquet")
    for row in pq.read_table(path).to_pylist():
        finding.setdefault((row["claim"], row["role"]), []).append(row["value"])
    return {
        claim: np.array(finding[claim, "treated"]) - np.array(finding[claim, "control"]) for claim, role in finding if role == "treated"
    }


def test_two_subjects_side_by_side_with_the_difference_of_their_items(subjects):
    one, other = (runner.run(tiny_study, each, seed=3) for each in subjects)
    found = comparison.compare("tiny-study", [])
    assert [claim["claim"] for claim in found["claims"]] == ["said-before", "seen-twice"]
    for claim in found["claims"]:
        assert {row["subject"]: row["run"] for row in claim["subjects"]} == {"tiny": one.data["id"], "tiny times three": other.data["id"]}
        for row in claim["subjects"]:
            record = one if row["subject"] == "tiny" else other
            assert row["effect"] == record.verdict(claim["claim"]).effect.to_dict()
        (pair,) = claim["differences"]
        by_name = {"tiny": effects(one)[claim["claim"]], "tiny times three": effects(other)[claim["claim"]]}
        assert pair["difference"] == mean_interval(by_name[pair["a"]] - by_name[pair["b"]]).to_dict()
        assert abs(pair["difference"]["estimate"]) > 0
    assert Path(found["figure"]).read_text("utf-8").count("<svg") == 1
    assert Path(found["figure"]).with_suffix(".html").is_file()


def test_other_items_are_not_paired(subjects):
    for seed, each in zip((1, 2), subjects, strict=True):
        runner.run(tiny_study, each, seed=seed)
    assert [claim["differences"] for claim in comparison.compare("tiny-study", ["tiny", "tiny times three"])["claims"]] == [[], []]


def test_a_subject_may_be_named_as_it_was_asked_for_or_by_its_hash(subjects):
    for each in subjects:
        runner.run(tiny_study, each)
    found = comparison.compare("tiny-study", ["tiny", subjects[1].weights_sha256[:12]])
    assert {row["subject"] for row in found["claims"][0]["subjects"]} == {"tiny", "tiny times three"}


def test_what_cannot_be_compared(subjects):
    with pytest.raises(UsageError, match="run first: nullius run tiny-study -m ANOTHER-SUBJECT"):
        comparison.compare("tiny-study", [])
    runner.run(tiny_study, subjects[0])
    for names, wanted in ((["tiny"], "ANOTHER-SUBJECT"), (["tiny", "tiny"], "ANOTHER-SUBJECT"), (["tiny", "my model"], "'my model'")):
        with pytest.raises(UsageError, match=f"run first: nullius run tiny-study -m {wanted}"):
            comparison.compare("tiny-study", names)
