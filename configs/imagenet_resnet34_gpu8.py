"""ImageNet, ResNet-34 on 8 GPUs: averages of a run whose rate stays large at the end.

Command:  lrtraj-train --config=configs/imagenet_resnet34_gpu8.py --workdir=runs/imagenet_gpu8 \\
              --strategy=mirrored --config.data.dir=DIR
Data:     python tools/prepare_data.py --dataset=imagenet2012 --data_dir=DIR (the archives
          must be downloaded manually from image-net.org; TFDS states where to put them)
Machine:  one host with 8 GPUs of 16 GB or more
Runtime:  not measured
Expected: not run yet.  The usual step schedule reaches about 73.3 % top-1 with this network
          (torchvision's figure).  The averages should come close to it, although the rate of
          the averaged run is still a tenth of its maximum.
"""

from tf_lrtraj.runs.run_config import default_config


def get_config():
    config = default_config()
    config.name = "ResNet-34 on ImageNet, 8 GPUs"
    config.data.name = "imagenet2012"
    config.data.augmentation = "random_resized_crop"
    config.data.image_size = 224
    config.data.batch_size = 1024
    config.data.eval_split = "validation"
    config.model.depth = 34
    config.model.width = 64
    config.model.stem = "imagenet"
    config.model.dtype = "mixed_bfloat16"
    config.optimizer.nesterov = True
    config.optimizer.weight_decay = 5e-5
    # Linear scaling from 0.1 at batch 256, with warm-up (Goyal et al. 2017, arXiv 1706.02677).
    config.schedule = {
        "rate": "Warmup",
        "steps": "5 epochs",
        "inner": {
            "rate": "Sequence",
            "rates": [
                {"rate": "Constant", "constant": 0.4},
                {"rate": "Constant", "constant": 0.04},
            ],
            "boundaries": ["55 epochs"],
        },
    }
    config.total = "90 epochs"
    config.averages = {
        "ema": {"kernel": "Exponential", "decay": 0.9999},
        "swa": {"kernel": "Uniform", "start": "75 epochs", "every": 10},
    }
    config.batch_norm.batches = 200
    config.evaluate.every = "5 epochs"
    config.evaluate.batch_size = 1000
    config.checkpoint.every = "1 epochs"
    config.log_every = "100 steps"
    config.steps_per_call = 100
    config.deterministic = False
    return config
