"""One execution of a study: journalled from its first moment, whole or marked aborted, with everything needed to repeat it."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from ulid import ULID

from nullius.errors import NulliusError, StudyError
from nullius.lab import artefacts, environment, journal
from nullius.lab.figures import verdict_figure
from nullius.lab.lab import Lab, Listener, OutOfReach, Silent
from nullius.lab.records import Record
from nullius.lab.studies import Study
from nullius.lab.verdicts import Verdict, conclude

if TYPE_CHECKING:
    from nullius.models.language_model import LanguageModel

WRITE_SECONDS = 0.25


class _Journalling:
    """Passes progress on to a listener, and writes it to the journal from a thread of its own, which also beats the run's heart.

    The study never waits for the disk. A journal that cannot be written now is tried again later: hours of computing are not thrown away
    for a line of progress, and the run's last transaction will say so if it still cannot be written then.
    """

    def __init__(self, run_id: str, listener: Listener) -> None:
        self.run_id, self.listener = run_id, listener
        self.waiting: list[dict[str, Any]] = []
        self.written = 0
        self.trouble = ""
        self.lock = threading.Lock()
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self._beat, name=f"journal of {run_id}", daemon=True)

    def __enter__(self) -> _Journalling:
        self.thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.stopped.set()
        self.thread.join()
        self._write()

    def step(self, label: str, done: int, total: int | None) -> None:
        """Report progress; a newer step of the same label replaces one that was not written yet."""
        self.listener.step(label, done, total)
        event = {"at": journal.now(), "kind": "step", "payload": {"label": label, "done": done, "total": total}}
        with self.lock:
            if self.waiting and self.waiting[-1]["kind"] == "step" and self.waiting[-1]["payload"]["label"] == label:
                self.waiting.pop()
            self.waiting.append(event)
            trouble, self.trouble = self.trouble, ""
        if trouble:
            self.listener.note(f"{trouble} (the run goes on)")

    def note(self, text: str) -> None:
        """Report a note."""
        self.listener.note(text)
        with self.lock:
            self.waiting.append({"at": journal.now(), "kind": "note", "payload": {"text": text}})

    def _beat(self) -> None:
        last = time.monotonic()
        while not self.stopped.wait(WRITE_SECONDS):
            if self.waiting or time.monotonic() - last >= journal.HEARTBEAT_SECONDS:
                self._write()
                last = time.monotonic()

    def _write(self) -> None:
        with self.lock:
            events, self.waiting = self.waiting, []
        try:
            journal.pulse(self.run_id, self.written, events)
            self.written += len(events)
        except NulliusError as error:
            with self.lock:
                self.waiting = events + self.waiting
                self.trouble = str(error)


@dataclass
class _Execution:
    """What is known of a run while it goes on."""

    run_id: str
    asked: str
    lab: Lab | None = None
    environment: dict[str, Any] = field(default_factory=dict)
    tokens_before: int = 0
    started: float = field(default_factory=time.monotonic)
    cpu_started: float = field(default_factory=time.process_time)

    def costs(self) -> dict[str, Any]:
        """What the run has taken so far, and what its study has said: columns of the journal."""
        costs: dict[str, Any] = {
            "wall_seconds": time.monotonic() - self.started,
            "cpu_seconds": time.process_time() - self.cpu_started,
            "environment": self.environment or None,
        }
        if self.lab is not None:
            subject = self.lab.subject
            costs |= {"tokens": subject.tokens_seen - self.tokens_before, "peak_bytes": environment.peak_bytes(str(subject.device))}
            costs |= {"gates": [asdict(gate) for gate in self.lab.gates], "notes": self.lab.notes}
        return costs


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
    claimed: str | None = None,
) -> Record:
    """Test a study's claims on a subject and journal it.

    subject: a name for `nullius.load`, or a loaded LanguageModel. threads: see `environment.conditions`. rerun_of: the run this one repeats.
    claimed: the id of the run, where it was queued and a worker has claimed it.
    Ctrl-C marks the run aborted, with its notes, and is raised again. Raises NulliusError when the subject cannot be loaded, the study breaks
    its contract or breaks down (the run is then marked failed, with its traceback in log.txt), or the results cannot be stored.
    """
    environment.check_seed(seed)
    options = dict(options or {})
    study.check_options(options)  # before anything is journalled
    journal.recover()
    execution = _Execution(claimed or str(ULID()), subject if isinstance(subject, str) else subject.name)
    values = {"id": execution.run_id, "slug": study.slug, "asked_subject": execution.asked, "rerun_of": rerun_of}
    if claimed:
        journal.take_over(claimed)
    else:
        journal.begin_run({**values, "full": full, "seed": seed, "options": options})
    try:
        with (
            _Journalling(execution.run_id, listener or Silent()) as progress,
            environment.conditions(threads) as used,
            environment.unordered() as unordered,
        ):
            progress.step("loading the subject", 0, None)
            model = _load(subject, device)
            journal.identify(execution.run_id, _identity(model))
            execution.environment = environment.describe(study, model, used)  # now: sources may be edited during a long run
            loaded = time.monotonic()
            environment.seed_all(seed)
            execution.tokens_before = model.tokens_seen
            lab = execution.lab = Lab(study, model, seed, full, options, progress)
            try:
                study(lab)
            except OutOfReach as gate:
                progress.note(f"out of reach: the subject did not pass the gate '{gate}'")
            measured = time.monotonic()
            if unordered:
                lab.note(
                    f"sums in no fixed order on this device, so that a rerun may differ in its last digits: {', '.join(sorted(unordered))}"
                )
            facts = {"parameters": model.parameters, "chat": model.chat, "full": full}
            verdicts = conclude(study, lab.findings, lab.gates, **facts)  # type: ignore[arg-type]
            seconds = {"loading": loaded - execution.started, "study": measured - loaded, "statistics": time.monotonic() - measured}
            execution.environment |= {"samples": artefacts.samples_digest(lab.findings), "seconds": seconds}
            files = _publish(execution, verdicts)
        return _finish(execution, verdicts, files)
    except (KeyboardInterrupt, SystemExit):
        journal.end_run(execution.run_id, {**execution.costs(), "state": "aborted", "reason": "interrupted"})
        raise
    except Exception as error:
        trace = _fail(execution, error)
        if isinstance(error, NulliusError) and not isinstance(error, StudyError):
            raise
        doing = f"study '{study.slug}' failed on {execution.asked}" if execution.lab else f"{execution.asked} could not be loaded"
        raise NulliusError(f"{doing}: {_line(error)}{trace}") from error


def _load(subject: str | LanguageModel, device: str | None) -> LanguageModel:
    if not isinstance(subject, str):
        return subject
    from nullius.models.loading import load

    return load(subject, device)


def _identity(subject: LanguageModel) -> dict[str, Any]:
    """The subject's row in the journal."""
    return {
        "sha256": subject.weights_sha256,
        "name": subject.name,
        "parameters": subject.parameters,
        "architecture": subject.anatomy.family,
        "chat": subject.chat,
        "provenance": subject.provenance.to_dict(),
    }


