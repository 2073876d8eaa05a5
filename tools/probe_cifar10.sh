#!/usr/bin/env bash
# Measures all probes of the CIFAR-10 run under results/: some 20 minutes on 2 idle CPU cores, after training.
#
#   tools/probe_cifar10.sh WORKDIR [DATA_DIR]
#
# If WORKDIR holds no run, the script first trains that of configs/cifar10_resnet8_cpu.py, with
# snapshots from the first step on and without averages, which do not affect the raw weights.
# DATA_DIR is the folder of TFDS data.  Existing measurements are not repeated.
set -euo pipefail
workdir=$1
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
data=${2:+--data_dir=$2}
python=${PYTHON:-python}

"$python" -m tf_lrtraj.bin.train --config="$root/configs/cifar10_resnet8_cpu.py" \
  ${2:+--config.data.dir=$2} --config.snapshots.start="0 steps" --config.averages={} \
  --config.matched.averages="()" --config.evaluate.every=never --config.evaluate.train_examples=0 \
  --config.loggers="()" --config.save_models=False --workdir="$workdir"

# Another seed or more batches: pass the options of lrtraj-probe by hand.
probe() {
  "$python" -m tf_lrtraj.bin.probe --workdir="$workdir" $data --probe="$@"
}
swa=swa=swa:start=1880
probe side_trip --steps=500,3120
# Do side trips on the same batch end in one basin, and in the main trajectory's?
probe basin --points=early=500,late=3120,early_trip=trip:500:0,late_trip=trip:3120:0,late_trip_2=trip:3120:1 --num=11
probe basin --name=sgd_to_swa --points=sgd=3120,$swa --extend=1 --num=11 --batch_norm=recalibrated
probe width --points=sgd=3120,$swa --num=7 --rays=4 --batch_norm=recalibrated
probe gradients --steps=100,500,1560,3120 --batches=24
probe gradients --name=gradients_along --along --first=50% --batches=2
probe distance --first=50%
probe plane --points=1560,2340,3120 --num=11 --batches=4
probe ensemble --points=1880,2190,2500,2810,3120 --batch_norm=recalibrated
probe line --steps=100,500,1560,3120 --low=0.03 --high=3 --num=16 --batches=6 --held_out_batches=3
