r"""Predicts the loss of a learning-rate decay from a run at a constant rate.

From a loss curve, without TensorFlow:

  lrtraj-whatif --curve=FILE.csv --learning_rate=0.001
  lrtraj-whatif --curve=FILE.csv --decay=linear:4000 --decay=one_minus_sqrt:8000:50000 \
      --cooldown=linear:5000:25000:3.0379 --output=forecast.json --figure=forecast.svg

FILE.csv has these columns: step; loss, the loss of the iterates, always on the same data;
learning_rate, if --learning_rate is not given; and average_N (such as average_500), the losses of
averages of the last N iterates, empty if not measured.  The predictions depend on averages:
without averages and without --cooldown, the gain is assumed from published language models.

From a run with snapshots, whose curve and averages are measured first:

  lrtraj-whatif --workdir=runs/cifar10 --split=test --examples=4000

The cost is printed before measurements begin.  Losses are stored in WORKDIR/whatif, so an
interrupted call continues where it stopped.

--decay=SHAPE:LENGTH[:END] requests a decay of LENGTH steps that ends at step END.  The shape is
linear, cosine or one_minus_sqrt, and the flag may be given several times.  Without END, two decays
are predicted: one that ends at the last step, and one that begins there.  Without --decay, both
are predicted for several lengths.  --cooldown=SHAPE:LENGTH:END:LOSS states the loss of a trained
decay of this run, which makes all predictions more precise.  --momentum=0.9 states the momentum of
Keras' SGD, which takes a part of the gain of short decays (not that of Adam or of PyTorch's SGD).

The output shows the predicted loss with its band, the loss of the average of equal weights over
the same number of iterates, and the share of the decay's gain that this average keeps.  Flags: ok;
extrapolated (the decay ends beyond the curve); outside (the decay is longer than 0.4 of all steps
and the band is doubled; above 0.6, no number is given without --outside).
"""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import flags

from tf_lrtraj.bin import common, curve_files

if TYPE_CHECKING:
    from tf_lrtraj.theory.decay_forecast import DecayAnswer

SHAPES = ("linear", "cosine", "one_minus_sqrt")
PRIORS = ("auto", "language_models", "any_run")
_SHOWN = ("linear", "one_minus_sqrt")  # without --decay
_PARTS = (0.05, 0.1, 0.2, 0.3, 0.4)  # of all steps: lengths that are shown without --decay
FORMAT = 1


@dataclasses.dataclass(frozen=True)
class _Run:
    """The curve, rate and averages of a constant-rate run."""

    steps: np.ndarray
    losses: np.ndarray
    rate: Any
    averages: list[tuple[int, int, float]]
    momentum: float


def main(argv: list[str]) -> None:
    options = flags.FLAGS
    try:
        _check(options)
        decays = [_read_decay(text) for text in options.decay]
        cooldowns = [_read_cooldown(text) for text in options.cooldown]
        run = _from_file(options) if options.curve else _from_workdir(options)
        record = _answer(options, run, decays, cooldowns)
    except ValueError as error:
        common.fail(str(error))
    if options.output:
        from tf_lrtraj import records

        records.write_json(options.output, record)
        print(f"written: {options.output}")
    if options.figure:
        from tf_lrtraj.report import decay_figure

        decay_figure.draw(record, options.figure)
        print(f"written: {options.figure}")


def _check(options: Any) -> None:
    """Raises ValueError for inconsistent flags."""
    if bool(options.curve) == bool(options.workdir):
        raise ValueError("either --curve=FILE.csv or --workdir=RUN is needed. Try --help.")
    if options.learning_rate is not None and not options.learning_rate > 0.0:
        raise ValueError(f"--learning_rate must be above 0. Received: {options.learning_rate}")
    if not 0.0 < options.level < 1.0:
        raise ValueError(f"--level must be above 0 and below 1. Received: {options.level}")
    if options.figure and pathlib.Path(options.figure).suffix != ".svg":
        raise ValueError(f"--figure must end in .svg. Received: {options.figure!r}")
    measuring = ("split", "examples", "singles", "batch_norm", "data_dir")
    given = [name for name in measuring if options[name].present]
    if options.curve and given:
        raise ValueError(f"--{given[0]} goes with --workdir. Received: --curve={options.curve}")


def _read_decay(text: str) -> tuple[str, int, int | None]:
    """Parses SHAPE:LENGTH[:END] into (shape, length, end or None)."""
    shape, *numbers = text.split(":")
    if len(numbers) not in (1, 2):
        raise ValueError(f"--decay must be SHAPE:LENGTH or SHAPE:LENGTH:END. Received: {text!r}")
    counts = [_count("--decay", part, text) for part in numbers]
    return _shape("--decay", shape), counts[0], counts[1] if len(counts) == 2 else None


