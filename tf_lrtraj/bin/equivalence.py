"""Converts averages to learning-rate schedules and back.

    python -m tf_lrtraj.bin.equivalence --kernel=KERNEL --base=RATE --num_steps=T

(or: lrtraj-equivalence …).  A weighted average of the iterates of one run equals the last
iterate of another run on the same batches with other learning rates.  This prints the rates:

    lrtraj-equivalence --kernel="Exponential(decay=0.99)" --base=0.1 --num_steps=1000
    lrtraj-equivalence --kernel="Uniform(start=800)" --base=cosine --peak=0.4 --num_steps=1000
    lrtraj-equivalence --kernel="TwoPoint(gap=50)" --base=log.csv:rate --csv=out.csv --figure=o.png

The inverse: the weights for snapshots of the base run whose average emulates a decay:

    lrtraj-equivalence --emulate=cosine --base=0.1 --num_steps=1000 --every=100
    lrtraj-equivalence --emulate=one_minus_sqrt --decay_steps=200 --num_steps=1000 --every=20

The equality is exact at one curvature (--curvature; 0 means frozen gradients).  For several
curvatures, --spectrum prints how far a schedule is from the average, and finds the best one:

    lrtraj-equivalence --kernel="Exponential(0.99)" --base=0.5 --num_steps=1000 --spectrum=1e-3:1:20

KERNEL is Exponential(decay, start=0), HalfLife(ratio, longest=None, start=0), BEMA(start=0),
Uniform(start=0, every=1), PowerFunction(exponent, start=0), Window(length, every=1), TwoPoint(gap)
or Custom(weights).  PowerFunction(-0.5, start) is the average of a 1-√ decay from `start` to the
end, and exponents 0 and 1 those of a linear and of a 1-x² decay.  RATE is a number; constant,
linear, cosine or one_minus_sqrt (from --peak to 0 over the run); a formula such as
"Cosine(start=0.4, steps=900)"; or FILE.csv[:COLUMN], one row per update or with a sorted column
`step`.  Exit code 2: an error in the input.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import flags

from tf_lrtraj import kernels
from tf_lrtraj.bin import common, outputs, tables


def main(argv: Sequence[str]) -> int:
    """Returns the exit code."""
    options = flags.FLAGS
    if bool(options.kernel) == bool(options.emulate):
        return _fail("either --kernel=… or --emulate=… is needed. Try --help")
    try:
        _check_outputs(options)
        return _from_kernel(options) if options.kernel else _from_schedule(options)
    except (ValueError, ImportError) as error:
        return _fail(str(error))
    except OSError as error:
        return _fail(f"{error.filename}: {error.strerror}")


def _fail(message: str) -> int:
    print(f"lrtraj-equivalence: error: {message}", file=sys.stderr)
    return common.USAGE


def _check_outputs(options: Any) -> None:
    """Fails early where a file could not be written."""
    if options.figure:
        tables.check_figure(options.figure)
    for name in ("csv", "figure"):
        path = getattr(options, name)
        if path:
            outputs.check_place(f"--{name}", path)


def _from_kernel(options: Any) -> int:
    from tf_lrtraj import theory  # slow to import

    kernel = kernels.KERNELS.from_text(options.kernel)
    base = _rates(options.base, options)
    tables.check_reach(kernel, base.size)
    weights = kernel.weights(base.size)
    found = theory.equivalent_schedule(
        weights, base, options.curvature, options.momentum, convention=options.convention
    )
    back = theory.weights_from_schedule(
        found.schedule, base, options.curvature, options.momentum, convention=options.convention
    )
    scales = theory.time_scales(weights)

    print(f"average    {kernel}")
    print(
        f"           mean age {scales.mean_age:.6g} updates, as noisy as {scales.count:.6g} "
        "independent iterates"
    )
    print(f"run        {base.size} updates, {_setting(options)}")
    print(f"condition  {found.condition:.3g} (1: nothing cancels)")
    if found.negative_steps.size:
        print(f"note       the rate is negative at {found.negative_steps.size} steps")
    moving = base > 0.0
    worst = np.max(np.abs(back - weights)) if moving.all() else np.nan
    print(
        f"way back   the schedule gives the weights back to {worst:.1e}\n" if moving.all() else ""
    )
    columns = _every_step(base, found.schedule, weights)
    losses = None
    if options.spectrum:
        columns["best"], losses = _on_spectrum(options, weights, base, found.schedule)
    tables.print_table(columns, options.rows)
    _write(options, columns, columns, f"{kernel}, {_setting(options)}", losses)
    return common.OK


def _write(
    options: Any,
    table: dict[str, np.ndarray],
    drawn: dict[str, np.ndarray],
    title: str,
    losses: dict[str, np.ndarray] | None = None,
) -> None:
    """Writes the files asked for, and says so."""
    if options.csv:
        tables.write_csv(options.csv, table)
        print(f"\nwritten: {options.csv}")
        if losses is not None:
            path = tables.beside(options.csv, "_spectrum")
            tables.write_csv(path, losses)
            print(f"written: {path}")
    if options.figure:
        tables.write_figure(options.figure, drawn, title)
        print(f"written: {options.figure}")


def _on_spectrum(
    options: Any, weights: np.ndarray, base: np.ndarray, schedule: np.ndarray
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Prints the mismatch per curvature; returns the best schedule [T+1] and the table."""
    from tf_lrtraj import theory  # slow to import

    if options.momentum:
        raise ValueError("--spectrum fits schedules without momentum. Received: --momentum")
    curvatures = tables.parse_spectrum(options.spectrum)
    mismatch = theory.schedule_mismatch(schedule, weights, base, curvatures)
    averaged = mismatch.average_losses(options.initial, options.noise)
    model = theory.QuadraticModel(curvatures, np.full(curvatures.size, options.noise))
    fit = theory.fit_schedule(
        model,
        float(averaged.sum()),
        base,
        np.full(curvatures.size, options.initial),
        shape=options.fit,
        weights=weights,
        max_iterations=50,
    )
    best = theory.schedule_mismatch(fit.schedule, weights, base, curvatures)
    table = {
        "curvature": curvatures,
        "bias, average": mismatch.average_bias,
        "bias, schedule": mismatch.schedule_bias,
        "variance, average": mismatch.average_variance,
        "variance, schedule": mismatch.schedule_variance,
        "loss, average": averaged,
        "loss, schedule": mismatch.schedule_losses(options.initial, options.noise),
        "loss, best": best.schedule_losses(options.initial, options.noise),
    }
    print(
        f"On {curvatures.size} curvatures, from distance {options.initial:g} with batch noise "
        f"{options.noise:g}; expected excess loss at the end:"
    )
    tables.print_table(table, options.rows)
    totals = {name: table[f"loss, {name}"].sum() for name in ("average", "schedule", "best")}
    print("in all     " + ", ".join(f"{name} {value:.6g}" for name, value in totals.items()))
    print(
        f"best       {options.fit} schedule, log loss off by {fit.misfit:.3g}; of the closed forms"
    )
    name = min(fit.closed_forms, key=lambda key: fit.closed_forms[key])
    print(f"           '{name}' comes closest, off by {fit.closed_forms[name]:.3g}\n")
    return np.append(fit.schedule, np.nan), table


