"""The same patching cells by four libraries on one model and one set of prompts: what a cell costs, and whether the numbers agree.

    python benchmarks/peers_sweeps.py prepare DIR [-m smollm2-135m]        with nullius: weights as a transformers folder, prompts, our own results
    DIR/../venv/bin/python benchmarks/peers_sweeps.py run DIR [--cells 8]  with the peers: the plain loop, nnsight, TransformerLens, pyvene
    python benchmarks/peers_sweeps.py compare DIR                          the table

Both measure peak memory too, of each library in a process of its own that loads the model and runs that library's cells (of ours: both whole sweeps).

Peers live in an environment of their own (see instruments.md). Each runs in this one process on one thread, in rounds of random order, in CPU
seconds of the process. Every library is used as its documentation shows: a hook, a trace, or an intervenable model for each cell; logits of the
last position only where it can. `prepare` times our sweeps whole, beside the plain loop of the same minutes.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

PAIRS, LENGTH, FIRST = 8, 20, 4


def prompts() -> tuple[torch.Tensor, torch.Tensor]:
    """Random token pairs that agree before position 4."""
    generator = torch.Generator().manual_seed(FIRST)
    base = torch.randint(1000, 20_000, (PAIRS, LENGTH), generator=generator)
    return base, torch.cat([base[:, :FIRST], torch.randint(1000, 20_000, (PAIRS, LENGTH - FIRST), generator=generator)], 1)


def cells(layers: int, heads: int, n: int) -> dict[str, list[tuple[int, int]]]:
    """Random cells of the residual sweep (from the first difference on) and of the head sweep."""
    draw = random.Random(0)
    residual = [(draw.randrange(layers), draw.randrange(FIRST, LENGTH)) for _ in range(n)]
    return {"residual": residual, "heads": [(draw.randrange(layers), draw.randrange(heads)) for _ in range(n)]}


def prepare(folder: Path, name: str) -> None:
    """Write the model and time our own sweeps."""
    import nullius
    from instruments import ANSWERS, timed
    from nullius.instruments import patching, screening

    model = nullius.load(name)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "config.json").exists():
        config = model.hf.config.to_dict()
        config.pop("quantization_config", None)  # transformers does not save what came from GGUF: a fresh model takes the weights
        fresh = type(model.hf)(type(model.hf.config)(**config))
        fresh.load_state_dict(model.hf.state_dict())
        fresh.save_pretrained(folder)
        model.tokenizer.save_pretrained(folder)
    base, source = (model.pad(side.tolist()) for side in prompts())
    out: dict[str, Any] = {"model": model.name}
    for site, sweep, screen in (("residual", patching.residual, screening.residual), ("heads", patching.heads, screening.heads)):
        took, found = timed(lambda sweep=sweep: sweep(model, base, source, ANSWERS), model.device)
        screened, best = timed(lambda screen=screen: screen(model, base, source, ANSWERS), model.device)
        out[site] = {"seconds": took, "screened": screened, "screen": str(best), "values": found.values.tolist(), "gap": found.gap}
        print(f"{site}: {took:.2f} s, screened {screened:.2f} s", flush=True)
    out["peak"] = peak_of(folder, "nullius")
    print(f"peak memory {out['peak']:.0f} MB", flush=True)
    (folder / "ours.json").write_text(json.dumps(out))


def peak_of(folder: Path, library: str) -> float:
    """Peak resident memory in MB of a fresh process that runs one library."""
    command = [sys.executable, __file__, "memory", str(folder), "--library", library]
    told = subprocess.run(command, capture_output=True, text=True)
    return float(told.stdout.split()[-1]) if told.returncode == 0 else float("nan")


@torch.no_grad()
def memory(folder: Path, library: str) -> None:
    """Load one library and the model, run a cell of each kind (of ours: both sweeps), and print this process's peak resident memory in MB."""
    sys.modules["triton"] = None  # type: ignore[assignment]  # an environment may have it or not: 70 MB that none of these needs
    base, source = prompts()
    if library == "nullius":
        import nullius
        from nullius.instruments import patching

        model = nullius.load(str(folder))
        for sweep in (patching.residual, patching.heads):
            sweep(model, model.pad(base.tolist()), model.pad(source.tolist()), [[11, 12]] * PAIRS)
    else:
        from transformers import AutoTokenizer

        kept = AutoTokenizer.from_pretrained(folder)  # as anyone has who has texts
        subject = LIBRARIES[library](folder, base, source)
        assert len(kept)
        for site in ("residual", "heads"):
            subject.cell(site, 3, 5)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def logit_difference(logits: torch.Tensor) -> torch.Tensor:
    """Logit of token 11 minus that of token 12, at the last position [n]."""
    return (logits[:, -1, 11] - logits[:, -1, 12]).detach().float()


