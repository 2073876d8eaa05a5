"""Generated inputs for every entry point, and a judge of what becomes of each: tools/fuzz.py."""