def _from_schedule(options: Any) -> int:
    from tf_lrtraj import theory  # slow to import

    if options.spectrum:
        raise ValueError("--spectrum goes with --kernel. Received: --emulate")
    base = _rates(options.base, options)
    steps = base.size
    try:
        schedule = tables.decayed_rates(options.emulate, base, options.decay_steps)
    except ValueError as error:
        raise ValueError(f"--emulate, --decay_steps: {error}") from None
    weights = theory.weights_from_schedule(
        schedule, base, options.curvature, options.momentum, convention=options.convention
    )
    kept, folded = theory.fold_onto_snapshots(weights, options.every)

    print(f"emulated   {options.emulate}, {schedule[0]:.6g} to {schedule[-1]:.6g}")
    print(f"run        {steps} updates, {_setting(options)}")
    print(f"snapshots  {kept.size}, every {options.every} updates, the last after {steps}")
    if weights.min() < -1e-12:
        print(f"note       {np.sum(weights < -1e-12)} weights are negative: the schedule rises")
    if weights[: kept[0]].any():
        print(f"note       weight before the first snapshot ({kept[0]}) is moved to it")
    print(f"sum        {folded.sum():.12g}\n")
    columns = {"snapshot": kept, "weight": folded}
    first = int(np.argmax(np.abs(folded) > 1e-15))
    tables.print_table(
        {name: values[first:] for name, values in columns.items()},
        options.rows if options.every == 1 else max(options.rows, 60),
    )
    if first:
        print(f"({first} snapshots before {kept[first]} have weight 0)")
    drawn = _every_step(base, schedule, weights)
    _write(options, columns, drawn, f"weights that emulate {options.emulate}")
    return common.OK


