"""Figures of what probes measured, from their records alone."""
