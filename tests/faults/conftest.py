"""What tests here share (`toy`), and tools/torturing, can be imported."""

import pathlib
import sys

HERE = pathlib.Path(__file__).resolve()
sys.path[:0] = [str(HERE.parent), str(HERE.parents[2] / "tools")]