class Plain:
    """Hooks on the transformers model, one whole pass for each cell, logits of the last position."""

    def __init__(self, folder: Path, base: torch.Tensor, source: torch.Tensor) -> None:
        from transformers import AutoModelForCausalLM

        self.hf: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.base, self.resid, self.z = base, {}, {}
        config = self.hf.config
        self.layers, self.heads, self.d_head = config.num_hidden_layers, config.num_attention_heads, config.head_dim
        handles = []
        for i, layer in enumerate(self.hf.model.layers):
            handles.append(layer.register_forward_pre_hook(lambda _m, args, i=i: self.resid.__setitem__(i, args[0].clone())))
            handles.append(layer.self_attn.o_proj.register_forward_pre_hook(lambda _m, args, i=i: self.z.__setitem__(i, args[0].clone())))
        self.hf(input_ids=source)
        for handle in handles:
            handle.remove()

    def cell(self, site: str, layer: int, column: int) -> torch.Tensor:
        block = self.hf.model.layers[layer]
        module = block if site == "residual" else block.self_attn.o_proj

        def patch(_module: Any, args: Any) -> Any:
            x = args[0].clone()
            if site == "residual":
                x[:, column] = self.resid[layer][:, column]
            else:
                part = slice(column * self.d_head, (column + 1) * self.d_head)
                x[..., part] = self.z[layer][..., part]
            return (x, *args[1:])

        handle = module.register_forward_pre_hook(patch)
        try:
            return logit_difference(self.hf(input_ids=self.base, logits_to_keep=1).logits)
        finally:
            handle.remove()


class NNsight(Plain):
    """One trace for each cell."""

    def __init__(self, folder: Path, base: torch.Tensor, source: torch.Tensor) -> None:
        super().__init__(folder, base, source)
        from nnsight import NNsight as Traced

        self.traced = Traced(self.hf)

    def cell(self, site: str, layer: int, column: int) -> torch.Tensor:
        resid, z, part = self.resid, self.z, slice(column * self.d_head, (column + 1) * self.d_head)
        if site == "residual":
            with self.traced.trace(input_ids=self.base, logits_to_keep=1):
                self.traced.model.layers[layer].input[:, column] = resid[layer][:, column]
                out = self.traced.output.logits.save()
        else:
            with self.traced.trace(input_ids=self.base, logits_to_keep=1):
                self.traced.model.layers[layer].self_attn.o_proj.input[..., part] = z[layer][..., part]
                out = self.traced.output.logits.save()
        return logit_difference(out)


