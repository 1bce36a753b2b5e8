"""The training program, from top to bottom: prepare, build, go on or begin, step, look, save.

One process or many (`torchrun`), new models or finetuning: the same code. A run is its folder: the same configuration again goes on from the
newest checkpoint there, and from then on every loss is what it would have been (bit-equal on the CPU with as many processes), because all
that moves is a function of the step (rate, order of the data, seed of dropout) or stands in the checkpoint (weights, moments, windows taken).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException
from torch.distributed.tensor import DTensor
from transformers.utils import logging

from nullius.errors import NulliusError, UsageError
from nullius.training import building, checkpoints, evaluation, measurement, processes, trial, vocabularies
from nullius.training.config import Config, differences, plain
from nullius.training.mixing import Mixture
from nullius.training.optimisers import Optimisers, outside_layers
from nullius.training.packed import Packed, pack
from nullius.training.parts import Held, only
from nullius.training.passes import Passes, recordable
from nullius.training.processes import Processes
from nullius.training.schedules import factor
from nullius.training.stopping import OutOfMemory, Stopped, in_one_line, signals


class Listener(Protocol):
    """Receives what happens; the command line draws it."""

    def preparing(self, label: str, done: int, total: int | None) -> None: ...

    def step(self, done: int, total: int, facts: dict[str, float]) -> None: ...

    def note(self, text: str) -> None: ...


class Silent:
    """A listener that shows nothing."""

    def preparing(self, label: str, done: int, total: int | None) -> None:
        pass

    def step(self, done: int, total: int, facts: dict[str, float]) -> None:
        pass

    def note(self, text: str) -> None:
        pass


@dataclass(frozen=True)
class Result:
    """Where the last checkpoint lies, after how many steps, with what loss (nats per token) on the last batch and on held-out text."""

    checkpoint: Path
    steps: int
    loss: float
    held_out: float | None


def train(config: Config, listener: Listener | None = None, device: str | None = None) -> Result:
    """Run a configuration to its end, from its newest checkpoint if it has one.

    Raises UsageError for what the configuration asks in vain, Stopped after a signal, SaveError when a checkpoint cannot be written, OutOfMemory.
    """
    with processes.start(device) as here, signals() as asked_to_stop, ExitStack() as held_open, in_one_line(here, config):
        listener = listener if listener is not None and here.first else Silent()
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        out = Path(config.out)
        tokenizer, mixture, held_out = here.one_by_one(lambda: _prepare(config, out, here, held_open, listener))
        trainee = building.build(config, tokenizer)
        if config.model.new:
            trial.run(trainee.hf, config.sequence)
        done, state = _go_on(config, out, trainee, mixture, listener)
        trainee.body.to(here.device)
        if config.precision == "float8":
            building.in_float8(trainee, here.device)
        if config.recompute:
            enable = (
                getattr(trainee.hf, "activation_checkpointing_enable", None) or trainee.hf.gradient_checkpointing_enable
            )  # the older name
            enable({"use_reentrant": False})
        flops = measurement.flops_per_token(trainee.hf, config.sequence)
        outside = outside_layers(trainee.hf)
        if config.compile:
            for layer in processes.layers(trainee.hf):  # one piece of code serves all layers, so this takes seconds and not minutes
                layer.compile()
            if here.world == 1:  # whose gradient is made without waiting for the GPU then
                trainee.hf.get_input_embeddings().compile()
        if here.world > 1:
            here.shard(trainee.body)
        with only(trainee.body, trainee.masks) as held:
            optimisers = Optimisers(held.named, config.optimiser, outside, fused=here.device.type == "cuda")
            optimisers.restore(state.get("optimiser", {}))
            run = _Run(config, here, listener, trainee, tokenizer, mixture, held_out, held, optimisers, out, flops)
            asked_to_stop.patient = True
            try:
                return run.steps(done, asked_to_stop)
            except (Exception, KeyboardInterrupt) as error:
                saved = checkpoints.latest(out)
                words = f"{saved} is the last that was saved" if saved else "nothing had been saved yet"
                if isinstance(error, KeyboardInterrupt):
                    raise Stopped.by("a second Ctrl-C", f"in the middle of a step; {words}") from None
                if isinstance(error, NulliusError) or not asked_to_stop:
                    raise
                # a signal to the whole process group: it may end a kernel's compiler, or another process that this one waits for
                raise Stopped.by(asked_to_stop[0], f"in the middle of a step ({type(error).__name__}); {words}") from None


def _prepare(config: Config, out: Path, here: Processes, held_open: ExitStack, listener: Listener) -> tuple[Any, Mixture, list[Packed]]:
    """The tokenizer, the training data and the held-out data; whatever takes long is made once and found again."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise NulliusError(f"cannot create {out}: {error.strerror}; choose another `out`") from None
    if here.first:
        held_open.enter_context(checkpoints.alone(out))
    if config.tokenizer.vocabulary:
        folder = out / "tokenizer"
        vocabularies.make(folder, config.data.train, config.tokenizer.vocabulary, checkpoints.latest(out) is not None, listener.preparing)
        tokenizer = vocabularies.load(str(folder))
    else:
        tokenizer = vocabularies.load(config.tokenizer.load or config.model.load)
    separator = vocabularies.separator(tokenizer)
    train, held_out = (
        [pack(s, tokenizer, separator, listener.preparing) for s in side] for side in (config.data.train, config.data.evaluate)
    )
    return tokenizer, Mixture(train, [source.weight for source in config.data.train], config.sequence, config.seed), held_out