def _read_cooldown(text: str) -> tuple[str, int, int, float]:
    """Parses SHAPE:LENGTH:END:LOSS into (shape, length, end, loss)."""
    parts = text.split(":")
    if len(parts) != 4:
        raise ValueError(f"--cooldown must be SHAPE:LENGTH:END:LOSS. Received: {text!r}")
    length, end = (_count("--cooldown", part, text) for part in parts[1:3])
    try:
        loss = float(parts[3])
    except ValueError:
        raise ValueError(f"--cooldown: LOSS must be a number. Received: {text!r}") from None
    return _shape("--cooldown", parts[0]), length, end, loss


def _shape(flag: str, name: str) -> str:
    from tf_lrtraj import values

    try:
        return str(values.one_of(SHAPES).check("shape", name))
    except ValueError as error:
        raise ValueError(f"{flag}: {error}") from None


def _count(flag: str, text: str, whole: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < len(text) < 16 and int(text)):
        raise ValueError(f"{flag}: steps must be whole numbers above 0. Received: {whole!r}")
    return int(text)


def _from_file(options: Any) -> _Run:
    found = curve_files.read_curve(options.curve)
    if found.rates is None and options.learning_rate is None:
        raise ValueError(
            f"--learning_rate is needed: {options.curve} has no column 'learning_rate'"
        )
    rate = options.learning_rate if found.rates is None else found.rates
    return _Run(found.steps, found.losses, rate, found.averages, options.momentum or 0.0)


def _from_workdir(options: Any) -> _Run:
    from tf_lrtraj import records
    from tf_lrtraj.runs import average_run, constant_run
    from tf_lrtraj.runs.config_checks import ConfigError
    from tf_lrtraj.runs.run_config import rate_momentum, read_config

    if not pathlib.Path(options.workdir).is_dir():
        raise ValueError(f"--workdir: there is no folder {options.workdir!r}")
    snapshots = average_run.open_snapshots(options.workdir)
    config = read_config(options.workdir, options.data_dir)
    schedule = records.read_schedule(pathlib.Path(options.workdir) / records.SCHEDULE)
    last = int(snapshots.steps[-1])
    first = constant_run.constant_from(schedule[:last])
    plan = constant_run.plan_curve(snapshots.steps, first, options.singles)
    common.need_tensorflow()
    target = average_run.RunTarget(config, options.workdir, common.one_device(config))
    split = target.check_split(options.split or target.default_split)
    policy = options.batch_norm or target.policy
    measurement = target.measurement(split, options.examples, policy)
    print(f"measured on {split}, batch norm: {measurement.identity['batch_norm']}")
    curve = constant_run.measure_curve(
        snapshots,
        measurement,
        plan,
        pathlib.Path(options.workdir) / "whatif",
        tell=lambda text: print(text, flush=True),
    )
    momentum = options.momentum
    if momentum is None:
        # The steps of other optimizers do not add up with the rate inside the sum.
        with contextlib.suppress(ConfigError):
            momentum = rate_momentum(config)
    rate = float(schedule[last - 1])
    return _Run(curve.steps, curve.losses, rate, curve.averages, momentum or 0.0)


def _answer(
    options: Any,
    run: _Run,
    decays: list[tuple[str, int, int | None]],
    cooldowns: list[tuple[str, int, int, float]],
) -> dict[str, Any]:
    """Predicts the decays, prints the answers and returns the record."""
    from tf_lrtraj import theory
    from tf_lrtraj.theory.decay_checks import constant_rate
    from tf_lrtraj.theory.missing_share import ANY_RUN, LANGUAGE_MODELS

    rate = constant_rate(run.steps, run.rate)
    last = int(run.steps[-1])
    priors = {"auto": None, "language_models": LANGUAGE_MODELS, "any_run": ANY_RUN}
    answers = theory.what_if(
        run.steps,
        run.losses,
        rate,
        _asked(decays, last),
        run.averages,
        [(*cooldown, rate) for cooldown in cooldowns],
        options.level,
        priors=priors[options.prior],
        outside=options.outside,
        momentum=run.momentum,
    )
    print(
        f"{run.steps.size} losses to step {last}, rate {rate:g}; {len(run.averages)} averages and "
        f"{len(cooldowns)} trained decays known"
    )
    _print_table(answers, options.level, last)
    best = _print_best(answers, last)
    for finding in {f.code: f for answer in answers for f in answer.diagnosis}.values():
        print(f"note {finding.code}: {finding.message}")
    return {
        "format": FORMAT,
        "level": options.level,
        "learning_rate": rate,
        "momentum": run.momentum,
        "curve": {"steps": run.steps, "losses": run.losses},
        "averages": [
            {"length": length, "step": step, "loss": loss} for length, step, loss in run.averages
        ],
        "cooldowns": [
            {"shape": shape, "length": length, "end": end, "loss": loss}
            for shape, length, end, loss in cooldowns
        ],
        "decays": [_row(answer) for answer in answers],
        "best": best,
    }


