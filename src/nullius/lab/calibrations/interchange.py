"""Interchange interventions and distributed alignment search on a planted modular sum, whose variables lie at known places."""

from __future__ import annotations

import numpy as np

from nullius.instruments import alignment, interchange
from nullius.instruments.causal_models import CausalModel, Variable
from nullius.instruments.interchange import At, Counterfactuals
from nullius.instruments.planted import modular
from nullius.lab.calibration import Trial, case
from nullius.models.language_model import LanguageModel

SUM = CausalModel(
    inputs=("x", "y"),
    variables=(
        Variable("a", ("x",), lambda x: x),
        Variable("b", ("y",), lambda y: y),
        Variable("sum", ("a", "b"), lambda a, b: (a + b) % modular.MODULUS),
    ),
    output="sum",
)
PLACES = {
    "a": (At("resid_pre", 0, modular.FIRST_AT), At("z", 0, -1, (modular.FIRST.head,))),
    "b": (At("resid_pre", 0, modular.SECOND_AT), At("z", 0, -1, (modular.SECOND.head,))),
    "sum": (At("resid_post", 1), At("mlp_out", 1)),
}
OTHERS = tuple(At("z", 0, -1, (head,)) for head in (2, 3)) + tuple(At("z", 1, -1, (head,)) for head in range(4))


def _pairs(model: LanguageModel, variable: str, n: int, rng: np.random.Generator) -> Counterfactuals:
    drawn = [[{"x": int(row[i]), "y": int(row[i + 1])} for i in (0, 2)] for row in rng.integers(modular.MODULUS, size=(n, 4))]
    return interchange.counterfactuals(
        SUM,
        [(base, source) for base, source in drawn],
        [variable],
        lambda inputs: modular.text(inputs["x"], inputs["y"]),
        lambda value: model.first_token(f" {value}"),
    )


@case(
    "interchange interventions",
    planted="three variables of a modular sum, each at the two places where it lies: accuracy of at least 0.8",
    null="each variable at the places of the others and of six idle heads, and at its own with sources that were not asked",
    modules=("interchange", "causal_models", "interventions"),
    seeds=10,
)
def variables_of_a_sum(seed: int) -> Trial:
    """Pairs for which the interchange changes the sum."""
    model, rng = modular.build(seed), np.random.default_rng(seed)
    total = Trial(0, 0, 0, 0)
    for variable, own in PLACES.items():
        pairs = _pairs(model, variable, 40, rng)
        elsewhere = [at for other, places in PLACES.items() if other != variable for at in places] + list(OTHERS)
        found = sum(interchange.accuracy(model, pairs, at).mean() >= 0.8 for at in own)
        alarms = sum(interchange.accuracy(model, pairs, at).mean() >= 0.8 for at in elsewhere)
        alarms += sum(interchange.accuracy(model, pairs.placebo(rng), at).mean() >= 0.8 for at in own)
        total += Trial(found, len(own), alarms, len(elsewhere) + len(own))
    return total


@case(
    "distributed alignment search",
    planted="either summand in seven dimensions of the last token's state after layer 0, learned: held-out accuracy of at least 0.8",
    null="a random basis of seven dimensions, and one learned from shuffled answers",
    modules=("alignment", "interchange", "causal_models", "interventions"),
    seeds=12,
)
def summands_in_a_subspace(seed: int) -> Trial:
    """Both summands lie in that one state, which as a whole carries neither alone."""
    model, rng = modular.build(seed), np.random.default_rng(seed)
    total = Trial(0, 0, 0, 0)
    for variable in ("a", "b"):
        tested = alignment.search(model, _pairs(model, variable, 800, rng), At("resid_post", 0), modular.MODULUS, rng)
        alarms = [side.mean() >= 0.8 for side in (tested.random, tested.shuffled)]
        total += Trial(int(tested.learned.mean() >= 0.8), 1, sum(alarms), 2)
    return total
