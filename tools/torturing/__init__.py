"""Parts of `tools/torture.py`."""
