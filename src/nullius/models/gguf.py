"""GGUF files: checked, and dequantised once into a folder of safetensors, so that the second load takes a second."""

from __future__ import annotations

import contextlib
import io
import re
from dataclasses import dataclass
from pathlib import Path

import psutil

from nullius.errors import SubjectError


@dataclass(frozen=True)
class Header:
    """What a GGUF file says about itself. rounding: llama.cpp's name of the file type (Q4_1, Q4_K_M, F16 ...)."""

    architecture: str
    parameters: int
    rounding: str

    @property
    def note(self) -> str:
        """Return the note on rounding for whoever reads a verdict about these weights; "" for full-precision floats."""
        bits = re.search(r"\d+", self.rounding)
        if self.rounding in ("F32", "BF16", "F16"):
            return "" if self.rounding == "F32" else f"16-bit floats ({self.rounding})"
        return f"{bits.group()}-bit roundings ({self.rounding}), dequantised" if bits else "roundings of unknown kind, dequantised"


def check(path: Path) -> Header:
    """Read the header. Raises SubjectError when the file is not a whole GGUF file (the tensors it announces must fit into it)."""
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise SubjectError(f"{path} is not a GGUF file")
    from gguf import GGUFReader, LlamaFileType

    try:
        reader = GGUFReader(path)
        end = max(int(tensor.data_offset + tensor.n_bytes) for tensor in reader.tensors)
        architecture = reader.fields["general.architecture"].contents()
        kind = reader.fields.get("general.file_type")
    except (ValueError, IndexError, OverflowError, KeyError, TypeError) as error:
        raise SubjectError(f"{path} is a truncated or damaged GGUF file ({str(error).splitlines()[0]}); fetch it again") from None
    if end > path.stat().st_size:
        raise SubjectError(f"{path} is truncated: {path.stat().st_size} bytes, its tensors end at {end}; fetch it again")
    names = {int(item): re.sub("^(MOSTLY|ALL)_", "", item.name) for item in LlamaFileType}
    rounding = names.get(int(kind.contents()), "") if kind else ""
    return Header(str(architecture), sum(int(tensor.n_elements) for tensor in reader.tensors), rounding)


def dequantise(path: Path, folder: Path) -> Header:
    """Write config, tokenizer and float32 safetensors of a GGUF file into `folder`. Takes tens of seconds; done once.

    Raises SubjectError when the file is damaged, of an architecture that transformers cannot read from GGUF, or too large for memory.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    header = check(path)
    needed, free = 4.5 * header.parameters, psutil.virtual_memory().available
    if needed > free:
        raise SubjectError(
            f"dequantising {path.name} needs about {needed / 2**30:.1f} GiB of memory, {free / 2**30:.1f} GiB are free; take a smaller one"
        )
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    place = {"gguf_file": path.name}
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # a second progress bar
            model = AutoModelForCausalLM.from_pretrained(path.parent, dtype=torch.float32, trust_remote_code=False, **place)
            tokenizer = AutoTokenizer.from_pretrained(path.parent, trust_remote_code=False, **place)
    except (ValueError, KeyError, NotImplementedError, RuntimeError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise SubjectError(f"{path.name} ({header.architecture}) cannot be read: {str(error).strip().splitlines()[0]}") from None
    # transformers refuses to save a model that it loaded from GGUF: a model of the same config without memory of its own takes over the tensors
    with torch.device("meta"):
        fresh = type(model)(model.config)
    fresh.load_state_dict(model.state_dict(), assign=True)
    try:
        fresh.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    except SafetensorError as error:  # how safetensors reports a full disk
        raise SubjectError(f"cannot store the weights of {path.name} in {folder.parent}: {error}") from None
    return header
