"""Measuring from outside: scores of continuations, forced choices, answers."""
