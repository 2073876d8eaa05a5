"""Figures of probes, from their records alone."""
