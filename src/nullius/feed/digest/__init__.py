"""The digest: who gets which papers and verdicts by mail, and when; sent exactly once."""