def _go_on(config: Config, out: Path, trainee: building.Trainee, mixture: Mixture, listener: Listener) -> tuple[int, dict[str, Any]]:
    """Take up the newest checkpoint: its weights, its place in the data, its optimiser. Returns (steps made, state)."""
    found = checkpoints.latest(out)
    if found is None:
        return 0, {}
    state = checkpoints.read_state(found)
    differ = differences(state["config"], config)
    if differ:
        raise UsageError(f"{found} was made with another configuration ({'; '.join(differ[:3])}); choose another `out`, or remove this one")
    if state["data"] != [each.key for each in mixture.sets]:
        raise UsageError(f"{found} was made with other training text, or another tokenizer; choose another `out`, or remove this one")
    building.restore(trainee, found, state)
    mixture.taken = list(state["taken"])
    listener.note(f"going on from {found.name}")
    return int(state["step"]), state


@dataclass
class _Run:
    """Everything a step needs."""

    config: Config
    here: Processes
    listener: Listener
    trainee: building.Trainee
    tokenizer: Any
    mixture: Mixture
    held_out: list[Packed]
    held: Held
    optimisers: Optimisers
    out: Path
    flops: float

    def steps(self, done: int, asked_to_stop: list[str]) -> Result:
        """Make all steps that are left."""
        config, here, start = self.config, self.here, done
        share, rest = divmod(config.batch, here.world)
        self.micro = config.micro or share
        if rest or share % self.micro:
            raise UsageError(
                f"a batch of {config.batch} cannot be cut into parts of {self.micro} sequences in each of {here.world} processes"
            )
        head = torch.compile(evaluation.cross_entropy) if config.compile else evaluation.cross_entropy
        record = config.compile and here.world == 1 and recordable(self.trainee.body)
        passes = partial(evaluation.loss_of, self.trainee.body, head=head), self.held.parameters, here.device, self._autocast
        self.passes = Passes(*passes, record=record, note=self.listener.note)
        self.metrics = measurement.Metrics(self.out / "metrics.jsonl", done) if here.first else None
        self.watch = measurement.Stopwatch(here.device)
        self.waiting: list[tuple[int, Tensor, Tensor, float]] = []
        self.peak = measurement.peak_tflops(here.device, config.peak_tflops) * 1e12 * here.world
        rows = evaluation.held_out_rows(self.held_out, config.sequence, config.evaluate.sequences, here) if self.held_out else None
        self.last, held_out_loss, saved = math.nan, None, checkpoints.latest(self.out) if done else None
        self.trainee.body.train()
        self.watch.start()
        while done < config.steps:
            self._step(done)
            done += 1
            last = done == config.steps
            if done % config.log == 0 or done == start + 1 or last:
                self._report(done)
            stop = here.total(float(bool(asked_to_stop))) > 0
            look, keep = done % config.evaluate.every == 0 or last, done % config.save.every == 0 or last or stop
            if look or keep:
                self._report(done)
            if look and rows is not None:
                with self._looking():
                    held_out_loss = evaluation.held_out_loss(self.trainee.body, rows, self.micro, here)
                self._write({"step": done, "held_out": held_out_loss}, f"step {done}: held-out loss {held_out_loss:.4f}")
            if look:
                self._samples(done)
            if keep:
                saved = self._save(done)
            if look or keep:
                self.watch.start()
            if stop and not last:
                name = asked_to_stop[0] if asked_to_stop else "a signal to another process"
                raise Stopped.by(name, f"after step {done} of {config.steps}; saved {saved}")
        if start >= config.steps:
            self.listener.note(f"all {config.steps} steps had been made before")
        return Result(saved or self.out, done, self.last, held_out_loss)

    def _step(self, step: int) -> None:
        """One step of the optimiser: gradients of the batch's parts add up, the norm is clipped, what is held stays."""
        config, here = self.config, self.here
        chosen = self.mixture.next(config.batch)[here.rank :: here.world]
        parts = self.mixture.rows(chosen).split(self.micro)
        torch.manual_seed(((config.seed * 1_000_003 + step) * 1009 + here.rank) % 2**63)  # dropout, where there is any
        try:
            loss = self.passes(parts)
        except TorchDynamoException as error:
            why = " ".join(str(error).split())[:200]
            raise NulliusError(f"torch.compile does not manage this model here ({why}); set compile: false") from None
        except NulliusError as error:  # of a layer: gates of weights that are no numbers are no gates
            if all(bool(parameter.isfinite().all()) for parameter in self.held.parameters):
                raise
            raise self._diverged(f"step {step + 1} has weights that are no numbers ({error})") from None
        self.held.mask_gradients()
        norm: Any = nn.utils.clip_grad_norm_(self.held.parameters, config.optimiser.clip or math.inf)
        rate = factor(config.schedule, step, config.steps)
        self.optimisers.step(rate)
        self.held.restore()
        self.waiting.append((step + 1, loss, norm.full_tensor() if isinstance(norm, DTensor) else norm, config.optimiser.rate * rate))
        self.watch.tokens += config.batch * config.sequence

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.here.device.type, torch.bfloat16, enabled=self.config.precision != "fp32")

    @contextmanager
    def _looking(self) -> Iterator[None]:
        """Passes that are not trained on come in many shapes: nothing is compiled for them."""
        with self._autocast(), torch.compiler.set_stance("force_eager"):
            yield

    def _report(self, done: int) -> None:
        """Write what the steps since the last report gave. Raises NulliusError when a loss is no number."""
        if not self.waiting:
            return
        losses = self.here.mean(torch.stack([loss for _, loss, _, _ in self.waiting])).tolist()
        speed = self.watch.rate()
        for (step, _, norm, rate), loss in zip(self.waiting, losses, strict=True):
            record = {"step": step, "loss": loss, "norm": float(norm), "rate": rate}
            if not math.isfinite(loss):
                raise self._diverged(f"the loss of step {step} is {loss}")
            if step == done:
                record |= {"tokens": done * self.config.batch * self.config.sequence, "tokens_per_second": speed}
                record |= {"utilisation": speed * self.flops / self.peak} if self.peak else {}
                record |= {"peak_memory": measurement.peak_memory(self.here.device)}
                self.listener.step(done, self.config.steps, record)
            if self.metrics is not None:
                self.metrics.write(record)
        self.last, self.waiting = losses[-1], []

    def _diverged(self, what: str) -> NulliusError:
        before = checkpoints.latest(self.out)
        place = f"the newest checkpoint is {before}" if before else "there is no checkpoint yet"
        return NulliusError(f"{what}; {place}; lower optimiser.rate, or lengthen schedule.warmup")

    def _samples(self, done: int) -> None:
        how = self.config.evaluate
        for beginning in how.samples:
            separator = vocabularies.separator(self.tokenizer)
            with self._looking():
                text = evaluation.continuation(self.trainee.body, self.tokenizer, beginning, separator, how.sample_tokens, self.here.device)
            self._write({"step": done, "beginning": beginning, "continuation": text}, f"step {done}: {beginning}|{text}")

    def _write(self, record: dict[str, Any], words: str) -> None:
        if self.metrics is not None:
            self.metrics.write(record)
        self.listener.note(words)

    def _save(self, done: int) -> Path:
        """Gather everything in the first process and write it there; when that fails all processes hear of it. Raises NulliusError for weights
        that are no numbers: those of the checkpoints before must not make room for them."""
        weights, adapters = building.weights_to_save(self.trainee)
        broken = next((name for name, value in weights.items() if not bool(value.isfinite().all())), None)
        if broken is not None:
            raise self._diverged(f"after step {done} the weight {broken} holds what is no number, so that it is not saved")
        state = {"optimiser": self.optimisers.state(), **({"adapters": adapters} if adapters else {})}
        data = [each.key for each in self.mixture.sets]
        facts = {"step": done, "taken": self.mixture.taken, "data": data, "config": plain(self.config), "processes": self.here.world}
        folder = self.out / f"{checkpoints.PREFIX}{done:06d}"

        def write() -> Path:
            if not self.here.first:
                return folder
            return checkpoints.save(self.out, done, self.trainee.hf, self.tokenizer, weights, {**facts, **state}, self.config.save.keep)

        return self.here.one_by_one(write)


__all__ = ["Listener", "OutOfMemory", "Result", "Silent", "Stopped", "train"]
