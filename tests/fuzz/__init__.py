"""Hostile bytes for every decoder that faces the network: `python -m tests.fuzz --help`."""
