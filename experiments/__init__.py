"""One experiment per paper or task, run as `python -m experiments.NAME`."""
