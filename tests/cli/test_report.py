"""The terminal report: the same words at any width, with and without colour, piped, and where the encoding has no signs."""

import copy
import io
import re
import subprocess
import sys
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from nullius.cli import report
from nullius.cli.progress import Progress, clock
from nullius.lab.figures import GLYPH

ID = "01JCABCDEFGHJKMNPQRSTVWXYZ"
FOLDER = f"/home/someone/.local/share/nullius/runs/{ID}"


def interval(estimate, lo, hi, n=200, clusters=50):
    return {"estimate": estimate, "lo": lo, "hi": hi, "n": n, "n_clusters": clusters}


def verdict(claim, word, wording, effect=None, control=None, **changes):
    entry = {
        "claim": claim,
        "word": word,
        "wording": wording,
        "effect": effect,
        "control": control,
        "digest": "d1",
        "kind": "above_control",
    }
    entry |= {"statistic": "mean of treated − control", "margin": 0.05, "control_wording": "a random head of the same layer, scaled alike"}
    return entry | {"unit": "", "reason": "", "p": None, "p_holm": None, "note": "", "published": None, "rests_on": []} | changes


RECORD = {
    "schema": "nullius.run/1",
    "id": ID,
    "slug": "factual-recall",
    "full": False,
    "seed": 7,
    "options": {"relation": "capital"},
    "state": "done",
    "reason": "",
    "started": "2025-11-25T12:00:01.123+00:00",
    "wall_seconds": 117.2,
    "tokens": 312456,
    "peak_bytes": 920000000,
    "environment": {"device": "cpu"},
    "subject": {
        "name": "smollm2-135m",
        "sha256": "ab12cd34ef56ab12",
        "parameters": 134515008,
        "architecture": "llama",
        "chat": True,
        "provenance": {"quantisation": "8 bits (Q8_0)"},
    },
    "gates": [
        {"what": "name capitals without context", "mean": 0.62, "lo": 0.55, "hi": 0.69, "above": 0.25, "passed": True, "claims": []},
        {"what": "follow the context", "mean": 0.06, "lo": 0.02, "hi": 0.13, "above": 0.1, "passed": False, "claims": ["city-frequency"]},
    ],
    "notes": ["52 capitals known; 36 prompts on 18 countries to choose, 102 on 34 to test"],
    "verdicts": [
        verdict(
            "one-head-decides",
            "holds",
            "Scaling one attention head's value output makes the model give the in-context answer",
            interval(0.4123, 0.301, 0.522),
            interval(0.011, -0.02, 0.043),
            unit="change of rate",
            reason="the whole interval lies on the claimed side and the control is null",
            p_holm=0.0004,
            note="head 21.3 × 5",
            published=0.88,
            rests_on=["head scaling"],
        ),
        verdict(
            "city-frequency",
            "inconclusive",
            "The frequency of the city matters",
            interval(0.00124, -0.0003, 0.0021, 72, 72),
            interval(-0.0001, None, None, 72, 1),
            reason="the interval straddles the margin",
            p_holm=0.42,
        ),
        verdict(
            "size", "out of reach", "Larger models follow less", reason="needs a size ladder of one family", published="falls with size"
        ),
    ],
    "artefacts": [
        {"name": name, "path": f"{FOLDER}/{name}"} for name in ("environment.json", "figure-verdicts.svg", "figure.html", "figure.svg")
    ],
    "rerun": f"nullius rerun {ID}",
}

