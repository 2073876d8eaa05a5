"""One worker of `test_nan_on_one_worker_stops_all_at_the_same_step`; run as a program.

Trains on the digits with NaN in one image, which one worker's part of one batch holds.
"""

import json
import pathlib
import sys

FOLDER = pathlib.Path(__file__).parent
sys.path[:0] = [str(FOLDER), str(FOLDER.parent)]


def main(workdir):
    from tf_lrtraj.training.strategies import make_strategy

    strategy = make_strategy("multi_worker")
    from poisoned_digits import OPTIONS, poisoned
    from run_contents import scale_config

    from tf_lrtraj.runs import train_run
    from tf_lrtraj.training import stopping

    plain, _ = train_run.prepare(scale_config(**OPTIONS), workdir, strategy)
    try:
        train_run.run(plain, poisoned(), workdir, strategy, "multi_worker", tell=lambda text: None)
    except stopping.Diverged as error:
        print(json.dumps({"diverged": error.step, "message": str(error)}), flush=True)
        sys.exit(3)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
