"""Which cells of a sweep are run over one suffix.

A cell needs the positions from its patch on and no others. Yet each suffix of its own costs a call of every layer, in whose time a GPU could run
thousands of positions and a CPU a dozen. So cells whose patches lie near one another are run from the earliest of them on, wherever that costs
less than the calls that it saves: up to the patch their rows are the base's own, and give what they gave there.
"""

from __future__ import annotations

from collections.abc import Iterable

from nullius.models.language_model import LanguageModel

CALL = {"cpu": 1e8, "cuda": 4e10}  # operations that a device could do while a layer is called once


def shared(model: LanguageModel, length: int, rows: int, cells: Iterable[tuple[int, int]]) -> dict[int, int]:
    """For each first position of `cells`, given as (first position, layer), where its cells are run from: at or before it.

    length: positions of a text; rows: texts that each cell is run on. The cheapest cut of the positions into neighbouring groups.
    """
    layers = model.anatomy.n_layers
    inside = sum(parameter.numel() for parameter in model.anatomy.layers[0].parameters())
    call = CALL.get(model.device.type, CALL["cpu"]) / (2 * inside)  # in positions
    lowest: dict[int, int] = {}
    height: dict[int, int] = {}  # layers that the rows of a start go through, all together
    for start, layer in cells:
        lowest[start] = min(layer, lowest.get(start, layers))
        height[start] = height.get(start, 0) + rows * (layers - layer)
    starts = sorted(lowest)
    best: list[tuple[float, int]] = [(0.0, 0)]  # by number of starts dealt with: what it costs, and where the last group begins
    for end in range(1, len(starts) + 1):
        bottom, above, least = layers, 0, (float("inf"), 0)
        for begin in range(end - 1, -1, -1):
            bottom, above = min(bottom, lowest[starts[begin]]), above + height[starts[begin]]
            cost = best[begin][0] + call * (layers - bottom) + above * (length - starts[begin])
            least = min(least, (cost, begin))
        best.append(least)
    out: dict[int, int] = {}
    end = len(starts)
    while end:
        begin = best[end][1]
        out |= dict.fromkeys(starts[begin:end], starts[begin])
        end = begin
    return out
