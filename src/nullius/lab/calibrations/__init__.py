"""Calibration cases, one module per family of instruments (docs/calibration.md). Every module here is loaded by `nullius.lab.calibration`."""
