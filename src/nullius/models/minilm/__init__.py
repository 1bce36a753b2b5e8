"""all-MiniLM-L6-v2, the model of sentence vectors: `weights` fetches it, `forward` runs it in numpy, `on_device` in torch.

Search by meaning stands on it; a study may take it as a judge of what two texts have in common:

    model = forward.load(weights.fetch_weights())
    one, other = model.encode(["a text", "another"])  # unit vectors: their product is the cosine
"""
