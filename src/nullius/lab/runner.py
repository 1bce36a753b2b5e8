"""One execution of a study: journalled from its first moment, whole or marked aborted, with everything needed to repeat it."""

from __future__ import annotations

import random
import threading
import time
import traceback
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from ulid import ULID

from nullius.errors import NulliusError, StudyError
from nullius.lab import artefacts, environment, journal
from nullius.lab.figures import verdict_figure
from nullius.lab.lab import Lab, Listener, OutOfReach, Silent
from nullius.lab.studies import Study
from nullius.lab.verdicts import Verdict, conclude

if TYPE_CHECKING:
    from nullius.models.language_model import LanguageModel


@dataclass(frozen=True)
class Record:
    """A finished run: `data` is the documented shape nullius.run/1 (docs/records.md), as the journal holds it."""

    data: dict[str, Any]
    verdicts: tuple[Verdict, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the record as plain JSON data."""
        return self.data

    def verdict(self, claim: str) -> Verdict:
        """Return the verdict of one claim."""
        return next(verdict for verdict in self.verdicts if verdict.claim.id == claim)


class _Journalling:
    """Passes progress on to a listener and writes it to the journal, at most four times a second; beats the run's heart meanwhile."""

    def __init__(self, run_id: str, listener: Listener) -> None:
        self.run_id, self.listener = run_id, listener
        self.waiting: list[tuple[str, dict[str, Any]]] = []
        self.seq = 0
        self.last = 0.0
        self.lock = threading.Lock()
        self.stopped = threading.Event()
        self.heart = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> _Journalling:
        self.heart.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.stopped.set()
        self.heart.join()

    def _beat(self) -> None:
        while not self.stopped.wait(journal.HEARTBEAT_SECONDS):
            try:
                journal.beat(self.run_id)
            except NulliusError:  # a full disk: the run itself will say so when it writes
                return

    def step(self, label: str, done: int, total: int | None) -> None:
        """Report progress; a newer step of the same label replaces one that was not written yet."""
        self.listener.step(label, done, total)
        if self.waiting and self.waiting[-1][0] == "step" and self.waiting[-1][1]["label"] == label:
            self.waiting.pop()
        self.waiting.append(("step", {"label": label, "done": done, "total": total}))
        self.flush(0.25)

    def note(self, text: str) -> None:
        """Report a note."""
        self.listener.note(text)
        self.waiting.append(("note", {"text": text}))

    def flush(self, at_most_every: float = 0.0) -> None:
        """Write what waits."""
        if self.waiting and time.monotonic() - self.last >= at_most_every:
            journal.add_events(self.run_id, self.seq, self.waiting)
            self.seq += len(self.waiting)
            self.waiting = []
            self.last = time.monotonic()


def run(
    study: Study,
    subject: str | LanguageModel,
    *,
    seed: int = 0,
    full: bool = False,
    options: Mapping[str, str] | None = None,
    device: str | None = None,
    listener: Listener | None = None,
    rerun_of: str | None = None,
    threads: int | None = None,
) -> Record:
    """Test a study's claims on a subject and journal it.

    subject: a name for `nullius.load`, or a loaded LanguageModel. threads: of torch; None takes 1 on a crowded machine, else torch's own.
    Ctrl-C marks the run aborted and is raised again. Raises NulliusError when the subject cannot be loaded or the study breaks its contract
    (the run is then marked failed, with its traceback in log.txt).
    """
    options = dict(options or {})
    Lab(study, None, options=options)  # type: ignore[arg-type]  # a wrong option is refused before anything is journalled
    journal.recover()
    run_id = str(ULID())
    asked = subject if isinstance(subject, str) else subject.name
    values = {
        "id": run_id,
        "slug": study.slug,
        "asked_subject": asked,
        "full": full,
        "seed": seed,
        "options": options,
        "rerun_of": rerun_of,
    }
    journal.begin_run(values)
    lab: Lab | None = None
    with _Journalling(run_id, listener or Silent()) as progress:
        try:
            started, cpu = time.monotonic(), time.process_time()
            progress.step("loading the subject", 0, None)
            model = _load(subject, device)
            used_threads = _prepare(seed, threads, str(model.device))
            lab = Lab(study, model, seed, full, options, progress)
            tokens_before = model.tokens_seen
            try:
                study(lab)
            except OutOfReach:
                progress.note("the subject did not pass a gate: out of reach")
            facts = {"parameters": model.parameters, "chat": model.chat, "full": full}
            verdicts = conclude(study, lab.findings, lab.gates, **facts)  # type: ignore[arg-type]
            record = _finish(run_id, lab, verdicts, started, cpu, tokens_before, used_threads, progress)
        except KeyboardInterrupt:
            journal.finish_run(run_id, {"state": "aborted", "reason": "interrupted", "notes": lab.notes if lab else []})
            raise
        except Exception as error:
            _fail(run_id, lab, error)
            if isinstance(error, StudyError) or not isinstance(error, NulliusError):
                line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
                raise NulliusError(
                    f"study '{study.slug}' failed on {asked}: {line} (traceback: `nullius show {run_id}`, log.txt)"
                ) from error
            raise
    return record


def _load(subject: str | LanguageModel, device: str | None) -> LanguageModel:
    if not isinstance(subject, str):
        return subject
    from nullius.models.loading import load

    return load(subject, device)


def _prepare(seed: int, threads: int | None, device: str) -> int:
    """Seed every generator, fix the number of threads, ask for deterministic algorithms. Returns the number of threads."""
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  # libraries below us (scikit-learn) may draw from the global generator
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True, warn_only=True)
    if threads is None and environment.crowded():
        threads = 1
    if threads is not None:
        torch.set_num_threads(threads)
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
    return torch.get_num_threads()


def _finish(
    run_id: str, lab: Lab, verdicts: list[Verdict], started: float, cpu: float, tokens: int, threads: int, progress: _Journalling
) -> Record:
    """Write the artefacts, then close the run in one transaction."""
    subject = lab.subject
    plain = [verdict.to_dict() for verdict in verdicts]
    figures = list(lab.figures)
    summary = verdict_figure(f"{lab.study.slug} on {subject.name}", plain)
    if summary is not None:
        figures.append(summary)
    about = environment.describe(lab.study, str(subject.device), threads)
    about["samples"] = artefacts.samples_digest(lab.findings)
    files = artefacts.publish(run_id, lab.findings, figures, about)
    progress.flush()
    values = {
        "state": "done",
        "wall_seconds": time.monotonic() - started,
        "cpu_seconds": time.process_time() - cpu,
        "tokens": subject.tokens_seen - tokens,
        "peak_bytes": environment.peak_bytes(str(subject.device)),
        "environment": about,
        "gates": [asdict(gate) for gate in lab.gates],
        "notes": lab.notes,
    }
    identity = {
        "sha256": subject.weights_sha256,
        "name": subject.name,
        "parameters": subject.parameters,
        "architecture": subject.anatomy.family,
        "chat": subject.chat,
        "provenance": subject.provenance.to_dict(),
    }
    journal.finish_run(run_id, values, identity, plain, files)
    return Record(journal.get_run(run_id), tuple(verdicts))


def _fail(run_id: str, lab: Lab | None, error: Exception) -> None:
    """Mark a run failed. The traceback is kept when there is room for it."""
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    files = []
    if not isinstance(error, NulliusError) or isinstance(error, StudyError):
        files = artefacts.publish(run_id, {}, [], {}, log=traceback.format_exc())
    journal.finish_run(run_id, {"state": "failed", "reason": reason, "notes": lab.notes if lab else []}, artefacts=files)
