"""The worker of `test_tensorflow_does_not_swallow_signals`; run as a program."""

import os
import signal
import time

from tf_lrtraj.training.stopping import stop_signals
from tf_lrtraj.training.strategies import make_strategy


def main():
    with stop_signals() as stop, stop.deferred():  # before the strategy, as lrtraj-train does
        make_strategy("multi_worker")
        os.kill(os.getpid(), signal.SIGTERM)
        deadline = time.monotonic() + 5
        while not stop.requested and time.monotonic() < deadline:
            time.sleep(0.01)
        print(f"requested: {stop.requested}", flush=True)


if __name__ == "__main__":
    main()
