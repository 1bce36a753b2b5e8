"""Patching sweeps against the plain loop: paired rounds, medians and ratios, results compared cell by cell.

    OMP_NUM_THREADS=1 python benchmarks/instruments.py [-m smollm2-135m] [--rounds 3] [--cells 12]
    python benchmarks/instruments.py --device cuda [--random 1b] [--dtype float32]

CPU seconds of this process on one thread; on a GPU wall seconds, which is what its plain loop is bound by. The plain loop is a hook and a
whole forward pass per cell, with logits of the last position only. It is run on a random sample of cells; a cell's cost does not depend on which
one it is. The sweep is timed whole: both plain runs, every cell that can matter, and its own checks.
"""

from __future__ import annotations

import argparse
import platform
import random
import resource
import statistics
import time
from collections.abc import Callable
from datetime import date
from functools import partial
from itertools import product
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import nullius
from nullius.instruments import patching, screening, taps
from nullius.models.language_model import Batch, LanguageModel, Provenance

PAIRS, LENGTH = 8, 20
ANSWERS = [[11, 12]] * PAIRS
SHAPE = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size", "vocab_size")
SIZES = {  # the shapes of SmolLM2-135M and of Llama 3.2 1B
    "135m": dict(zip(SHAPE, (576, 30, 9, 3, 1536, 49_152), strict=True)),
    "1b": dict(zip(SHAPE, (2048, 16, 32, 8, 8192, 128_256), strict=True)),
}


def load(name: str, device: str, size: str = "", dtype: str = "float32") -> LanguageModel:
    """A subject by name, or a Llama with random weights of a size."""
    if not size:
        model = nullius.load(name)
        model.hf.to(device=device, dtype=getattr(torch, dtype))
        return model
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(20_000)}, unk_token="w0"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w1", pad_token="w1")
    torch.manual_seed(0)
    with torch.device(device):
        hf = LlamaForCausalLM(LlamaConfig(**SIZES[size], tie_word_embeddings=True)).to(getattr(torch, dtype))
    provenance = Provenance("random weights")
    return LanguageModel(hf, tokenizer, f"random-{size}", "", provenance)


def pairs(model: LanguageModel, first: int, number: int = PAIRS, length: int = LENGTH) -> tuple[Batch, Batch]:
    """Random token pairs that agree before position `first`."""
    generator = torch.Generator().manual_seed(first)
    base = torch.randint(1000, 20_000, (number, length), generator=generator)
    source = torch.cat([base[:, :first], torch.randint(1000, 20_000, (number, length - first), generator=generator)], 1)
    return model.pad(base.tolist()), model.pad(source.tolist())


