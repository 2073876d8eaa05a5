#!/usr/bin/env bash
# Measures all probes of a run of configs/cifar10_resnet8_cpu.py: some ten minutes on a CPU core.
#
#   tools/probe_cifar10.sh WORKDIR [DATA_DIR]
#
# DATA_DIR is the folder of TFDS data, if it has moved since the run.  Existing measurements are not
# repeated.
set -euo pipefail
[[ $# -ge 1 && -d "$1/snapshots" ]] || {
  echo "usage: tools/probe_cifar10.sh WORKDIR [DATA_DIR]   (WORKDIR: of a run with snapshots)" >&2
  exit 2
}
workdir=$1
data=${2:+--data_dir=$2}
python=${PYTHON:-python}

# Another seed or more batches: pass the options of lrtraj-probe by hand.
probe() {
  "$python" -m tf_lrtraj.bin.probe --workdir="$workdir" $data --probe="$@"
}
swa=swa=swa:start=5625
probe line --steps=100,500,4675,9375 --low=0.03 --high=6 --num=18 --batches=6 --held_out_batches=3
probe side_trip --steps=500,9375
# Do side trips on the same batch end in one basin, and in the main trajectory's?
probe basin --points=early=500,late=9375,early_trip=trip:500:0,late_trip=trip:9375:0,late_trip_2=trip:9375:1 --num=11
probe basin --name=sgd_to_swa --points=sgd=9375,$swa --extend=1 --num=11 --batch_norm=recalibrated
probe width --points=sgd=9375,$swa --num=7 --rays=4 --batch_norm=recalibrated
probe gradients --steps=100,500,4675,9375 --batches=24
probe gradients --name=gradients_along --along --first=50% --batches=3
probe distance --first=50%
probe plane --points=4675,7025,9375 --num=11 --batches=4
probe ensemble --points=5625,6550,7500,8425,9375 --batch_norm=recalibrated
