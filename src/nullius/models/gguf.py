"""GGUF files: checked, and dequantised once into a folder of safetensors, so that the second load takes a second."""

from __future__ import annotations

from pathlib import Path

from nullius.errors import SubjectError


def check(path: Path) -> None:
    """Raise SubjectError when a file is not a whole GGUF file (the tensors it announces must fit into it)."""
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise SubjectError(f"{path} is not a GGUF file")
    from gguf import GGUFReader

    try:
        reader = GGUFReader(path)
        end = max(int(tensor.data_offset + tensor.n_bytes) for tensor in reader.tensors)
    except (ValueError, IndexError, OverflowError, KeyError, TypeError) as error:
        raise SubjectError(f"{path} is a truncated or damaged GGUF file ({str(error).splitlines()[0]}); fetch it again") from None
    if end > path.stat().st_size:
        raise SubjectError(f"{path} is truncated: {path.stat().st_size} bytes, its tensors end at {end}; fetch it again")


def dequantise(path: Path, folder: Path) -> None:
    """Write config, tokenizer and float32 safetensors of a GGUF file into `folder`. Takes tens of seconds; done once."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    check(path)
    place = {"gguf_file": path.name}
    model = AutoModelForCausalLM.from_pretrained(path.parent, dtype=torch.float32, **place)
    tokenizer = AutoTokenizer.from_pretrained(path.parent, **place)
    # transformers refuses to save a model that it loaded from GGUF: the state goes into a fresh one of the same config (equal logits)
    fresh = type(model)(model.config)
    fresh.load_state_dict(model.state_dict())
    fresh.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
