"""What `benchmarks/faults.py` kills: a server, a worker, an importer, a sender of digests; and what must hold after each kill."""
