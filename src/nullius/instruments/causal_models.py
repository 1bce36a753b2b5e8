"""High-level causal models: a stated program of variables, run with and without interventions (Geiger et al. 2021).

    sum3 = CausalModel(
        inputs=("a", "b", "c"),
        variables=(Variable("ab", ("a", "b"), lambda a, b: a + b), Variable("out", ("ab", "c"), lambda ab, c: ab + c)),
        output="out",
    )
    sum3.interchange({"a": 1, "b": 2, "c": 3}, {"a": 5, "b": 5, "c": 0}, ["ab"])["out"]  # 10 + 3

What a network should say if its state at some place *is* a variable, when that state comes from another text, is what the program says when the
variable does.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from nullius.errors import UsageError, nearest


@dataclass(frozen=True)
class Variable:
    """A variable: its name, the names of those (or of inputs) that it is computed from, and how."""

    name: str
    parents: tuple[str, ...]
    function: Callable[..., Any]


@dataclass(frozen=True)
class CausalModel:
    """inputs: their names. variables: in an order in which each comes after its parents. output: the variable that the model says.

    Raises UsageError for a name used twice, a parent that does not come before its child, or an output that is no variable.
    """

    inputs: tuple[str, ...]
    variables: tuple[Variable, ...]
    output: str

    def __post_init__(self) -> None:
        known = list(self.inputs)
        for variable in self.variables:
            missing = [parent for parent in variable.parents if parent not in known]
            if missing:
                raise UsageError(
                    f"variable '{variable.name}' is computed from '{missing[0]}', which is neither an input nor a variable before it"
                )
            known.append(variable.name)
        if len(set(known)) < len(known):
            raise UsageError(f"a name stands twice among inputs and variables: {', '.join(known)}")
        if self.output not in known:
            raise UsageError(f"the output '{self.output}' is no variable{nearest(self.output, known)}")

    def run(self, inputs: Mapping[str, Any], set_to: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return the value of every input and variable. set_to: values that some of them are given whatever their parents say.

        Raises UsageError for an input that is missing, or a name that does not exist.
        """
        fixed = dict(set_to or {})
        names = {*self.inputs, *(variable.name for variable in self.variables)}
        for name in {*inputs, *fixed} - names:
            raise UsageError(f"the causal model has no '{name}'{nearest(name, names)}; it has {', '.join(sorted(names))}")
        missing = [name for name in self.inputs if name not in inputs and name not in fixed]
        if missing:
            raise UsageError(f"the causal model needs a value of its input '{missing[0]}'")
        values = {name: fixed[name] if name in fixed else inputs[name] for name in self.inputs}
        for variable in self.variables:
            own = variable.name in fixed
            values[variable.name] = fixed[variable.name] if own else variable.function(*(values[parent] for parent in variable.parents))
        return values

    def interchange(self, base: Mapping[str, Any], source: Mapping[str, Any], variables: Collection[str]) -> dict[str, Any]:
        """Run on `base` with some variables as they are in the run on `source`."""
        there = self.run(source)
        return self.run(base, {name: there[name] if name in there else self._unknown(name) for name in variables})

    def _unknown(self, name: str) -> Any:
        names = {*self.inputs, *(variable.name for variable in self.variables)}
        raise UsageError(f"the causal model has no '{name}'{nearest(name, names)}; it has {', '.join(sorted(names))}")
