"""Settings of the documentation site, which `tools/site.sh` builds; see docs/index.md.

The source folder is the root of the repository, so that pages can link to the records in `results/`
and `benchmarks/` by the paths that they have in the repository.
"""

import pathlib
import re
import subprocess
import sys

from docutils import nodes
from docutils.parsers.rst import Directive
from latex2mathml.converter import convert

ROOT = pathlib.Path(__file__).parents[1]

project = "tf_lrtraj"
author = "the authors of tf_lrtraj"
project_copyright = "the authors of tf_lrtraj; Apache 2.0"

root_doc = "docs/index"
include_patterns = [
    "docs/**",
    "results/*/README.md",
    "benchmarks/README.md",
    "benchmarks/results/averaging.md",
    "BUILD_NOTES.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
]
exclude_patterns = [".*", "tests", "tools", "runs", "build", "tf_lrtraj", "docs/README.md"]

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]

# Pages ------------------------------------------------------------------------------------------

myst_enable_extensions = ["amsmath", "dollarmath"]
myst_heading_anchors = 4
# Dollars beside digits are prices or shell variables in no page, but indices in many formulas.
myst_dmath_allow_digits = True
nb_execution_mode = "force"
nb_execution_in_temp = True
nb_execution_timeout = 120
nb_execution_raise_on_error = True
nb_merge_streams = True
nb_output_stderr = "remove"  # what TensorFlow says at its start

# Reference --------------------------------------------------------------------------------------

# `name` in a docstring is a link if it is a name of the package, and code otherwise.
default_role = "py:obj"
nitpick_ignore_regex = [(r"py:.*", r"(?s).*")]
suppress_warnings = ["ref.python"]  # such a name is the same word in two classes
autodoc_default_options = {"members": True}
autodoc_inherit_docstrings = False  # those of Keras are in Keras' own reference
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the descriptions of arguments say more
autodoc_class_signature = "mixed"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
python_maximum_signature_line_length = 80
toc_object_entries_show_parents = "hide"

# Look -------------------------------------------------------------------------------------------

html_math_renderer = "mathml"
html_theme = "furo"
html_title = "tf_lrtraj"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_copy_source = False
pygments_style = "friendly"
html_theme_options = {"navigation_with_keys": True}


class ProgramHelp(Directive):
    """Inserts what `--help` of a program prints: `{program-help} train`."""

    required_arguments = 1

    def run(self):
        module = f"tf_lrtraj.bin.{self.arguments[0]}"
        done = subprocess.run(
            [sys.executable, "-m", module, "--help"], capture_output=True, text=True, cwd=ROOT
        )
        # absl names the file that defines the flags, by its path on this machine.
        text = re.sub(r"(?m)^/.*\.py:\n", "", done.stdout).strip()
        if not text.endswith("flags."):
            raise self.error(f"{module} --help ended with {done.returncode}: {done.stderr}")
        return [nodes.literal_block(text, text, language="text")]


def visit_math(translator, node):
    """Writes a formula as MathML, which browsers show without a script from another server."""
    translator.body.append(convert(node.astext()))
    raise nodes.SkipNode


def visit_displayed_math(translator, node):
    formula = convert(node.astext(), display="block")
    translator.body.append(f'<div class="formula">{formula}</div>')
    raise nodes.SkipNode


# Code, or a character that is markup in reStructuredText.
SPECIAL = re.compile(r"(`[^`]*`)|([|*]|_(?=\W))")


def list_values(app, what, name, obj, options, lines):
    """Makes lists of the sections "Values" and "Coordinates" of probes, for reStructuredText.

    An entry such as `gain [curve, batch]: of each batch's curve` begins with four spaces; the lines
    that continue it begin with more.
    """
    made: list[str] = []
    inside = False
    for line in lines:
        if re.fullmatch(r"(Values|Coordinates)\b.*:", line):
            inside = True
            made += [f"**{line.removesuffix(':')}**", ""]
        elif inside and line.startswith("    "):
            text = re.sub(SPECIAL, lambda found: found[1] or f"\\{found[2]}", line.strip())
            if line[4] == " ":
                made.append(f"  {text}")
                continue
            named = re.match(r"([^:;.`]+)(: .*)", text)
            made.append("* " + (f"**{named[1]}**{named[2]}" if named else text))
        else:
            if inside and line:
                inside = False
                made.append("")
            made.append(line)
    lines[:] = made


def setup(app):
    app.connect("autodoc-process-docstring", list_values, priority=400)  # before napoleon
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_displayed_math, None))
    app.add_directive("program-help", ProgramHelp)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
