"""ImageNet, ResNet-34 on a TPU slice: as imagenet_resnet34_gpu8, with a larger batch.

Command:  lrtraj-train --config=configs/imagenet_resnet34_tpu.py --workdir=DIR \\
              --strategy=tpu --config.data.dir=DIR
Data:     python tools/prepare_data.py --dataset=imagenet2012 --data_dir=DIR
Machine:  a TPU VM with 8 cores or more; set --tpu=NAME if the program runs elsewhere
Runtime:  not measured
Expected: not run yet; as on GPUs.
"""

import importlib.util
import pathlib


def get_config():
    # By path, because this file may itself be run from any folder.
    path = pathlib.Path(__file__).with_name("imagenet_resnet34_gpu8.py")
    spec = importlib.util.spec_from_file_location("imagenet_resnet34_gpu8", path)
    base = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(base)
    config = base.get_config()
    config.name = "ResNet-34 on ImageNet, TPU"
    config.data.batch_size = 4096
    config.schedule.inner.rates = [
        {"rate": "Constant", "constant": 1.6},
        {"rate": "Constant", "constant": 0.16},
    ]
    config.averages.ema.decay = 0.9996
    config.batch_norm.batches = 50
    config.evaluate.batch_size = 2000
    return config
