r"""Measures the loss of single mini-batches around the weights of a run.

Along a step of each batch's own gradient, at four steps of the run: the losses of training
batches, held-out batches and other training batches as functions of the rate:

  lrtraj-probe --workdir=runs/digits --probe=line --steps=first,10%,50%,last

  lrtraj-probe --workdir=runs/digits --probe=curvature --steps=50%,last

Side trips: nine steps on one fixed batch from two points, at the effective rate of the run:

  lrtraj-probe --workdir=runs/digits --probe=side_trip --steps=50%,last --num_steps=9

Between points: barriers, random rays, a plane, an ensemble.  Points are steps ("first", "last",
500, 50%) or averages of snapshots:

  lrtraj-probe --workdir=runs/digits --probe=basin --points=10%,50%,last
  lrtraj-probe --workdir=runs/digits --probe=basin --name=sgd_to_swa --extend=1 \
      --points='sgd=last,swa=Uniform(start=500)' --batch_norm=recalibrated
  lrtraj-probe --workdir=runs/digits --probe=width --points='sgd=last,swa=Uniform(start=500)' \
      --batch_norm=recalibrated
  lrtraj-probe --workdir=runs/digits --probe=plane --points=50%,75%,last
  lrtraj-probe --workdir=runs/digits --probe=ensemble --points=70%,80%,90%,last

Along the run: gradients of the same batches at different steps, and displacement by lag:

  lrtraj-probe --workdir=runs/digits --probe=gradients --steps=50%,last --batches=16
  lrtraj-probe --workdir=runs/digits --probe=gradients --along
  lrtraj-probe --workdir=runs/digits --probe=distance
  lrtraj-probe --workdir=runs/digits --probe=distance --other=runs/digits_other_batches

A run writes snapshots with --config.snapshots.every='20 steps'.  Points may be checkpoints too, and
--direction=momentum needs one.  The program prints the cost first.  Records and figures are written
to WORKDIR/probes, and the run's report shows the figures.  The same command resumes an interrupted
measurement.  config.probes measures probes during training (docs/probes.md).

Every record states how batch norm and dropout were used: --batch_norm=batch (as in training, the
default), frozen (statistics stored with the weights), or recalibrated (recomputed per point).
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

from absl import flags

from tf_lrtraj import specs
from tf_lrtraj.bin import common


def main(argv: list[str]) -> None:
    from tf_lrtraj.records import RecordError
    from tf_lrtraj.runs.run_config import ConfigError, read_config

    options = flags.FLAGS
    try:
        if options.probe is None:
            raise ValueError(f"--probe must be one of {list(specs.requestable())}. Try --help.")
        if not options.workdir or not pathlib.Path(options.workdir).is_dir():
            raise ValueError(f"--workdir: there is no folder {options.workdir!r}")
        given = {name: options[name].value for name in specs.options() if options[name].present}
        request = specs.PROBES[options.probe].check(given)
        config = read_config(options.workdir, options.data_dir)
        _measure(options, request, config)
    except RecordError as error:
        hint = " --name=… writes a measurement to another file." if "other" in str(error) else ""
        common.fail(f"{error}{hint}")
    except (ConfigError, ValueError, FileNotFoundError) as error:
        common.fail(str(error))


def _measure(options: Any, request: dict[str, Any], config: dict[str, Any]) -> None:
    common.quiet_tensorflow()
    common.need_tensorflow()
    common.configure_threads(config["threads"], config["deterministic"])
    from tf_lrtraj.runs.probing import probe_run

    written = probe_run.probe_run(
        config,
        options.workdir,
        options.probe,
        request,
        common.make_strategy_or_fail("one_device", 0, ""),
        steps=options.steps,
        name=options.name,
        tell=lambda text: print(text, flush=True),
    )
    for path in written:
        print(f"written: {path}")


def run() -> None:
    """Entry point of `lrtraj-probe`."""
    flags.DEFINE_string("workdir", None, "folder of a run")
    kinds = specs.requestable()
    what = "; ".join(f"{kind}: {spec.what}" for kind, spec in kinds.items())
    flags.DEFINE_enum("probe", None, list(kinds), what)
    single = ", ".join(kind for kind, spec in kinds.items() if spec.takes_part("weights"))
    flags.DEFINE_list(
        "steps",
        ["last"],
        f'steps at which {single} are measured: "first", "last", 500, or shares such as 50%',
    )
    flags.DEFINE_string(
        "name", None, "name of the record in WORKDIR/probes; the kind of the probe by default"
    )
    flags.DEFINE_string("data_dir", None, "folder of the data set, if it has moved since the run")
    for name, options in specs.options().items():
        _define_flag(name, options)
    common.run_app(main)


def _define_flag(name: str, options: Mapping[str, specs.Option]) -> None:
    """The flag of an option, which several kinds of probe may have, each with its own help."""
    kinds: dict[str, list[str]] = {}
    for kind, option in options.items():
        kinds.setdefault(option.help, []).append(kind)
    text = "; ".join(f"({', '.join(found)}) {help}" for help, found in kinds.items())
    first = next(iter(options.values()))
    if first.type is bool:
        flags.DEFINE_bool(name, first.default, text)
    elif first.type is int:
        flags.DEFINE_integer(name, first.default, text)
    elif first.type is float:
        flags.DEFINE_float(name, first.default, text)
    elif first.type is tuple:
        flags.DEFINE_list(name, list(first.default), text)
    else:
        flags.DEFINE_string(name, first.default, f"{text}; {first.rule.allowed}")


if __name__ == "__main__":
    run()
