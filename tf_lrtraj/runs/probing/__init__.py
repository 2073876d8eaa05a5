"""Probes of a run: which points, which batches, when, and where the records go."""
