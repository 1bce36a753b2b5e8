"""Writing the residual stream of every layer of many tokens to disk, against the plain forward pass over the same tokens.

    OMP_NUM_THREADS=1 python benchmarks/caching.py [-m smollm2-135m] [--tokens 100000] [--rounds 25] [--device cpu]

CPU seconds of this process, all threads counted (wall seconds on a GPU). The tokens are cut into rounds; each runs both jobs in random order, so that
what else the machine does meets both. The plain pass runs the decoder on the same batches and keeps nothing. Every round writes a store of its own
into a temporary folder and removes it: 69 kB a token in float32.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
from itertools import pairwise
from pathlib import Path

import torch

from instruments import header, load, timed
from nullius.instruments import store

LENGTH, BATCH = 128, 1024


@torch.no_grad()
def main() -> None:
    """Print one line for each round and one with the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", default="smollm2-135m")
    parser.add_argument("--tokens", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--random", default="", help="random weights of a Llama of this size (135m, 1b) in place of a model")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = load(arguments.model, arguments.device, arguments.random)
    generator = torch.Generator().manual_seed(0)
    each = -(-arguments.tokens // arguments.rounds // BATCH) * BATCH
    print(f"{header(model)}, {arguments.rounds} x {each} tokens in texts of {LENGTH}")
    ratios, whole = [], {"plain": 0.0, "store": 0.0}
    for number in range(arguments.rounds):
        rows = torch.randint(1000, 20_000, (each // LENGTH, LENGTH), generator=generator).tolist()
        cuts = store._cut([LENGTH] * len(rows), BATCH)

        def plain(rows: list[list[int]] = rows, cuts: list[int] = cuts) -> None:
            for start, stop in pairwise(cuts):
                model.hidden(model.pad(rows[start:stop]))

        with tempfile.TemporaryDirectory() as folder:
            jobs = {
                "plain": plain,
                "store": lambda rows=rows, folder=folder: store.record(model, rows, folder, ["resid_post"], batch_tokens=BATCH),
            }
            order = list(jobs)
            random.Random(number).shuffle(order)
            took = {name: timed(jobs[name], model.device)[0] for name in order}
            size = sum(path.stat().st_size for path in Path(folder).iterdir()) / 1e9
        ratios.append(took["store"] / took["plain"])
        whole = {name: whole[name] + took[name] for name in whole}
        print(f"plain {took['plain']:7.2f} s   store {took['store']:7.2f} s   {size:.2f} GB   ratio {ratios[-1]:.3f}", flush=True)
    print(f"all rounds: plain {whole['plain']:.1f} s, store {whole['store']:.1f} s, ratio {whole['store'] / whole['plain']:.3f}")
    low, _, high = statistics.quantiles(ratios, n=4)
    print(
        f"ratio of a round, median {statistics.median(ratios):.3f}, half of them {low:.3f} to {high:.3f}, all {min(ratios):.3f} to {max(ratios):.3f}"
    )


if __name__ == "__main__":
    main()