class Lens:
    """TransformerLens: run_with_hooks on its bridge, one hook for each cell, as its own patching functions do."""

    def __init__(self, folder: Path, base: torch.Tensor, source: torch.Tensor) -> None:
        from transformer_lens.model_bridge import TransformerBridge

        self.model: Any = TransformerBridge.boot_transformers(str(folder), dtype=torch.float32)
        self.base = base
        _, self.cache = self.model.run_with_cache(source)

    def cell(self, site: str, layer: int, column: int) -> torch.Tensor:
        name = f"blocks.{layer}.hook_resid_pre" if site == "residual" else f"blocks.{layer}.attn.hook_z"
        kept = self.cache[name]

        def patch(x: torch.Tensor, hook: Any) -> torch.Tensor:
            x = x.clone()
            if site == "residual":
                x[:, column] = kept[:, column]
            elif x.ndim == 4:
                x[:, :, column] = kept[:, :, column]
            else:
                part = slice(column * (x.shape[-1] // self.model.cfg.n_heads), (column + 1) * (x.shape[-1] // self.model.cfg.n_heads))
                x[..., part] = kept[..., part]
            return x

        return logit_difference(self.model.run_with_hooks(self.base, fwd_hooks=[(name, patch)]))


class Pyvene(Plain):
    """An intervenable model for each cell, which runs base and source, as in its tutorials."""

    def __init__(self, folder: Path, base: torch.Tensor, source: torch.Tensor) -> None:
        super().__init__(folder, base, source)
        import pyvene

        self.pv, self.source = pyvene, source

    def cell(self, site: str, layer: int, column: int) -> torch.Tensor:
        pv = self.pv
        if site == "residual":
            what = pv.RepresentationConfig(layer, "block_input", "pos", 1, intervention_type=pv.VanillaIntervention)
            where: Any = column
            locations = {"sources->base": (where, where)}
        else:
            what = pv.RepresentationConfig(layer, "head_attention_value_output", "h.pos", 1, intervention_type=pv.VanillaIntervention)
            spots = [[[column]] * PAIRS, [list(range(LENGTH))] * PAIRS]
            locations = {"sources->base": ([spots], [spots])}
        model = pv.IntervenableModel(pv.IntervenableConfig([what], intervention_types=pv.VanillaIntervention), model=self.hf)
        _, out = model({"input_ids": self.base}, [{"input_ids": self.source}], locations)
        if hasattr(model, "_cleanup_states"):
            model._cleanup_states()
        return logit_difference(out.logits)


LIBRARIES: dict[str, Callable[..., Any]] = {"plain": Plain, "nnsight": NNsight, "transformer-lens": Lens, "pyvene": Pyvene}


@torch.no_grad()
def run(folder: Path, n: int, rounds: int) -> None:
    """Time each library on the same cells, and keep their numbers."""
    torch.set_num_threads(1)
    base, source = prompts()
    out: dict[str, Any] = {}
    for name, make in LIBRARIES.items():
        try:
            out[name] = {"subject": make(folder, base, source), "residual": [], "heads": [], "values": {}}
        except Exception as error:  # a peer that cannot be used is a line of the table
            print(f"{name}: {type(error).__name__}: {str(error).splitlines()[0]}", flush=True)
    plain = out["plain"]["subject"]
    chosen = cells(plain.layers, plain.heads, n)
    draw = random.Random(1)
    for site, some in chosen.items():
        for _ in range(rounds):
            order = list(out)
            draw.shuffle(order)
            for name in order:
                subject = out[name]["subject"]
                try:
                    start = time.process_time()
                    values = [subject.cell(site, layer, column).tolist() for layer, column in some]
                    out[name][site].append((time.process_time() - start) / len(some))
                    out[name]["values"][site] = values
                except Exception as error:
                    print(f"{name}, {site}: {type(error).__name__}: {str(error).splitlines()[0][:150]}", flush=True)
        print(site, {name: round(statistics.median(o[site]), 3) for name, o in out.items() if o[site]}, flush=True)
    for name, row in out.items():
        del row["subject"]
        row["peak"] = peak_of(folder, name)
        print(f"{name}: peak memory {row['peak']:.0f} MB", flush=True)
    (folder / "peers.json").write_text(json.dumps({"cells": chosen, "libraries": out}))


def compare(folder: Path) -> None:
    """Print the table: CPU seconds a cell, times the plain loop, how far its numbers are from ours."""
    ours, peers = (json.loads((folder / f"{name}.json").read_text()) for name in ("ours", "peers"))
    for site in ("residual", "heads"):
        values, some = torch.tensor(ours[site]["values"]), peers["cells"][site]
        mine = torch.stack([values[:, layer, column] for layer, column in some])
        count = values.shape[1] * values.shape[2]
        plain = statistics.median(peers["libraries"]["plain"][site])
        for name, row in peers["libraries"].items():
            if row[site]:
                gap = float((torch.tensor(row["values"][site]) - mine).abs().max())
                cost = statistics.median(row[site])
                times = f"{cost / plain:5.2f} x plain  {cost * count / ours[site]['seconds']:5.1f} x our sweep"
                print(f"{site:9} {name:17} {cost:.3f} s a cell  {times}  differs by {gap:.1e}")
        whole = f"{ours[site]['seconds']:.2f} s for all {count} cells, screened {ours[site]['screened']:.2f} s"
        print(f"{site:9} {'nullius':17} {whole}; {ours[site]['screen']}")
    peaks = {**{name: row["peak"] for name, row in peers["libraries"].items()}, "nullius": ours["peak"]}
    print("peak memory, MB: ", ", ".join(f"{name} {peak:.0f}" for name, peak in peaks.items()))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["prepare", "run", "compare", "memory"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("-m", "--model", default="smollm2-135m")
    parser.add_argument("--library", default="nullius", help="of memory: which one")
    parser.add_argument("--cells", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.what == "prepare":
        prepare(arguments.folder, arguments.model)
    elif arguments.what == "run":
        run(arguments.folder, arguments.cells, arguments.rounds)
    elif arguments.what == "memory":
        memory(arguments.folder, arguments.library)
    else:
        compare(arguments.folder)
