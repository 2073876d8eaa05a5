#!/usr/bin/env bash
# Demonstrates the package on data that need no download: makes a virtual environment, installs,
# trains a small ResNet on images of handwritten digits, averages, evaluates, writes a report.
#
# The figures of the report are also files, in the folder `figures` of the run.
#
#   tools/demo.sh                    into runs/digits_demo (…_2, …_3 once that is done)
#   tools/demo.sh --config.seed=1    further arguments go to the training program
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

make_environment "${TF_LRTRAJ_VENV:-$root/.venv}" "$root"
cd "$root"
# Without a GPU, TensorFlow would report its absence as an error.
export TF_CPP_MIN_LOG_LEVEL=${TF_CPP_MIN_LOG_LEVEL:-3}

is_done() { # WORKDIR: whether the run in it has finished
  "$venv/bin/python" - "$1/run.json" <<'PYTHON'
import json, sys
try:
    with open(sys.argv[1], encoding="utf-8") as file:
        sys.exit(json.load(file).get("status") != "done")
except (OSError, ValueError):
    sys.exit(1)
PYTHON
}

# An interrupted run continues where it stopped; after a finished run, a new one begins.
workdir=runs/digits_demo
for ((number = 2; ; number++)); do
  is_done "$workdir" || break
  workdir=runs/digits_demo_$number
done

say "training into $workdir"
began=$SECONDS
"$venv/bin/python" -m tf_lrtraj.bin.train \
  --config=configs/digits_demo.py --workdir="$workdir" "$@"
[[ -s "$workdir/report.html" ]] || fail "the run ended without $workdir/report.html"
"$venv/bin/python" -m tf_lrtraj.bin.report --workdir="$workdir" --figures="$workdir/figures" >/dev/null
say "figure: $root/$workdir/figures/loss.svg"
say "done in $((SECONDS - began)) s; open the report in a browser: $root/$workdir/report.html"
