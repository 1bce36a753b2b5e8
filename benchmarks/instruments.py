"""Patching sweeps against the plain loop: paired rounds, medians and ratios, results compared cell by cell.

    OMP_NUM_THREADS=1 python benchmarks/instruments.py [-m smollm2-135m] [--rounds 3] [--cells 12]
    python benchmarks/instruments.py --device cuda [--random 1b] [--dtype float32]
    OMP_NUM_THREADS=1 python benchmarks/instruments.py --texts told --length 100 --pairs 1 --first 0.2 --sites resid_pre    # what screening saves

CPU seconds of this process on one thread; on a GPU wall seconds, which is what its plain loop is bound by. The plain loop is a hook and a
whole forward pass per cell, with logits of the last position only. It is run on a random sample of cells; a cell's cost does not depend on which
one it is. The sweep is timed whole: both plain runs, every cell that can matter, and its own checks. Each round has texts of its own: random tokens,
or people and where they live, of whom two have changed places.
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
from scipy import stats
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import nullius
from nullius.instruments import patching, screening, taps
from nullius.models.language_model import Batch, LanguageModel, Provenance

PAIRS, LENGTH = 8, 20
ANSWERS = [[11, 12]] * PAIRS
SHAPE = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size", "vocab_size")
NAMES = """Anna Ben Carl Emma Fred Grace Henry Ivan Jack Kate Leo Mary Nick Paul Rose Sam Tom Vera Will Alice Bob David Eric Frank George Helen James
Karl Lucy Mark Nancy Oscar Peter Ruth Simon Victor Walter Laura"""
CITIES = """Paris Rome London Berlin Madrid Vienna Dublin Moscow Tokyo Cairo Boston Chicago Denver Dallas Miami Athens Prague Oslo Lisbon Delhi Seoul
Sydney Toronto Munich Milan Venice Houston Seattle Atlanta Phoenix Detroit Montreal Baghdad Beijing Istanbul Jerusalem Manchester Oxford Cambridge"""
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


def pairs(
    model: LanguageModel, first: int, number: int = PAIRS, length: int = LENGTH, seed: int = 0
) -> tuple[Batch, Batch, list[list[int]]]:
    """Random token pairs that agree before position `first`, and the two tokens whose logits are compared, for each pair."""
    generator = torch.Generator().manual_seed(first + 1000 * seed)
    base = torch.randint(1000, 20_000, (number, length), generator=generator)
    source = torch.cat([base[:, :first], torch.randint(1000, 20_000, (number, length - first), generator=generator)], 1)
    return model.pad(base.tolist()), model.pad(source.tolist()), [ANSWERS[0]] * number


def told(model: LanguageModel, first: int, number: int, length: int, seed: int = 0) -> tuple[Batch, Batch, list[list[int]]]:
    """Texts that say where some people live, and ask of one; in the source that one and the next have changed places, from about `first` on."""
    draw, count = random.Random(seed), length // 5 - 1
    asked = min(max(0, round((first - 3) / 5)), count - 2)
    sides: tuple[list[str], list[str]] = ([], [])
    answers = []
    for _ in range(number):
        names, cities = draw.sample(NAMES.split(), count), draw.sample(CITIES.split(), count)
        answers.append([model.first_token(f" {city}") for city in cities[asked : asked + 2]])
        for side in sides:
            facts = "".join(f" {name} lives in {city}." for name, city in zip(names, cities, strict=True))
            side.append(f"{facts} Remember that {names[asked]} lives in")
            cities[asked : asked + 2] = cities[asked : asked + 2][::-1]
    base, source = (model.encode(side) for side in sides)
    return base, source, answers


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
def plain(
    model: LanguageModel, base: Batch, kept: torch.Tensor, answers: list[list[int]], site: str, cells: list[tuple[int, int]]
) -> torch.Tensor:
    """The plain loop over some cells: the metric for each pair and cell [n, cells]."""
    out, read = [], torch.tensor(answers, device=model.device)
    for layer, column in cells:

        def patch(x: torch.Tensor, layer: int = layer, column: int = column) -> torch.Tensor:
            index = (slice(None), column) if site == "resid_pre" else (slice(None), slice(None), column)
            x = x.clone()
            x[index] = kept[layer][index]
            return x

        with taps.edit(model, site, layer, patch):
            out.append(patching.difference(model.logits(base).gather(1, read)))
    return torch.stack(out, 1)


def measure(model: LanguageModel, texts: Callable[[int], tuple[Batch, Batch, list[list[int]]]], site: str, rounds: int, cells: int) -> None:
    """Time the sweep over one site and its screened form against the plain loop, in rounds of random order; print two lines."""
    sweep, screen = {"resid_pre": (patching.residual, screening.residual), "z": (patching.heads, screening.heads)}[site]
    layers, draw = model.anatomy.n_layers, random.Random(0)
    took: dict[str, list[float]] = {"plain": [], "sweep": [], "screen": []}
    gap, same, screens = 0.0, 0, []
    for number in range(rounds):
        base, source, answers = texts(number)
        columns = base.input_ids.shape[1] if site == "resid_pre" else model.anatomy.n_heads
        kept = taps.read(model, source, [site], positions="all")[site]
        if number == 0:
            plain(model, base, kept, answers, site, [(0, 0)])  # warm
            if model.device.type == "cuda":
                screen(model, base, source, answers)  # runs all that the sweep does, of fewer cells
        chosen = [(draw.randrange(layers), draw.randrange(columns)) for _ in range(cells)]
        jobs: dict[str, Callable[[], Any]] = {
            "plain": partial(plain, model, base, kept, answers, site, chosen),
            "sweep": partial(sweep, model, base, source, answers),
            "screen": partial(screen, model, base, source, answers),
        }
        order = list(jobs)
        draw.shuffle(order)
        found: dict[str, Any] = {}
        for name in order:
            spent, found[name] = timed(jobs[name], model.device)
            took[name].append(spent / cells * layers * columns if name == "plain" else spent)
        values = found["sweep"].values
        gap = max(gap, *(float((values[:, cell[0], cell[1]] - found["plain"][:, i]).abs().max()) for i, cell in enumerate(chosen)))
        effect = (values - found["sweep"].base[:, None, None]).mean(0).abs().flatten()
        same += len({divmod(int(i), columns) for i in effect.argsort(descending=True)[:10]} & set(found["screen"].best))
        screens.append(found["screen"])
    loop, whole, part = (statistics.median(took[name]) for name in ("plain", "sweep", "screen"))
    first = int((base.input_ids != source.input_ids).any(0).nonzero()[0])
    print(
        f"{site:9} first difference at {first:2} of {base.input_ids.shape[1]}: {layers * columns} cells, "
        f"plain loop {loop:7.2f} s, sweep with its checks {whole:6.2f} s, ratio {spread(took['plain'], took['sweep'])}, largest difference {gap:.1e}"
    )
    passed, drawn, missed = (sum(getattr(one, what) for one in screens) for what in ("passed_over", "sampled", "missed"))
    low, high = stats.binomtest(missed, drawn).proportion_ci(0.95, "exact")
    print(
        f"{'':9} screened {part:6.2f} s: {spread(took['sweep'], took['screen'])} x faster than the sweep, {loop / part:.0f} x than the plain loop; "
        f"{same} of {10 * rounds} of the sweeps' top tens; {missed} of {drawn} cells drawn from {passed} passed over belong there: "
        f"{missed / drawn:.1%} [{low:.1%}, {high:.1%}]",
        flush=True,
    )


def spread(slow: list[float], fast: list[float]) -> str:
    """Median and range of paired ratios."""
    ratios = [a / b for a, b in zip(slow, fast, strict=True)]
    return f"{statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})"


def main() -> None:
    """Print two lines for each sweep and prompt pair."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", default="smollm2-135m")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cells", type=int, default=12)
    parser.add_argument("--pairs", type=int, default=PAIRS)
    parser.add_argument("--length", nargs="+", type=int, default=[LENGTH])
    parser.add_argument("--texts", default="random", choices=["random", "told"])
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
    print(f"{header(model)}, {arguments.pairs} pairs of {', '.join(map(str, arguments.length))} tokens, {arguments.texts}")
    make = {"random": pairs, "told": told}[arguments.texts]
    for length, share, site in product(arguments.length, arguments.first, arguments.sites):
        measure(model, partial(make, model, round(share * length), arguments.pairs, length), site, arguments.rounds, arguments.cells)
    memory = torch.cuda.max_memory_allocated() if model.device.type == "cuda" else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"peak memory {memory / 2**20:.0f} MB")


if __name__ == "__main__":
    main()