def _asked(decays: list[tuple[str, int, int | None]], last: int) -> list[tuple[str, int, int]]:
    """Returns the decays with their ends; by default several that end or begin now."""
    if not decays:
        found = []
        for shape in _SHOWN:
            found += [(shape, max(round(part * last), 1), last) for part in _PARTS]
            lengths = [max(int(part / (1.0 - part) * last), 1) for part in _PARTS]
            found += [(shape, length, last + length) for length in lengths]
        return found
    return [
        (shape, length, place)
        for shape, length, end in decays
        for place in ((last, last + length) if end is None else (end,))
    ]


def _kind(answer: DecayAnswer, last: int) -> str:
    if answer.end == last:
        return "ends now"
    return "begins now" if answer.end - answer.length == last else f"ends at {answer.end}"


def _print_table(answers: list[DecayAnswer], level: float, last: int) -> None:
    band = f"{level:.0%} band"
    print(
        f"\n{'decay':<16}{'steps':>9}  {'':<15}{'loss':>10}{band:>24}{'gain':>10}{'average':>11}"
        f"{'share':>8}  flag"
    )
    for answer in answers:
        shown = "no number" if np.isnan(answer.loss) else f"{answer.loss:.5g}"
        interval = "" if np.isnan(answer.loss) else f"{answer.low:.5g} to {answer.high:.5g}"
        numbers = [f"{answer.gain:.4g}", f"{answer.average:.5g}", f"{answer.share:.1%}"]
        gain, average, share = ["" if np.isnan(answer.loss) else text for text in numbers]
        print(
            f"{answer.shape:<16}{answer.length:>9}  {_kind(answer, last):<15}{shown:>10}"
            f"{interval:>24}{gain:>10}{average:>11}{share:>8}  {answer.flag}"
        )
    print()


def _print_best(answers: list[DecayAnswer], last: int) -> list[dict[str, Any]]:
    """Prints and returns the best decay of each kind, and those not significantly worse."""
    from tf_lrtraj import theory

    kinds: dict[str, list[DecayAnswer]] = {}
    for answer in answers:
        kinds.setdefault(_kind(answer, last), []).append(answer)
    found = []
    for kind, group in kinds.items():
        choice = theory.best_decays(group)
        if choice is None or len(group) < 2:
            continue
        alike = [group[i] for i in choice.alike if group[i] is not choice.best]
        others = ", ".join(f"{answer.shape} over {answer.length}" for answer in alike)
        text = f"best that {kind}: {choice.best.shape} over {choice.best.length} steps"
        print(f"{text}; not to be told apart from it: {others or 'none'}")
        found.append({"kind": kind, "best": _name(choice.best), "alike": [_name(a) for a in alike]})
    return found


def _name(answer: DecayAnswer) -> dict[str, Any]:
    return {"shape": answer.shape, "length": answer.length, "end": answer.end}


def _row(answer: DecayAnswer) -> dict[str, Any]:
    """Returns an answer as a row of the record, without its draws."""
    row = {
        field.name: getattr(answer, field.name)
        for field in dataclasses.fields(answer)
        if field.name not in ("draws", "diagnosis")
    }
    return {**row, "diagnosis": [dataclasses.asdict(finding) for finding in answer.diagnosis]}


def run() -> None:
    """Entry point of `lrtraj-whatif`."""
    # Defined here, because several programs have flags of the same name.
    flags.DEFINE_string("curve", None, ".csv file of the loss curve of a constant-rate run")
    flags.DEFINE_string("workdir", None, "folder of a run with snapshots")
    flags.DEFINE_float("learning_rate", None, "the constant rate, if curve or run do not state it")
    flags.DEFINE_float(
        "momentum", None, "momentum of Keras' SGD; by default that of the run, or 0 with --curve"
    )
    flags.DEFINE_multi_string("decay", [], "a decay to predict, SHAPE:LENGTH[:END]; repeatable")
    flags.DEFINE_multi_string("cooldown", [], "a trained decay, SHAPE:LENGTH:END:LOSS; repeatable")
    flags.DEFINE_float("level", 0.9, "probability of the bands")
    flags.DEFINE_enum(
        "prior", "auto", PRIORS, "prior: that of language models under AdamW, or of any run"
    )
    flags.DEFINE_bool("outside", False, "also predict decays longer than 0.6 of all steps")
    flags.DEFINE_string("output", None, ".json file to write the answers to")
    flags.DEFINE_string("figure", None, ".svg file to draw the answers into")
    flags.DEFINE_string("split", None, "--workdir: split to measure on; by default that of the run")
    flags.DEFINE_integer("examples", None, "--workdir: number of images to use", lower_bound=1)
    flags.DEFINE_integer("singles", 32, "--workdir: number of single snapshots", lower_bound=8)
    flags.DEFINE_enum(
        "batch_norm",
        None,
        ["recompute", "average", "batch"],
        "--workdir: batch-norm statistics in measurements; batch uses those of each batch",
    )
    flags.DEFINE_string("data_dir", None, "--workdir: folder of the run's data, if it has moved")
    common.run_app(main, reads=["curve"], writes=["output", "figure"])


if __name__ == "__main__":
    run()
