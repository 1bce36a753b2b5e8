"""Artefacts of a run: written beside the journal, whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nullius.errors import NulliusError
from nullius.lab import drawing
from nullius.lab.figures import Figure
from nullius.lab.findings import Finding, Samples
from nullius.paths import data_dir


def write_text(path: str | Path, text: str) -> None:
    """Write a text file atomically. Raises NulliusError with one line when it cannot be written."""
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, "utf-8")
        os.replace(temporary, target)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise NulliusError(f"cannot write {target}: {error.strerror or error}") from None


def publish(
    run_id: str, findings: Mapping[str, Finding], figures: Sequence[Figure], environment: Mapping[str, Any], log: str = ""
) -> list[dict[str, Any]]:
    """Write samples.parquet, environment.json and each figure (SVG, HTML, JSON) into runs/ID, which appears only when all are whole.

    Returns name, bytes and sha256 of each file. Raises NulliusError when the disk is full or read-only.
    """
    folder = data_dir() / "runs" / run_id
    staging = folder.with_name(f".{run_id}")
    try:
        staging.mkdir(parents=True, exist_ok=True)
        if findings:
            pq.write_table(samples_table(findings), staging / "samples.parquet")
        (staging / "environment.json").write_text(json.dumps(environment, indent=2), "utf-8")
        if log:
            (staging / "log.txt").write_text(log, "utf-8")
        for i, figure in enumerate(figures):
            stem = "figure" if i == 0 else f"figure-{figure.name}"
            (staging / f"{stem}.svg").write_text(drawing.svg(figure), "utf-8")
            (staging / f"{stem}.html").write_text(drawing.html(figure), "utf-8")
            (staging / f"{stem}.json").write_text(json.dumps(figure.to_dict()), "utf-8")
        entries = [_entry(path) for path in sorted(staging.iterdir())]
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(staging, folder)
    except OSError as error:
        shutil.rmtree(staging, ignore_errors=True)
        raise NulliusError(f"cannot store the run in {folder.parent}: {error.strerror or error}; free some space and run again") from None
    return entries


def _entry(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        os.fsync(file.fileno())
    content = path.read_bytes()
    return {"name": path.name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def samples_table(findings: Mapping[str, Finding]) -> pa.Table:
    """Return all samples in long form: claim, role (treated, control), item, cluster, level, x, value."""
    columns: dict[str, list[Any]] = {name: [] for name in ("claim", "role", "item", "cluster", "level", "x", "value")}

    def add(claim: str, role: str, samples: Samples) -> None:
        n = len(samples)
        columns["claim"] += [claim] * n
        columns["role"] += [role] * n
        columns["item"] += range(n)
        columns["cluster"] += samples.clusters.tolist()
        columns["level"] += samples.level.tolist() if samples.level is not None else [None] * n
        columns["x"] += samples.x.tolist() if samples.x is not None else [None] * n
        columns["value"] += samples.values.tolist()

    for claim, finding in findings.items():
        add(claim, "treated", finding.treated)
        add(claim, "control", finding.control)
    types = {"item": pa.int32(), "cluster": pa.int32(), "level": pa.int32(), "x": pa.float64(), "value": pa.float64()}
    return pa.table({name: pa.array(values, types.get(name, pa.string())) for name, values in columns.items()})


def samples_digest(findings: Mapping[str, Finding]) -> str:
    """SHA-256 (16 hex digits) of all samples: two runs with the same digest saw the same numbers, to the last bit."""
    digest = hashlib.sha256()
    for claim in sorted(findings):
        for samples in (findings[claim].treated, findings[claim].control):
            for array in (samples.values, samples.x, samples.level, samples.clusters):
                digest.update(b"-" if array is None else np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]
