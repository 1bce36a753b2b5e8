"""Planted transformers: real transformers models whose weights are written by a stated program, so that it is known what carries what.

Each module holds one: `build()` makes the subject, the truth stands beside it as data (heads, layers, positions), and generators make its texts. They
are for calibrating instruments (`nullius.lab.calibrations`) and for tests; none is trained, none is loaded.
"""
