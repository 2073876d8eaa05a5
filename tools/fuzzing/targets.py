"""All targets; those that need Keras come last, so that the others run without it."""

from __future__ import annotations

from fuzzing import configs, files, keras_side, pages, programs, values
from fuzzing.judge import Target

MODULES = (values, configs, files, pages, programs, keras_side)


def all_targets() -> list[Target]:
    """Every target, by name different from all others."""
    found = [target for module in MODULES for target in module.TARGETS]
    names = [target.name for target in found]
    assert len(names) == len(set(names)), names
    return sorted(found, key=lambda target: target.keras)


def clean_up() -> None:
    """Deletes what was built to be spoilt."""
    files.forget_templates()
