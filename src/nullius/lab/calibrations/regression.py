"""Logistic regression with clusters: a slope between clusters that is there, and two that are not, where the items of a cluster are alike."""

from __future__ import annotations

import numpy as np

from nullius.instruments import regression
from nullius.lab.calibration import Trial, case

CLUSTERS, EACH, SPREAD, SLOPE, LEAST = 60, 20, 2.0, 1.5, 0.1  # slopes in nats of odds a unit


@case(
    "logistic slopes",
    planted=f"a slope of {SLOPE} a standard deviation between clusters: its interval lies wholly beyond {LEAST} on the right side",
    null="two columns of clusters that have nothing to do with the outcome, on either side: the planted one given to other clusters, and a drawn one",
    modules=("regression",),
    seeds=20,
)
def slopes_between_clusters(seed: int) -> Trial:
    """Clusters of twenty items, whose own logit has a standard deviation of 2: intervals over items would be a third as long, and wrong."""
    rng = np.random.default_rng(seed)
    clusters = np.repeat(np.arange(CLUSTERS), EACH)
    there, strange = rng.normal(size=(2, CLUSTERS))
    logit = SLOPE * there + SPREAD * rng.normal(size=CLUSTERS)
    outcome = rng.random(len(clusters)) < 1 / (1 + np.exp(-logit[clusters]))
    columns = {"there": there[clusters], "strange": strange[clusters]}
    columns["shuffled"] = regression.shuffled_between(columns["there"], clusters.tolist(), rng)
    found = regression.logistic_slopes(outcome, columns, clusters.tolist(), rng, resamples=100)
    alarms = sum(found[name][1] > LEAST or found[name][2] < -LEAST for name in ("strange", "shuffled"))
    return Trial(int(found["there"][1] > LEAST), 1, alarms, 2)
