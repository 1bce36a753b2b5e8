"""Twins: two contexts crossed with two outputs, the smallest design that tells the use of an input from a preference among outputs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Twins:
    """Two contexts and two outputs; outputs[i] is right after contexts[i].

    A subject that uses its input prefers outputs[0] more strongly after contexts[0] than after contexts[1]; one that only has a taste
    prefers the same output after both. By convention index 0 is the probable one, where probability differs.

    premise: what stands before an output when there is no task (the last words of the contexts), for the outputs' own probability.
    group: what several twins share (a sentence, a country): they are resampled together.
    """

    contexts: tuple[str, str]
    outputs: tuple[str, str]
    premise: str
    group: str
