"""Which task of a reproduction leaves which records, on which seeds, over which axes."""

from __future__ import annotations

# Task → entry of the configuration with its number of seeds; a task that is not named has one.
_OF_ALL = (
    *("base", "levels", "averages", "equivalent", "lower_rates", "many_points", "decays"),
    *("sweep", "budget", "rates", "displacement", "shell"),
)
_PROBING = ("line", "side_trip", "basin", "gradients", "one_step_lines", "width", "ensemble")
SEEDS_OF: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(_OF_ALL, ("seeds",)),
    **dict.fromkeys((*_PROBING, "one_step"), ("probe_seeds",)),
    "pairs": ("pairs", "seeds"),
    "speed": ("speed", "seeds"),
}
# Task that leaves probe records → patterns of their names.
PROBES_OF = {
    "line": ("line-*",),
    "side_trip": ("side_trip-*",),
    "basin": ("basin",),
    "gradients": ("gradients-*",),
    "one_step_lines": ("one_step-*",),
    "width": ("width", "sgd_to_swa"),
    "ensemble": ("ensemble",),
}
# Kind of probe record → axes of the values that claims read.
AXES: dict[str, dict[str, tuple[str, ...]]] = {
    "line": {
        "train": ("rate", "batch"),
        "held_out_each": ("rate", "batch", "held"),
        "others_each": ("rate", "batch", "other"),
        "fit_error": ("degree", "window", "batch"),
        "mean_best_rate": ("curve",),
        "mean_best_rate_se": ("curve",),
        "mean_gain": ("curve",),
        "mean_gain_se": ("curve",),
    },
    "side_trip": {
        "train_loss": ("trip", "step"),
        "held_out_loss": ("trip", "step", "held_out"),
        "others_loss": ("trip", "step", "others"),
    },
    "basin": {
        "loss": ("pair", "layer", "position", "batch"),
        "held_out_loss": ("pair", "layer", "position", "held_out"),
        "held_out_accuracy": ("pair", "layer", "position", "held_out"),
    },
    "width": {"held_out_accuracy": ("point", "ray", "distance", "held_out")},
    "gradients": {
        name: ("layer",)
        for what in ("share", "pair_cosine", "rest_cosine")
        for name in (what, f"{what}_se")
    },
    "ensemble": {
        "mean_pair_difference": ("scale",),
        "mean_ensemble_difference": ("scale",),
        "pair_difference_exponent": (),
        "pair_difference_exponent_se": (),
        "ensemble_difference_exponent": (),
        "ensemble_difference_exponent_se": (),
    },
}
