"""Complete records of probes, made by hand, of the shape that their specs say."""

import numpy as np

from tf_lrtraj.records import ArrayRecord
from tf_lrtraj.specs import PROBES

ABOUT = {"batch_norm": "batch", "dropout": "none"}


def record(kind, coordinates, *parts, about=ABOUT, fill=0.1, **values):
    """A record with the given optional parts; axes not given have two entries, values `fill`."""
    dims = PROBES[kind].dims_with(*parts)
    axes = {axis: np.arange(2) for names in dims.values() for axis in names}
    made = ArrayRecord.empty(kind, {**axes, **coordinates}, dims, about)
    for name, value in values.items():
        made.put(name, ..., value)
    for name, value in made.values.items():
        missing = made.missing(name)
        filling = fill.random(value.shape)[missing] if hasattr(fill, "random") else fill
        made.put(name, missing, filling)
    return made


def texts(figure):
    """All words on a figure."""
    import matplotlib.text

    figure.draw_without_rendering()
    found = [item for item in figure.findobj(matplotlib.text.Text) if item.get_visible()]
    return [item.get_text() for item in found]
