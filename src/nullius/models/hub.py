"""The hub: asked briefly whether it answers, then files are fetched into its own cache (shared with every other program) and verified."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

from nullius.errors import SubjectError, nearest
from nullius.models import weights

PATTERNS = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "README.md"]
SUBFOLDERS = ["*/*", "consolidated*"]  # other formats of the same weights (ONNX, Mistral's own)
PATIENCE = 5.0  # seconds until the hub counts as out of reach; its own client retries for minutes


@dataclass(frozen=True)
class Snapshot:
    """Files of one revision of a hub repository on this machine."""

    folder: Path
    revision: str

    def facts(self, name: str) -> dict[str, str]:
        """Return the provenance of a subject with these weights."""
        return {
            "source": f"hub {name} at {self.revision[:12]}",
            "licence": weights.licence(self.folder),
            "quantisation": weights.note(self.folder),
        }


def cached(name: str, allow_pickle: bool = False) -> Snapshot | None:
    """Return the whole snapshot of a repository that an earlier download (of any program) left here, or None."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        config = try_to_load_from_cache(name, "config.json")
    except HFValidationError as error:
        raise SubjectError(f"'{name}' is no name of a hub model: {str(error).splitlines()[0]}") from None
    if not isinstance(config, str):
        return None
    folder = Path(config).parent
    readable = any(folder.glob("tokenizer*")) or any(folder.glob("vocab*"))
    return Snapshot(folder, folder.name) if readable and weights.whole(folder, allow_pickle) else None


def download(name: str, allow_pickle: bool = False) -> Snapshot:
    """Fetch the weights, config and tokenizer of a repository; an interrupted download goes on where it stopped.

    Raises SubjectError: the hub does not answer, has no such repository, closes it to this user, holds pickles or no weights, gave other bytes
    than it announced, or the disk has no room.
    """
    import httpx
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    if reason := out_of_reach():
        raise SubjectError(f"cannot fetch '{name}': {reason}, and nothing of it is cached")
    try:
        about = HfApi().model_info(name, files_metadata=True, timeout=2 * PATIENCE)
        files = {item.rfilename: item for item in about.siblings or [] if "/" not in item.rfilename}
        patterns = [*PATTERNS, *(f"*{suffix}" for suffix in weights.PICKLES if allow_pickle)]
        wanted = {key for key in files if any(Path(key).match(pattern) for pattern in patterns) and not key.startswith("consolidated")}
        _check_kind(name, files, wanted, allow_pickle)
        weights.check_room(Path(_cache()), sum(files[key].size or 0 for key in wanted), name)
        folder = Path(snapshot_download(name, allow_patterns=patterns, ignore_patterns=SUBFOLDERS, etag_timeout=2 * PATIENCE))
    except GatedRepoError:
        raise SubjectError(f"the hub gives '{name}' only to users who accepted its terms there: do so, then `hf auth login`") from None
    except RepositoryNotFoundError:
        from nullius.models.sources import sources

        known = [source.hub for source in sources().values()]
        raise SubjectError(f"the hub has no model '{name}' (or it is private){nearest(name, known)}") from None
    except (LocalEntryNotFoundError, httpx.TransportError):
        raise SubjectError(f"the hub stopped answering while '{name}' was fetched; ask again, and it goes on where it stopped") from None
    except HfHubHTTPError as error:
        raise SubjectError(f"the hub refused '{name}': {str(error).strip().splitlines()[0]}") from None
    for key in sorted(wanted):
        announced = getattr(files[key].lfs, "sha256", None)
        if announced and weights.sha256(folder / key) != announced:
            (folder / key).resolve().unlink()
            raise SubjectError(f"{key} of '{name}' does not have the sha256 that the hub announced; deleted, fetch it again")
    return Snapshot(folder, folder.name)  # named after the revision


def _check_kind(name: str, files: dict[str, Any], wanted: set[str], allow_pickle: bool) -> None:
    suffixes = {Path(key).suffix for key in files}
    if any(Path(key).suffix == ".safetensors" for key in wanted):
        return
    if suffixes & set(weights.PICKLES):
        if not allow_pickle:
            raise SubjectError(f"'{name}' on the hub has only {weights.REFUSAL}")
    elif ".gguf" in suffixes:
        raise SubjectError(f"'{name}' on the hub holds GGUF files: download one of them and give its path")
    else:
        raise SubjectError(f"'{name}' on the hub holds no weights (*.safetensors)")


def _cache() -> str:
    from huggingface_hub import constants

    return constants.HF_HUB_CACHE


def out_of_reach() -> str:
    """Ask the hub for a sign of life; return why there is none, or an empty string. In a thread: a name server may ignore timeouts."""
    import httpx
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "the hub is switched off (HF_HUB_OFFLINE)"
    problem = ["no answer in time"]

    def ask() -> None:
        try:
            status = httpx.head(f"{constants.ENDPOINT}/api/models", timeout=PATIENCE - 1, follow_redirects=True).status_code
            problem[:] = [f"status {status}"] if status >= 500 or status in (403, 407) else []
        except httpx.HTTPError as error:
            problem[:] = [type(error).__name__]

    thread = Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    return f"the hub does not answer ({problem[0]})" if problem else ""


def copy_into(snapshot: Snapshot, folder: Path) -> None:
    """Put the files of a snapshot into a folder: as links to the same bytes where the file system can, else as copies."""
    for path in snapshot.folder.iterdir():
        if path.is_file():
            try:
                (folder / path.name).hardlink_to(path.resolve())
            except OSError:
                shutil.copyfile(path, folder / path.name)
