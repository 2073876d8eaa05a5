"""Experiments: one module each, from a configuration to records."""
