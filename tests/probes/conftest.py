"""Models that several probes are tested on."""

import dataclasses
import pathlib
import random
import sys

import keras
import numpy as np
import pytest

from tf_lrtraj import probes

sys.path.insert(0, str(pathlib.Path(__file__).parent))

import probe_cases


@dataclasses.dataclass
class LeastSquares:
    """A dense layer with squared loss whose batches all have the curvature diag(a).

    The loss of batch b is ½ Σ a (θ - ξ_b)², the quadratic model of batch losses.
    """

    model: object
    curvatures: np.ndarray
    minimisers: np.ndarray  # [batches, D], mean 0

    def __post_init__(self):
        self.surface = probes.Surface(self.model, "mean_squared_error")

    @property
    def batches(self):
        size = len(self.curvatures)
        inputs = np.diag(np.sqrt(size * self.curvatures / 2.0)).astype("float32")
        return [
            (inputs, (inputs.astype(float) @ xi)[:, None].astype("float32"))
            for xi in self.minimisers
        ]

    @property
    def noise(self):
        """Covariance of the minimisers, over these batches as all there are."""
        return self.minimisers.T @ self.minimisers / len(self.minimisers)

    def losses(self, theta):
        """[..., batches] exact losses at [..., D] weights."""
        away = np.asarray(theta, float)[..., None, :] - self.minimisers
        return 0.5 * (self.curvatures * away**2).sum(-1)

    @staticmethod
    def weights(theta):
        return [np.asarray(theta, "float32").reshape(-1, 1)]

    def measured(self, probe, thetas, **options):
        """The record of a probe of points on the first 4 batches, the others held out."""
        points = {name: self.weights(theta) for name, theta in thetas.items()}
        options["held_out"] = self.batches[4:]
        return probe_cases.measured(probe, self.model, "mse", points, self.batches[:4], **options)


@pytest.fixture(scope="session")
def least_squares():
    rng = np.random.default_rng(3)
    size = 5
    model = keras.Sequential([keras.Input((size,)), keras.layers.Dense(1, use_bias=False)])
    minimisers = rng.normal(size=(6, size))
    return LeastSquares(model, np.geomspace(0.2, 2.0, size), minimisers - minimisers.mean(0))


@dataclasses.dataclass
class Network:
    """A small network of images with batch norm, weights for it, and batches."""

    model: object
    loss: object
    points: dict
    batches: list
    held_out: list

    def at(self, name, statistics=None):
        """A clone of the model with the weights of a point, and statistics if given."""
        clone = keras.models.clone_model(self.model)
        clone.set_weights(self.model.get_weights())
        for variable, array in zip(clone.trainable_variables, self.points[name], strict=True):
            variable.assign(array)
        for variable, array in zip(norm_statistics(clone), statistics or [], strict=False):
            variable.assign(array)
        return clone

    def mixed(self, shares, statistics):
        """A clone at a mixture of points, without dropout.

        Args:
            shares: name → share of a point's weights.  Negative ones count as 0 for statistics,
                as a variance must not turn negative.
            statistics: name → mean and variance of the batch norm.
        """
        kept = {name: max(share, 0.0) for name, share in shares.items()}
        kept = {name: share / sum(kept.values()) for name, share in kept.items()}
        clone = self.at(next(iter(shares)))
        clone.layers[4].rate = 0.0
        for variables, parts, of in (
            (clone.trainable_variables, shares, self.points),
            (norm_statistics(clone), kept, statistics),
        ):
            for k, variable in enumerate(variables):
                variable.assign(sum(share * of[name][k] for name, share in parts.items()))
        return clone

    def state(self):
        """Everything of the model and of the random streams that could change."""
        variables = [*self.model.variables, *self.model.optimizer.variables]
        for layer in self.model._flatten_layers():
            if getattr(layer, "seed_generator", None) is not None:
                variables.append(layer.seed_generator.state)
        streams = [np.random.get_state()[1].tobytes(), random.getstate()]  # noqa: NPY002
        return [*(keras.ops.convert_to_numpy(v).tobytes() for v in variables), *streams]


def norm_statistics(model):
    return [
        variable
        for layer in model.layers
        if isinstance(layer, keras.layers.BatchNormalization)
        for variable in (layer.moving_mean, layer.moving_variance)
    ]


@pytest.fixture(scope="session")
def network():
    keras.utils.set_random_seed(1)
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            layers.Conv2D(16, 3, use_bias=False),
            layers.BatchNormalization(momentum=0.5),
            layers.ReLU(),
            layers.GlobalAveragePooling2D(),
            layers.Dropout(0.25),
            layers.Dense(3),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), loss)
    rng = np.random.default_rng(2)

    def batch(size=12):
        return rng.normal(size=(size, 6, 6, 2)).astype("float32"), rng.integers(0, 3, size)

    for _ in range(3):  # running statistics and an optimizer that have moved
        model.train_on_batch(*batch())
    here = [keras.ops.convert_to_numpy(v) for v in model.trainable_variables]
    points = {"here": here}
    for name in ("b", "c"):
        points[name] = [a + 0.3 * rng.normal(size=a.shape).astype(a.dtype) for a in here]
    return Network(model, loss, points, [batch() for _ in range(4)], [batch(9) for _ in range(3)])


@pytest.fixture
def statistics():
    """Name of a point → mean and variance of the network's batch norm there."""
    rng = np.random.default_rng(5)
    return {
        name: [rng.normal(size=16).astype("float32"), rng.uniform(0.5, 2, 16).astype("float32")]
        for name in ("here", "b", "c")
    }


@dataclasses.dataclass
class Made:
    """A case measured once, and what it is measured with."""

    name: str
    case: object
    surface: object
    points: dict
    batches: list
    record: object
    path: pathlib.Path
    told: list
    passes: float
    untouched: bool

    def probe(self, **changed):
        given = {"surface": self.surface, "batches": self.batches, "points": self.points, **changed}
        return self.case.build(*given.values())


@pytest.fixture(scope="session")
def make(network, tmp_path_factory):
    """A function of a case's name that measures it on the network, once."""
    known = {}

    def made(name):
        if name not in known:
            known[name] = _made(name, network, tmp_path_factory.mktemp("record"))
        return known[name]

    return made


@pytest.fixture(params=probe_cases.CASES)
def made(request, make):
    """Every case of every probe in turn."""
    return make(request.param)


def _made(name, network, folder):
    case = probe_cases.CASES[name]
    keras.utils.set_random_seed(0)
    mode = {"moment_batches": network.held_out, **case.mode}
    surface = probe_cases.Watched(probe_cases.Clock(), network.model, network.loss, **mode)
    points, path = probe_cases.shifted(network.model), folder / f"{case.kind}.npz"
    found = Made(name, case, surface, points, network.batches[:3], None, path, [], 0.0, False)
    before, probe = network.state(), found.probe()
    surface.clock.passes = 0
    found.record = probes.measure(probe, path, progress=False, tell=found.told.append)
    found.passes = surface.clock.passes
    found.untouched = network.state() == before
    return found
