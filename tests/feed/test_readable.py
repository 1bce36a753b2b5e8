"""Formulas in titles and abstracts: what is shown says what was written."""

from __future__ import annotations

import pytest

from nullius.feed.readable import readable


@pytest.mark.parametrize(
    ("tex", "shown"),
    [
        (r"$\sum_{i=1}^n \alpha_i x_i^2 \geq \beta$", "∑ᵢ₌₁ⁿ αᵢ xᵢ² ≥ β"),  # a raised letter is no part of the macro before it
        (r"$\mathbb{E}[\|W\|_2^2] \le \frac{1}{n}\sum_i \sigma_i^2$", "𝔼[‖W‖₂²] ≤ 1/n∑ᵢ σᵢ²"),
        (r"$O(n \log n)$ and $\alpha > 1/2$", "O(n log n) and α > 1/2"),
        (r"$$e^{-\beta t}$$ and $x^{a+b*c}$", "e^(-β t) and x^(a+b*c)"),  # without brackets it would be another number
        (r"costs \$5, from $5 to $7 for $n$ runs", "costs $5, from $5 to $7 for n runs"),
        (r"$k \ne 0$, $f\colon A\to B$, $\left(x\right)$, $\tfrac12$", "k ≠ 0, f: A → B, (x), 1/2"),
        (r"a \nosuchmacro here", r"a \nosuchmacro here"),  # stays as it is
        (r"$u_*$ and $p<0.05$", "u_* and p<0.05"),
    ],
)
def test_formulas(tex: str, shown: str) -> None:
    assert readable(tex) == shown
