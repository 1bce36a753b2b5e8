"""Artefacts of a run: written beside the journal, whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import re
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
    """Write a text file atomically, with its folder where there is none; through a link, and into a device or a pipe as it is.

    Raises NulliusError with one line when it cannot be written.
    """
    target = Path(path)
    try:
        if target.exists() and not target.is_file() and not target.is_dir():
            target.write_text(text, "utf-8")  # /dev/stdout is written to, not replaced by a file
            return
        target = target.resolve()  # a link goes on pointing to what it points to
        temporary = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            _write(temporary, text.encode())
            os.replace(temporary, target)
            _settle(target.parent)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise NulliusError(f"cannot write {target}: {error.strerror or error}") from None


def publish(
    run_id: str,
    findings: Mapping[str, Finding],
    figures: Sequence[Figure],
    environment: Mapping[str, Any] | None = None,
    log: str = "",
) -> list[dict[str, Any]]:
    """Write samples.parquet, environment.json, log.txt and each figure (SVG, HTML, JSON) into runs/ID, which appears only when all are whole.

    Returns name, bytes and sha256 of each file. Raises NulliusError when the disk is full or read-only; nothing is left behind then.
    """
    folder = data_dir() / "runs" / run_id
    staging = folder.with_name(f".{run_id}")
    contents = _contents(findings, figures, environment, log)
    try:
        staging.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            _write(staging / name, content)
        _settle(staging)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(staging, folder)
        _settle(folder.parent)
    except OSError as error:
        raise NulliusError(f"cannot store the run in {folder.parent}: {error.strerror or error}; free some space and run again") from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return [{"name": name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()} for name, content in contents.items()]


def damaged(record: Mapping[str, Any]) -> list[str]:
    """Return the names of a record's artefacts that are missing or are no longer what the run wrote."""

    def whole(entry: Mapping[str, Any]) -> bool:
        path = Path(entry["path"])
        return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == entry["sha256"]

    return [entry["name"] for entry in record["artefacts"] if not whole(entry)]


def _contents(
    findings: Mapping[str, Finding], figures: Sequence[Figure], environment: Mapping[str, Any] | None, log: str
) -> dict[str, bytes]:
    """All files of a run, made in memory before the first is written: what cannot be drawn fails before anything is on disk."""
    contents: dict[str, bytes] = {}
    if findings:
        buffer = pa.BufferOutputStream()
        pq.write_table(samples_table(findings), buffer)
        contents["samples.parquet"] = buffer.getvalue().to_pybytes()
    if environment is not None:
        contents["environment.json"] = json.dumps(environment, indent=2).encode()
    if log:
        contents["log.txt"] = log.encode()
    for i, figure in enumerate(figures):
        stem = "figure" if i == 0 else f"figure-{re.sub(r'[^a-z0-9]+', '-', figure.name.lower()).strip('-')}"
        if f"{stem}.svg" in contents:
            stem = f"{stem}-{i}"
        contents[f"{stem}.svg"] = drawing.svg(figure).encode()
        contents[f"{stem}.html"] = drawing.html(figure).encode()
        contents[f"{stem}.json"] = json.dumps(figure.to_dict()).encode()
    return contents


def _write(path: Path, content: bytes) -> None:
    """Write a file and wait until the disk has it."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _settle(folder: Path) -> None:
    """Wait until the disk has a folder's names too (where folders can be opened: not on Windows)."""
    if hasattr(os, "O_DIRECTORY"):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


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
