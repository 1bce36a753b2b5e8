"""Search over all papers: words (BM25), meaning (sentence vectors), both together. `engine.search` is the one function that all interfaces call."""
