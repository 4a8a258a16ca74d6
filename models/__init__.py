"""Pre-training, adapters and export to model packages: the only room that knows torch."""
