"""A study so small that all of it takes seconds of training, for tests."""

from tf_lrtraj.study.study_config import default_config


def get_config():
    config = default_config()
    config.name = "tiny"
    config.seeds = 1
    config.model.width = 2
    config.batch_size, config.momentum = 16, 0.3
    config.burn_in, config.window, config.every, config.horizon = 24, 16, 2, 8
    config.segment, config.log_every = 10, 2
    config.averages = {"swa": {"kernel": "Uniform"}, "ema": {"kernel": "Exponential", "decay": 0.5}}
    # One size of batches for scores: every other size would be compiled apart.
    config.evaluate.update(part=100, batch_norm_images=100, levels=3, batch_size=100)
    config.many_points = {"points": (2, 4), "gaps": (2, 4), "ends": 2}
    config.rates = (2.0, 0.5, 0.25)
    config.sweep.update(singles=4, lags=2, pairs=1, verify=4)
    config.late_iterates = 3
    config.budget.update(every=2, cycle=2, low=0.1)
    config.cost.update(depth=8, width=3, repeats=3, steps=1)
    config.cooldown = {
        "rates": (1.0, 0.5),
        "lengths": (2, 4),
        "settle": 2,
        "places": 1,
        "track": 2,
        "after": 4,
        "iterations": 2,
        "batches": 2,
    }
    config.speed.update(steps=12, places=2)
    config.pairs.update(factor=0.5, steps=8)
    config.start.update(steps=(0, 1, 3, 10), batches=3)
    config.ema_times.update(decades=1, per_decade=2)
    config.shell.update(places=4, steps=3)
    config.probes.update(
        batches=3,
        held_out=2,
        others=3,
        low=0.05,
        high=20.0,
        rates=9,
        gradients=4,
        trip_length=3,
        trip_quantile=0.25,
        trip_batches=1,
        basin_positions=3,
    )
    config.convexity.update(distances=2, pairs=2, positions=5, batches=2)
    config.reach.update(steps=16, sizes=(4, 16), images=32)
    config.one_step.update(iterates=2, batches=2, held_out=2, others=3, points=2)
    config.displacement.lags = 4
    config.width.update(images=100, size=50, rays=2, num=3, positions=3)
    config.ensemble.update(members=2, images=100, size=50)
    return config