AT_80 = """\
factual-recall on smollm2-135m
run 01JCABCDEFGHJKMNPQRSTVWXYZ · quick · seed 7 · relation capital · done
● 1 holds  ◐ 1 inconclusive  ○ 1 out of reach

● holds  one-head-decides
  Scaling one attention head's value output makes the model give the in-context
  answer
  published  0.88
  ours       0.41 [0.30, 0.52]   n = 200 in 50 clusters; mean of treated −
                                 control (change of rate)
  control    0.01 [-0.02, 0.04]  a random head of the same layer, scaled alike
  because    the whole interval lies on the claimed side and the control is
             null; p(Holm) < 0.001
  note       head 21.3 × 5
  rests on   head scaling

◐ inconclusive  city-frequency
  The frequency of the city matters
  ours       0.0012 [-0.0003, 0.0021]  n = 72; mean of treated − control
  control    -0.0001 [-inf, inf]       a random head of the same layer, scaled
                                       alike
  because    the interval straddles the margin; p(Holm) = 0.420

○ out of reach  size
  Larger models follow less
  published  falls with size
  because    needs a size ladder of one family

gate       passed: name capitals without context: 0.62 [0.55, 0.69], needed
           above 0.25
gate       not passed: follow the context: 0.06 [0.02, 0.13], needed above 0.1,
           for city-frequency
note       52 capitals known; 36 prompts on 18 countries to choose, 102 on 34 to
           test
subject    135 M parameters, llama, weights sha256 ab12cd34ef56; 8 bits (Q8_0),
           not to be compared with full-precision files
took       1 min 57 s on cpu, 312,456 tokens through the model, peak 0.9 GB
figure     /home/someone/.local/share/nullius/runs/01JCABCDEFGHJKMNPQRSTVWXYZ/figure.svg
explore    /home/someone/.local/share/nullius/runs/01JCABCDEFGHJKMNPQRSTVWXYZ/figure.html
also       /home/someone/.local/share/nullius/runs/01JCABCDEFGHJKMNPQRSTVWXYZ/figure-verdicts.svg
rerun      nullius rerun 01JCABCDEFGHJKMNPQRSTVWXYZ
"""


def shown(render, *given_, width=80, **console):
    out = io.StringIO()
    render(*given_, Console(file=out, width=width, **({"force_terminal": True, "color_system": None} | console)))
    return out.getvalue()


def test_a_run_at_80_columns():
    assert shown(report.render_run, RECORD) == AT_80


@pytest.mark.parametrize("width", [32, 40, 60, 80, 120, 200])
def test_the_same_words_at_any_width(width):
    text = shown(report.render_run, RECORD, width=width)
    assert text.split() == AT_80.split()
    assert all(len(line) <= width or ID in line for line in text.splitlines())
    assert "0.41 [0.30, 0.52]\n" in text or "0.41 [0.30, 0.52] " in text  # an interval is never broken


def test_piped_every_fact_is_one_line_of_plain_text():
    text = shown(report.render_run, RECORD, width=100, force_terminal=False, no_color=True)
    assert text.split() == AT_80.split()
    assert re.search(r"^  because +the whole interval lies on the claimed side and the control is null; p\(Holm\) < 0\.001$", text, re.M)
    assert not re.search(r"[\x1b\u2500-\u257f]| $", text, re.M)  # no escapes, no boxes, no trailing space


def test_colour_adds_nothing_but_colour():
    text = shown(report.render_run, RECORD, color_system="standard")
    assert "\x1b[1;32m● holds" in text
    assert re.sub(r"\x1b\[[\d;]*m", "", text) == AT_80