def _every_step(
    base: np.ndarray, schedule: np.ndarray, weights: np.ndarray
) -> dict[str, np.ndarray]:
    """Columns [T+1] of a run and its average."""
    return {
        "step": np.arange(base.size + 1),
        "base": np.append(base, np.nan),
        "schedule": np.append(schedule, np.nan),
        "weight": weights,
    }


def _rates(text: str, options: Any) -> np.ndarray:
    return tables.parse_rates(text, options.num_steps, peak=options.peak, decay=options.num_steps)


def _setting(options: Any) -> str:
    where = f"curvature {options.curvature:g}" if options.curvature else "frozen gradients"
    if options.momentum:
        where += f", momentum {options.momentum:g} ({options.convention} convention)"
    return where


def run() -> None:
    """The console script `lrtraj-equivalence`."""
    # Defined here: importing several programs must not define a flag twice.
    flags.DEFINE_string("kernel", None, 'average to convert, such as "Exponential(decay=0.99)"')
    flags.DEFINE_string("emulate", None, "schedule to convert to weights: a RATE, such as cosine")
    flags.DEFINE_string("base", "0.1", "learning rates of the averaged run: a RATE")
    flags.DEFINE_integer(
        "num_steps",
        None,
        "number of updates; not needed if --base is a CSV file",
        lower_bound=1,
        upper_bound=tables.LONGEST,
    )
    flags.DEFINE_float(
        "peak", 0.1, "first rate of --base=linear, cosine, constant or one_minus_sqrt"
    )
    flags.DEFINE_integer(
        "decay_steps",
        None,
        "updates at the end over which --emulate decays; all by default",
        lower_bound=1,
    )
    flags.DEFINE_integer("every", 1, "updates between snapshots", lower_bound=1)
    flags.DEFINE_float(
        "curvature", 0.0, "curvature at which the equality is exact; 0: frozen gradients"
    )
    flags.DEFINE_float("momentum", 0.0, "momentum of both runs")
    flags.DEFINE_enum("convention", "keras", ["keras", "pytorch"], "convention of momentum")
    flags.DEFINE_string(
        "spectrum", None, "curvatures: LOW:HIGH:COUNT (logarithmic) or FILE.csv[:COLUMN]"
    )
    flags.DEFINE_float("initial", 1.0, "initial distance from the minimum in each direction")
    flags.DEFINE_float("noise", 1.0, "variance of the batches' minimisers in each direction")
    flags.DEFINE_enum(
        "fit",
        "linear",
        ["free", "monotone", "linear", "exponential"],
        "shape of the best schedule for --spectrum",
    )
    flags.DEFINE_integer(
        "rows",
        15,
        "number of rows printed of a long table",
        lower_bound=2,
        upper_bound=tables.LONGEST,
    )
    flags.DEFINE_string("csv", None, "CSV file to write the whole table to")
    flags.DEFINE_string("figure", None, "file to draw rates and weights to (.png, .svg or .pdf)")
    common.run_app(main)


if __name__ == "__main__":
    run()
