#!/usr/bin/env bash
# Training speed with glibc's own memory thresholds (default), with ours set before TensorFlow is
# imported (once), and set again after the iterator was made (kept, as runs do), in turn:
# images per second of ResNet-8 with three averages on random CIFAR-like images, three runs each.
#
#   benchmarks/allocator.sh            with the python on PATH
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
for repeat in 1 2 3; do
  for setting in default once kept; do
    TF_CPP_MIN_LOG_LEVEL=3 python benchmarks/allocator.py "$setting"
  done
done
