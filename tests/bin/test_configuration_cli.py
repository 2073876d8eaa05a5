"""Mistakes in `--config` and around it: one line that names the entry, before TensorFlow starts."""

import zlib

import pytest

CONFIGS = {"train": "digits_demo", "reproduce": "reproduce_digits", "synthetic": "synthetic"}
START = "from tf_lrtraj.runs.run_config import default_config\n\n\ndef get_config():\n"


@pytest.mark.parametrize(
    ("name", "override", "expected"),
    [
        (
            *("train", "--config.optimizer.kind=adamw"),
            "unknown key `config.optimizer.kind`. Known keys of config.optimizer: "
            "['label_smoothing', 'momentum', 'name', 'nesterov', 'options', 'weight_decay', "
            "'weight_decay_on']",
        ),
        ("train", "--config.optimizr.momentum=0.5", "Did you mean config.optimizer? Known keys of"),
        (
            "train",
            "--config.momentum=0.5",
            "config.model.batch_norm.momentum or config.optimizer.mo",
        ),
        ("train", "--config.model.batch_norm.eps=1e-3", "of config.model.batch_norm: ['epsilon', "),
        ("train", "--noconfig.data.downlod", "Did you mean config.data.download?"),
        ("train", "--config.averages.ema.strat=5", "Did you mean config.averages.ema.start?"),
        ("train", "--config.averages.ema.start=5", "is not set in the configuration file"),
        ("train", "--config.averages.emma.decay=0.5", "of config.averages: ['ema', 'swa', 'two_p"),
        ("train", "--config.schedule.steps=5", "unknown key `config.schedule.steps`"),
        ("train", "--config.seed=many", "`config.seed` must be an integer. Received: 'many'"),
        ("train", "--config.seed=1.5", "`config.seed` must be an integer. Received: '1.5'"),
        ("train", "--config.optimizer.momentum=", "must be a number. Received: ''"),
        ("train", "--config.data.download=maybe", "must be True or False. Received: 'maybe'"),
        ("train", "--config.data.image_size=big", "`config.data.image_size` must be an integer"),
        ("train", "--config.model=resnet", "is a group with the keys ['batch_norm', 'build', "),
        ("train", "--config.seed.more=1", "`config.seed` is a value, 0, and has no entries"),
        ("train", "--config.=1", "unknown key `config.`"),
        ("reproduce", "--config.probes.nme=3", "Known keys of config.probes: ['basin_level', "),
        ("reproduce", "--config.model.widht=3", "Did you mean config.model.width?"),
        ("reproduce", "--config.learning_rate=fast", "`config.learning_rate` must be a number"),
        ("synthetic", "--config.sed=3", "Did you mean config.seed?"),
    ],
)
def test_overrides_name_the_entry_and_the_known_ones(refused, tmp_path, name, override, expected):
    workdir = tmp_path / "run"
    flags = [f"--config={CONFIGS[name]}", f"--workdir={workdir}", override]
    assert expected in refused(f"lrtraj-{name}", *flags)
    assert not workdir.exists()


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("    config.optimizer.momntum = 0.5\n", "Did you mean config.optimizer.momentum?"),
        (
            "    config.averges = {}\n",
            "unknown key `config.averges`. Did you mean config.averages?",
        ),
        ("    config.optimizer.momentum = 'much'\n", ".py, line 6: TypeError: "),
        ("    config.data = 'digits'\n", ".py, line 6: "),
        ("    raise RuntimeError('first\\nsecond')\n", ".py, line 6: RuntimeError: first\n"),
        ("\n\ndel get_config\n\n\ndef other():\n", "must define a function get_config()"),
        ("    '''never closed\n", "cannot be read: unterminated triple-quoted"),
    ],
)
@pytest.mark.parametrize("overrides", [[], ["--config.seed=1"]], ids=len)
def test_files_name_the_entry_or_the_line(refused, tmp_path, source, expected, overrides):
    # A name of its own, as modules are kept.
    path = tmp_path / f"c{zlib.crc32(repr((source, overrides)).encode())}.py"
    path.write_text(f"{START}    config = default_config()\n{source}    return config\n")
    flags = [f"--config={path}", f"--workdir={tmp_path / 'run'}", *overrides]
    assert expected in refused("lrtraj-train", *flags)