def test_no_color_is_obeyed(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    assert not re.search(r"\x1b\[[\d;]*3\d", shown(report.render_run, RECORD, color_system="standard"))


def test_an_encoding_without_our_signs_is_no_obstacle():
    raw = io.BytesIO()
    console = Console(file=io.TextIOWrapper(raw, encoding="ascii"), width=80, force_terminal=True, color_system=None)
    report.render_run(RECORD, console)
    console.file.flush()
    text = raw.getvalue().decode("ascii")
    assert "* holds  one-head-decides" in text
    assert "~ inconclusive" in text
    assert "head 21.3 x 5" in text


def test_control_characters_and_markup_are_shown_not_obeyed():
    record = copy.deepcopy(RECORD)
    record["notes"] = ["said \x1b[2J\x07 [red]:smile:[/red]\r\nand more"]
    text = shown(report.render_run, record)
    assert "said ?[2J [red]:smile:[/red] and more" in text


def test_a_run_that_did_not_finish_says_why_and_what_to_do():
    record = {**RECORD, "state": "failed", "reason": "head 9 of 9", "verdicts": [], "gates": [], "notes": [], "tokens": None}
    record |= {"wall_seconds": None, "subject": {"name": "toy"}, "environment": None}
    record["artefacts"] = [{"name": "log.txt", "path": f"{FOLDER}/log.txt"}]
    text = shown(report.render_run, record)
    assert "failed: head 9 of 9" in " ".join(text.split())
    assert f"log        {FOLDER}/log.txt\n" in text
    assert "rerun" not in text
    assert f"follow     nullius show {ID}\n" in shown(report.render_run, {**record, "state": "running", "reason": ""})


def test_runs_one_line_each_when_piped():
    aborted = {**RECORD, "state": "aborted", "reason": "interrupted", "verdicts": [], "wall_seconds": None}
    piped = shown(report.render_runs, [RECORD, aborted], force_terminal=False)
    first, second = piped.splitlines()
    assert first.split("  ")[:3] == [ID, "2025-11-25 12:00", "factual-recall on smollm2-135m"]
    assert first.endswith("● 1 holds  ◐ 1 inconclusive  ○ 1 out of reach")
    assert second.endswith("aborted: interrupted")
    assert shown(report.render_runs, [RECORD, aborted]).split() != []
    assert shown(report.render_runs, []) == "no runs yet: nullius run factual-recall\n"


def test_a_comparison_lines_up_its_subjects():
    rows = [
        {"subject": "A", "word": "holds", "effect": interval(0.4, 0.3, 0.5), "control": interval(0, -0.1, 0.1), "full": False, "run": ID},
        {"subject": "long-name", "word": "out of reach", "effect": None, "control": None, "full": True, "run": ID},
    ]
    pair = {"a": "A", "b": "long-name", "difference": interval(0.25, 0.125, 0.375)}
    claim = {"claim": "one-head-decides", "wording": "Scaling a head flips the answer", "subjects": rows, "differences": [pair]}
    assert shown(report.render_compare, {"claims": [claim], "figure": "x.svg"}) == (
        "one-head-decides\n"
        "  Scaling a head flips the answer\n"
        "  ● holds         A                 0.40 [0.30, 0.50]\n"
        "      control 0.00 [-0.10, 0.10]\n"
        "  ○ out of reach  long-name (full)\n"
        "  A less long-name: 0.25 [0.12, 0.38], paired over the stimuli they share\n"
        "\n"
        "figure  x.svg\n"
    )


def test_a_dossier_counts_and_lists():
    questions = {"mechanisms": [{"slug": "factual-recall", "verdicts": RECORD["verdicts"]}]}
    text = shown(report.render_dossier, {"subject": RECORD["subject"], "questions": questions, "missing": ["embers"]})
    assert "  factual-recall  ● 1 holds  ◐ 1 inconclusive  ○ 1 out of reach\n" in text
    assert "    ● holds         one-head-decides  0.41 [0.30, 0.52]\n" in text
    assert text.endswith("not run yet: embers\nrun them  nullius dossier smollm2-135m --run\n")


def test_a_paper_shows_its_claims_and_where_they_stand():
    paper = {"title": "A title", "slug": "a-paper", "arxiv": "2310.15910", "date": "2023-10-24", "authors": 1, "code": "", "summary": "So."}
    claim = {"id": "c", "wording": "It is so", "statistic": "mean", "kind": "at_least", "margin": 0.5, "control": "none of it"}
    claim |= {"published": None, "needs": "an instruction-tuned subject", "digest": "d1", "expected": "mean: at or above 0.5"}
    standing = {**RECORD["verdicts"][0], "subject": {"name": "toy"}, "full": True, "runs": 3, "agreeing": 2, "run": "01JC"}
    option = {"name": "site", "values": ("resid_pre", "resid_post"), "help": "where it is read"}
    render = partial(report.render_paper, options=[option])
    text = shown(render, paper, [claim], [standing, {**standing, "digest": "another wording"}])
    assert "1 author\n" in text
    assert "  expected  mean: at or above 0.5\n" in text
    assert "  needs     an instruction-tuned subject\n" in text
    assert text.count("● holds  toy (full)  0.41 [0.30, 0.52]  2 of 3 runs agree  run 01JC\n") == 1
    assert text.endswith("\n-o site=resid_pre|resid_post  where it is read\n\nrun it  nullius run a-paper\n")


def test_a_rerun_names_what_differs():
    comparison = {"again": RECORD, "original": {"id": "01OLD"}, "same": False, "differences": {"torch": ["2.11", "2.13"]}}
    assert shown(report.render_rerun, comparison).endswith("the numbers differ from 01OLD\n  torch: was 2.11, is 2.13\n")
    same = {**comparison, "same": True, "differences": {}}
    assert shown(report.render_rerun, same).endswith("same numbers as 01OLD, to the last bit\n")


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e4), st.floats(1e-6, 1e4))
def test_rounding_hides_neither_width_nor_side(estimate, below, above):
    found = interval(estimate, estimate - below, estimate + above)
    numbers = [float(part) for part in re.findall(r"-?\d+(?:\.\d+)?", report.interval(found))]
    assert len(numbers) == 3
    width = above + below
    for number, key in zip(numbers, ("estimate", "lo", "hi"), strict=True):
        assert abs(number - found[key]) <= 0.05 * width
        if key != "estimate" and abs(found[key]) > 0.05 * width:
            assert (number > 0) == (found[key] > 0)


