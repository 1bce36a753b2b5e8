"""The study on subjects whose behaviour is known by construction, and from end to end on a toy."""

import numpy as np

from nullius.elicitation.scores import Score
from nullius.lab.lab import Lab
from nullius.lab.runner import run
from nullius.lab.studies import get
from nullius.lab.verdicts import conclude
from nullius.stimuli import embers as stimuli
from nullius.stimuli import embers_items
from nullius.studies.behaviour import embers as module

STUDY = get("embers")
OUTPUT = [claim.id for claim in STUDY.claims if claim.id.startswith("output-") and claim.id not in ("output-slope", "output-over-input")]
USE = [contrast.claim for contrast in module.CONTRASTS if contrast.measure == "discrimination"]


def planted(beta, use=lambda name, rng: rng.uniform(4, 14), writes=lambda name, column: True, seed=0):
    """A table-driven subject: score = beta · p(output) − use where the output is wrong; p is 10 nats lower for improbable outputs."""
    sets = stimuli.twins(np.random.default_rng(seed), 60)
    rng = np.random.default_rng(1)
    prior, right, penalty, written = {}, {}, {}, {}
    for name, twins in sets.items():
        for twin in twins:
            cost = use(name, rng)
            for column, (context, output) in enumerate(zip(twin.contexts, twin.outputs, strict=True)):
                odd = column == 1 or name.endswith(", equal")
                prior[output] = min(prior.get(output, 0.0), -25.0 if odd else -15.0) if "capitals" not in name else -15.0
                right[context] = output
                penalty.setdefault(context, cost)  # sets of equals come later and share contexts
                written.setdefault(context, writes(name, column))
    jitter = {output: rng.normal(0, 1) for output in sorted(prior)}

    def score(requests):
        cells = []
        for context, output in requests:
            p = prior[output] + jitter[output]
            if context not in right:  # the premise
                cells.append(Score((1, 2), (p,), False))
            else:
                wrong = output != right[context]
                cells.append(Score((1, 2), (beta * p - penalty[context] * wrong,), not wrong and written[context]))
        return cells

    return score, sets


def verdicts(score, sets, toy):
    lab = Lab(STUDY, toy)
    module.test(lab, score, sets)
    found = conclude(STUDY, lab.findings, lab.gates, parameters=1e8, chat=False, full=False)
    return {verdict.claim.id: verdict for verdict in found}, lab


def test_an_exact_solver_shows_no_ember(toy):
    found, _ = verdicts(*planted(beta=0.0, use=lambda name, rng: 8.0), toy)
    for claim in [*OUTPUT, *USE, "task-sorting", "accuracy-reversal", "accuracy-acronyms", "accuracy-counting", "output-over-input"]:
        assert found[claim].word == "fails", (claim, found[claim].reason)
        assert found[claim].effect.estimate == 0
    assert found["output-slope"].word != "holds"
    assert found["copying"].word == "inconclusive"  # without a pull anywhere, none could have been seen
    assert not [claim for claim, verdict in found.items() if verdict.word == "holds" and claim != "task-sorting-numbers"]


def test_the_output_effect_grows_with_beta(toy):
    estimates = []
    for beta in (0.0, 0.5, 1.0):
        found, _ = verdicts(*planted(beta), toy)
        estimates.append(np.mean([found[claim].effect.estimate for claim in OUTPUT if "counting" not in claim]))
        if beta == 1.0:
            for claim in ("output-reversal", "output-pig-latin", "output-shift-cipher", "output-article-swapping", "output-acronyms"):
                assert found[claim].word == "holds", (claim, found[claim].reason)
            assert found["prior-accounts-for-pull"].word == "holds", found["prior-accounts-for-pull"].reason
            assert found["output-slope"].word == "holds", found["output-slope"].reason
    assert estimates[0] == 0
    assert 0 < estimates[1] < estimates[2]


def test_a_practised_subject_shows_task_and_input_effects_only(toy):
    probable = {contrast.first for contrast in module.CONTRASTS if contrast.measure == "discrimination"} | {"copying"}
    levels = dict(zip(module.LEVELS, (8.0, 6.0, 4.0, 2.0), strict=True))

    def use(name, rng):
        return levels[name.split(", ")[1]] if name.startswith("multiplication") else (8.0 if name in probable else 4.0)

    found, _ = verdicts(*planted(beta=0.0, use=use), toy)
    for claim in [*USE, "input-multiplication"]:
        assert found[claim].word == "holds", (claim, found[claim].reason)
    for claim in OUTPUT:
        assert found[claim].word == "fails", (claim, found[claim].reason)


def test_a_memoriser_shows_the_birthday_effect(toy):
    def writes(name, column):
        return name != "capitals" or column == 0

    found, _ = verdicts(*planted(beta=0.0, use=lambda name, rng: 8.0, writes=writes), toy)
    assert found["input-birthdays"].word == "holds"
    assert found["accuracy-reversal"].word == "fails"
    assert {found[claim].word for claim in OUTPUT} == {"fails"}


def test_taste_without_use_of_the_input_is_out_of_reach(toy):
    found, lab = verdicts(*planted(beta=1.0, use=lambda name, rng: 0.0, writes=lambda name, column: False), toy)
    assert {verdict.word for verdict in found.values()} == {"out of reach"}
    assert lab.findings == {}


def test_sets_behind_failed_gates_are_never_scored(toy):
    score, sets = planted(beta=1.0, use=lambda name, rng: 0.0, writes=lambda name, column: False)
    asked = []

    def counting(requests):
        asked.append(len(requests))
        return score(requests)

    verdicts(counting, sets, toy)
    assert asked[1:] in ([], [0])


def test_a_random_toy_goes_through_and_nothing_holds(toy):
    record = run(STUDY, toy)
    assert len(record.verdicts) == len(STUDY.claims)
    assert all(verdict.word != "holds" for verdict in record.verdicts)
    assert record.verdict("written-output").reason == "needs a run at full scale (--full)"


def test_writing_the_papers_tasks(toy, monkeypatch):
    """At full scale replies are generated and scored by rule: here two items a task, four tokens a reply."""
    original = embers_items.items

    def few(rng, n):
        return [type(item)(**{**vars(item), "tokens": 4}) for item in original(rng, 2)]

    monkeypatch.setattr(embers_items, "items", few)
    lab = Lab(STUDY, toy, full=True)
    module._write(lab)
    assert set(lab.findings) == {"written-output", "written-task", "written-input"}
    assert [gate.passed for gate in lab.gates] == [False] * 3
    assert len(lab.figures[0].panels) == 3


def test_every_factor_and_task_of_the_paper_has_a_claim():
    claims = " ".join(claim.id for claim in STUDY.claims)
    for task in (
        "shift-cipher", "pig-latin", "article-swapping", "reversal", "acronyms", "counting",
        "linear-function", "multiplication", "sorting", "keyboard-cipher", "birthdays",
    ):  # fmt: skip
        assert task in claims
    assert all(claim.control for claim in STUDY.claims)
