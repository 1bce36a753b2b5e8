"""One paper, several subjects: verdicts side by side, and paired differences where both subjects saw the same stimuli."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from nullius.errors import UsageError
from nullius.lab import drawing, journal
from nullius.lab.artefacts import write_text
from nullius.lab.figures import Figure, forest
from nullius.lab.statistics import mean_interval
from nullius.paths import data_dir


def compare(slug: str, subjects: Sequence[str]) -> dict[str, Any]:
    """Return the documented shape nullius.compare/1 for the subjects named, as they were asked for or by their own names (default: all).

    Raises UsageError when fewer than two of them have verdicts. The forest plot is written beside the runs.
    """
    of_each = {name: journal.latest_verdicts(slug=slug, subject=name) for name in subjects or (None,)}
    verdicts = list({(v["run"], v["claim"]): v for own in of_each.values() for v in own}.values())
    lacking = [shlex.quote(name) for name, own in of_each.items() if name is not None and not own]
    if lacking or len({v["subject"]["sha256"] for v in verdicts}) < 2:
        wanted = lacking or ["ANOTHER-SUBJECT"]
        raise UsageError(f"comparing needs verdicts on two subjects; run first: nullius run {slug} -m {wanted[0]}")
    claims = []
    for claim in dict.fromkeys(v["claim"] for v in verdicts):
        newest = max((v for v in verdicts if v["claim"] == claim), key=lambda v: v["finished"])
        rows = [v for v in verdicts if v["digest"] == newest["digest"]]  # another wording is another claim
        entries = [{**{key: v[key] for key in ("word", "effect", "control", "full", "run")}, "subject": v["subject"]["name"]} for v in rows]
        pairs = [pair for a, b in combinations(rows, 2) if a["digest"] == b["digest"] and (pair := _paired(a, b))]
        about = {key: rows[-1][key] for key in ("claim", "wording", "statistic", "kind", "margin", "unit", "published")}
        claims.append({**about, "subjects": entries, "differences": pairs})
    figure = _forest(slug, claims)
    path = None
    if figure is not None:
        path = data_dir() / "comparisons" / f"{slug}.svg"
        write_text(path, drawing.svg(figure))
        write_text(path.with_suffix(".html"), drawing.html(figure))
    return {"schema": "nullius.compare/1", "slug": slug, "claims": claims, "figure": str(path) if path else None}


def _paired(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Any] | None:
    """The mean difference of item effects with its interval, where both runs measured the same items: equal seed, clusters and number."""
    first, second = _items(a), _items(b)
    if first is None or second is None or not np.array_equal(first[1], second[1]):
        return None
    records = [journal.get_run(v["run"]) for v in (a, b)]
    if records[0]["seed"] != records[1]["seed"] or records[0]["full"] != records[1]["full"]:
        return None
    difference = mean_interval(first[0] - second[0], first[1])
    return {"a": a["subject"]["name"], "b": b["subject"]["name"], "difference": difference.to_dict()}


def _items(verdict: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray] | None:
    """Per-item effects (treated, less the control where it is paired) and cluster codes of a claim; None where items make no mean."""
    if verdict["kind"] in ("correlation", "trend", "ordering") or not verdict["effect"]:
        return None
    path = Path(data_dir()) / "runs" / verdict["run"] / "samples.parquet"
    if not path.is_file():
        return None
    table = pq.read_table(path, filters=[("claim", "=", verdict["claim"])])
    roles = np.array(table["role"].to_pylist())
    values, clusters = table["value"].to_numpy(), table["cluster"].to_numpy()
    treated, control = roles == "treated", roles == "control"
    if verdict["kind"] in ("above_control", "below_control"):
        if treated.sum() != control.sum():
            return None
        return values[treated] - values[control], clusters[treated]
    return values[treated], clusters[treated]


def _forest(slug: str, claims: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Point and interval per subject for each claim that was measured, the control beside it in grey."""
    panels = []
    for claim in claims:
        rows = [(f"{row['subject']}{' (full)' if row['full'] else ''}", {**claim, **row}) for row in claim["subjects"] if row["effect"]]
        if rows:
            panels.append(forest(claim["claim"], rows, of="subject", value=claim["unit"] or claim["statistic"]))
    return Figure("forest", f"{slug}: one claim, several subjects", tuple(panels), "Bars are 95% intervals.") if panels else None