def _publish(execution: _Execution, verdicts: list[Verdict]) -> list[dict[str, Any]]:
    """Draw the figures and write all artefacts."""
    lab = execution.lab
    assert lab is not None
    figures = list(lab.figures)
    summary = verdict_figure(f"{lab.study.slug} on {lab.subject.name}", [verdict.to_dict() for verdict in verdicts])
    if summary is not None:
        figures.append(summary)
    return artefacts.publish(execution.run_id, lab.findings, figures, execution.environment)


def _finish(execution: _Execution, verdicts: list[Verdict], files: list[dict[str, Any]]) -> Record:
    """Close the run in one transaction, and look once more at what it left on disk."""
    lab = execution.lab
    assert lab is not None
    findings = []
    for verdict in verdicts:
        if verdict.effect is not None and verdict.control is not None:
            effect, control = verdict.effect, verdict.control
            own = artefacts.samples_digest({verdict.claim.id: lab.findings[verdict.claim.id]})
            row = {
                "claim": verdict.claim.id,
                "digest": verdict.claim.digest,
                "n": effect.n,
                "n_clusters": effect.n_clusters,
                "samples": own,
            }
            row |= {"effect": effect.estimate, "lo": effect.lo, "hi": effect.hi}
            findings.append(row | {"control": control.estimate, "control_lo": control.lo, "control_hi": control.hi})
    journal.finish_run(execution.run_id, execution.costs(), findings, [verdict.to_dict() for verdict in verdicts], files)
    record = Record(journal.get_run(execution.run_id), tuple(verdicts))
    broken = artefacts.damaged(record.data)
    if broken:
        raise NulliusError(
            f"run {execution.run_id} is done, but its files changed while it was stored: {', '.join(broken)}; look at the disk"
        )
    return record


def _fail(execution: _Execution, error: Exception) -> str:
    """Mark a run failed, keeping the traceback of whatever is not a plain message for the user. Returns where that is, in words."""
    plain = isinstance(error, NulliusError) and not isinstance(error, StudyError)
    try:
        files = [] if plain else artefacts.publish(execution.run_id, {}, [], log="".join(traceback.format_exception(error)))
        journal.end_run(execution.run_id, {**execution.costs(), "state": "failed", "reason": _line(error)}, files)
    except NulliusError:  # the disk is full, say: the row goes on saying "running", and the next start marks it aborted
        return ""
    return f" (traceback: `nullius show {execution.run_id}`, log.txt)" if files else ""


def _line(error: Exception) -> str:
    """The first line of an error's message, with its kind unless it was written for the user."""
    text = next(iter(str(error).strip().splitlines()), "")
    return text if isinstance(error, NulliusError) else f"{type(error).__name__}: {text}".rstrip(": ")
