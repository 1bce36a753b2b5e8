"""Patching sweeps against the plain loop: CPU seconds of this process, one thread, paired rounds, medians and ratios.

    OMP_NUM_THREADS=1 python benchmarks/instruments.py [-m smollm2-135m] [--rounds 3] [--cells 12]

The plain loop is a hook and a whole forward pass per cell, with logits of the last position only: what nnsight does in the same time, and
TransformerLens and pyvene in more. It is run on a random sample of cells; a cell's cost does not depend on which one it is.
"""

from __future__ import annotations

import argparse
import platform
import random
import statistics
import time
from collections.abc import Callable
from datetime import date

import torch
import transformers

import nullius
from nullius.instruments import patching, taps
from nullius.models.language_model import Batch, LanguageModel

PAIRS, LENGTH = 8, 20


def pairs(model: LanguageModel, first: int) -> tuple[Batch, Batch]:
    """Random token pairs of 20 tokens that agree before position `first`."""
    generator = torch.Generator().manual_seed(first)
    base = torch.randint(1000, 20_000, (PAIRS, LENGTH), generator=generator)
    source = torch.cat([base[:, :first], torch.randint(1000, 20_000, (PAIRS, LENGTH - first), generator=generator)], 1)
    return model.pad(base.tolist()), model.pad(source.tolist())


def seconds(function: Callable[[], object]) -> float:
    """CPU seconds of this process (wall seconds on CUDA, whose work is not the process's own)."""
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    start = clock()
    function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return clock() - start


@torch.no_grad()
def plain(model: LanguageModel, base: Batch, kept: torch.Tensor, site: str, cells: list[tuple[int, int]]) -> None:
    """The plain loop over some cells."""
    for layer, column in cells:

        def patch(x: torch.Tensor, layer: int = layer, column: int = column) -> torch.Tensor:
            index = (slice(None), column) if site == "resid_pre" else (slice(None), slice(None), column)
            x = x.clone()
            x[index] = kept[layer][index]
            return x

        with taps.edit(model, site, layer, patch):
            model.logits(base)


def main() -> None:
    """Print one line per sweep and prompt pair."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", default="smollm2-135m")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cells", type=int, default=12)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = nullius.load(arguments.model)
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    print(
        f"{date.today()}  {where}  torch {torch.__version__}  transformers {transformers.__version__}  {model.name}, {PAIRS} pairs of {LENGTH} tokens"
    )
    answers = [[11, 12]] * PAIRS
    draw = random.Random(0)
    for first in (4, 13):
        base, source = pairs(model, first)
        for site, sweep, columns in (
            ("resid_pre", patching.residual, LENGTH),
            ("z", patching.heads, model.anatomy.n_heads),
        ):
            kept = taps.read(model, source, [site], positions="all")[site]
            total = model.anatomy.n_layers * columns
            ratios, ours, theirs = [], [], []
            for _ in range(arguments.rounds):
                cells = [(draw.randrange(model.anatomy.n_layers), draw.randrange(columns)) for _ in range(arguments.cells)]
                loop = seconds(lambda kept=kept, site=site, cells=cells, base=base: plain(model, base, kept, site, cells))
                whole = seconds(lambda sweep=sweep, base=base, source=source: sweep(model, base, source, answers))
                theirs.append(loop / arguments.cells * total)
                ours.append(whole)
                ratios.append(theirs[-1] / whole)
            print(
                f"{site:9} first difference at {first:2}: {total} cells, plain loop {statistics.median(theirs):7.1f} s, "
                f"sweep with its checks {statistics.median(ours):6.2f} s, ratio {statistics.median(ratios):5.1f} "
                f"({min(ratios):.1f} to {max(ratios):.1f})",
                flush=True,
            )


if __name__ == "__main__":
    main()
