"""Probes of a run: their points, batches, times and records."""
