"""Where nullius keeps things: the user's data folder (runs) and cache folder (weights).

`NULLIUS_DATA` and `NULLIUS_CACHE` override the platform's own choice.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

import platformdirs

from nullius.errors import NulliusError


def data_dir() -> Path:
    """Return the folder of the run journal and its artefacts, created on first use.

    Raises NulliusError when it cannot be created or written to.
    """
    return _writable(os.environ.get("NULLIUS_DATA") or platformdirs.user_data_dir("nullius"), "data", "NULLIUS_DATA")


def cache_dir() -> Path:
    """Return the folder of downloaded weights, shared between runs, created on first use.

    Raises NulliusError when it cannot be created or written to.
    """
    return _writable(os.environ.get("NULLIUS_CACHE") or platformdirs.user_cache_dir("nullius"), "cache", "NULLIUS_CACHE")


def _writable(folder: str, kind: str, variable: str) -> Path:
    path = Path(os.path.expanduser(folder))
    if folder.startswith("~") and str(path).startswith("~"):
        raise NulliusError(f"the {kind} folder {folder} is in the home of a user whom nobody knows here; set {variable} to another")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise NulliusError(f"cannot create the {kind} folder {path}: {error.strerror}; set {variable} to one you can write to") from None
    if not os.access(path, os.W_OK):
        raise NulliusError(f"the {kind} folder {path} is read-only; set {variable} to one you can write to")
    return path


def secret() -> bytes:
    """Return the key that signs cookies and links: NULLIUS_SECRET, else a file in the data folder that only this user can read."""
    named = os.environ.get("NULLIUS_SECRET")
    if named:
        return named.encode()
    path = data_dir() / "web-secret"
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        found = path.read_bytes()
        if len(found) >= 32:
            return found
        path.unlink()  # written halfway
        return secret()
    with os.fdopen(handle, "wb") as file:
        file.write(secrets.token_bytes(32))
    return path.read_bytes()