def timed(function: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    """What a function takes and returns: CPU seconds of this process; wall seconds on CUDA, whose work is not the process's own."""
    on_gpu = device.type == "cuda"
    clock = time.perf_counter if on_gpu else time.process_time
    if on_gpu:
        torch.cuda.synchronize()
    start = clock()
    out = function()
    if on_gpu:
        torch.cuda.synchronize()
    return clock() - start, out


def header(model: LanguageModel) -> str:
    """What ran where, in one line."""
    where = torch.cuda.get_device_name() if model.device.type == "cuda" else platform.processor() or platform.machine()
    unit = "wall seconds" if model.device.type == "cuda" else f"CPU seconds, {torch.get_num_threads()} thread"
    versions = f"torch {torch.__version__}  transformers {transformers.__version__}"
    return f"{date.today()}  {where}  {versions}  {model.name} {str(model.dtype).removeprefix('torch.')}  {unit}"


@torch.no_grad()
def plain(model: LanguageModel, base: Batch, kept: torch.Tensor, site: str, cells: list[tuple[int, int]]) -> torch.Tensor:
    """The plain loop over some cells: the metric for each pair and cell [n, cells]."""
    out = []
    for layer, column in cells:

        def patch(x: torch.Tensor, layer: int = layer, column: int = column) -> torch.Tensor:
            index = (slice(None), column) if site == "resid_pre" else (slice(None), slice(None), column)
            x = x.clone()
            x[index] = kept[layer][index]
            return x

        with taps.edit(model, site, layer, patch):
            logits = model.logits(base)
        out.append(logits[:, 11] - logits[:, 12])
    return torch.stack(out, 1)


def measure(model: LanguageModel, base: Batch, source: Batch, site: str, rounds: int, cells: int) -> None:
    """Time the sweep over one site and its screened form against the plain loop, in rounds of random order; print two lines."""
    sweep, screen, columns = {
        "resid_pre": (patching.residual, screening.residual, base.input_ids.shape[1]),
        "z": (patching.heads, screening.heads, model.anatomy.n_heads),
    }[site]
    first = int((base.input_ids != source.input_ids).any(0).nonzero()[0])
    answers = ANSWERS[:1] * len(base.input_ids)
    kept = taps.read(model, source, [site], positions="all")[site]
    layers, draw = model.anatomy.n_layers, random.Random(first)
    plain(model, base, kept, site, [(0, 0)])  # warm
    if model.device.type == "cuda":
        screen(model, base, source, answers)  # runs all that the sweep does, of fewer cells
    took: dict[str, list[float]] = {"plain": [], "sweep": [], "screen": []}
    gap, same, said = 0.0, 0, ""
    for _ in range(rounds):
        chosen = [(draw.randrange(layers), draw.randrange(columns)) for _ in range(cells)]
        jobs: dict[str, Callable[[], Any]] = {
            "plain": partial(plain, model, base, kept, site, chosen),
            "sweep": partial(sweep, model, base, source, answers),
            "screen": partial(screen, model, base, source, answers),
        }
        order = list(jobs)
        draw.shuffle(order)
        found: dict[str, Any] = {}
        for name in order:
            spent, found[name] = timed(jobs[name], model.device)
            took[name].append(spent / cells * layers * columns if name == "plain" else spent)
        values, screened = found["sweep"].values, found["screen"]
        gap = max(gap, *(float((values[:, cell[0], cell[1]] - found["plain"][:, i]).abs().max()) for i, cell in enumerate(chosen)))
        effect = (values - found["sweep"].base[:, None, None]).mean(0).abs().flatten()
        same = len({divmod(int(i), columns) for i in effect.argsort(descending=True)[:10]} & set(screened.best))
        said = str(screened)
    ratios = [p / s for p, s in zip(took["plain"], took["sweep"], strict=True)]
    loop, whole, part = (statistics.median(took[name]) for name in ("plain", "sweep", "screen"))
    print(
        f"{site:9} first difference at {first:2} of {base.input_ids.shape[1]}: {layers * columns} cells, "
        f"plain loop {loop:7.2f} s, sweep with its checks {whole:6.2f} s, "
        f"ratio {statistics.median(ratios):5.1f} ({min(ratios):.1f} to {max(ratios):.1f}), largest difference {gap:.1e}"
    )
    print(
        f"{'':9} screened {part:6.2f} s: {whole / part:.1f} x faster than the sweep, {loop / part:.0f} x than the plain loop; "
        f"{same} of its top 10; {said}",
        flush=True,
    )


def main() -> None:
    """Print two lines for each sweep and prompt pair."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", default="smollm2-135m")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cells", type=int, default=12)
    parser.add_argument("--pairs", type=int, default=PAIRS)
    parser.add_argument("--length", nargs="+", type=int, default=[LENGTH])
    parser.add_argument("--sites", nargs="+", default=["resid_pre", "z"], choices=["resid_pre", "z"])
    parser.add_argument(
        "--first", nargs="+", type=float, default=[0.2, 0.65], help="where the texts first differ, as a share of their length"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--random", default="", choices=["", *SIZES], help="random weights of a Llama of this size in place of a model")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = load(arguments.model, arguments.device, arguments.random, arguments.dtype)
    print(f"{header(model)}, {arguments.pairs} pairs of {', '.join(map(str, arguments.length))} tokens")
    for length, share, site in product(arguments.length, arguments.first, arguments.sites):
        base, source = pairs(model, round(share * length), arguments.pairs, length)
        measure(model, base, source, site, arguments.rounds, arguments.cells)
    memory = torch.cuda.max_memory_allocated() if model.device.type == "cuda" else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"peak memory {memory / 2**20:.0f} MB")


if __name__ == "__main__":
    main()
