"""Search over all papers: words (BM25), meaning (sentence vectors), both together. `engine.search` is the one function that all interfaces call."""

from nullius.models.minilm import forward as minilm
from nullius.models.minilm import weights

__all__ = ["minilm", "weights"]