def test_intervals_in_words():
    assert report.interval(None) == "–"
    assert report.interval(interval(1.0, 1.0, 1.0)) == "1.00 [1.00, 1.00]"
    assert report.interval(interval(1234.4, 1200, 1270)) == "1234 [1200, 1270]"
    assert report.interval(interval(-0.001, -0.2, 0.2)) == "0.00 [-0.20, 0.20]"
    assert report.interval(interval(0.5, 0.1, float("inf"))) == "0.50 [0.10, inf]"


def test_durations():
    assert [report.duration(s) for s in (None, 3.21, 47, 117.2, 7805)] == ["–", "3.2 s", "47 s", "1 min 57 s", "2 h 10 min"]
    assert [clock(s) for s in (0, 42.4, 725, 7800)] == ["0:00", "0:42", "12:05", "2:10:00"]


def test_every_verdict_has_its_own_glyph():
    assert len(set(GLYPH.values())) == len(GLYPH) == len(report.COLOUR)


def test_progress_elsewhere_than_a_terminal_speaks_at_most_every_five_seconds():
    out, now = io.StringIO(), [100.0]
    with Progress("factual-recall", 2.5, console=Console(file=out, width=80), seconds=lambda: now[0]) as progress:
        assert out.getvalue() == "factual-recall: starting, about 2:30 min\n"  # at once
        for second in range(13):
            for i in range(50):
                progress.step(f"part {second}", i, 50)
            progress.note("noted")
            now[0] += 1
    assert out.getvalue().splitlines()[1:] == [
        "factual-recall: part 5 0/50, 0:05 gone",
        "factual-recall: part 10 0/50, 0:10 gone",
    ]


@pytest.mark.parametrize("width", [40, 80])
def test_progress_on_a_terminal_draws_a_bar_and_cleans_up(width):
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=True, color_system=None)
    with Progress("embers", console=console) as progress:
        progress.step("loading the subject", 0, None)
        progress.note("52 capitals known")
        for i in range(5):
            progress.step("choosing head and factor", i, 4)
        progress.bars.refresh()
    drawn = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", out.getvalue())
    assert drawn.startswith("embers: starting\n")
    assert "52 capitals known" in drawn
    assert "4/4 0:00" in drawn
    assert ("━" in drawn) == (width == 80)
    assert all(len(line) <= width for line in re.split(r"[\r\n]", drawn))
    assert out.getvalue().rstrip("\n").endswith("\x1b[2K")  # the bar is wiped away


def test_the_report_is_light():
    code = "import sys, nullius.cli.report; print(*({'torch', 'matplotlib', 'plotly', 'scipy', 'numpy', 'sqlalchemy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == ""
