"""Models that several probes are tested on."""

import dataclasses

import keras
import numpy as np
import pytest

from tf_lrtraj import probes


@dataclasses.dataclass
class LeastSquares:
    """A dense layer with squared loss whose batches all have the curvature diag(a).

    The loss of batch b is ½ Σ a (θ - ξ_b)², the quadratic model of batch losses.
    """

    model: object
    curvatures: np.ndarray
    minimisers: np.ndarray  # [batches, D], mean 0

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

    def state(self):
        """Everything of the model that could change, as bytes."""
        variables = [*self.model.variables, *self.model.optimizer.variables]
        for layer in self.model._flatten_layers():
            if getattr(layer, "seed_generator", None) is not None:
                variables.append(layer.seed_generator.state)
        return [keras.ops.convert_to_numpy(v).tobytes() for v in variables]


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


def shifted(model):
    """Three named points around a model's weights."""
    here = [keras.ops.convert_to_numpy(v) for v in model.trainable_variables]
    rng = np.random.default_rng(3)
    return {
        name: [a + 0.2 * rng.normal(size=a.shape).astype(a.dtype) for a in here] for name in "abc"
    }


# name -> function of (model, loss, batches)
EVERY_PROBE = {
    "line": lambda m, loss, b: probes.loss_along_step(
        m, loss, None, b[:2], held_out=b[2:], rates=[0.1, 0.2, 0.4], bracket="none"
    ),
    "line alone": lambda m, loss, b: probes.loss_along_step(
        m, loss, None, b[:2], rates=[0.1, 0.2, 0.4], bracket="none"
    ),
    "curvature": lambda m, loss, b: probes.curvature_along_step(m, loss, None, b),
    "side_trip": lambda m, loss, b: probes.side_trip(
        m, loss, None, b[:2], held_out=b[2:], learning_rate=0.1, num_steps=2
    ),
    "side_trip alone": lambda m, loss, b: probes.side_trip(
        m, loss, None, b[:2], optimizer="adam", num_steps=2
    ),
    "segment": lambda m, loss, b: probes.loss_along_segment(m, loss, shifted(m), b, num=3),
    "rays": lambda m, loss, b: probes.loss_along_rays(
        m, loss, shifted(m), b, distances=[0.0, 0.5, 1.0]
    ),
    "plane": lambda m, loss, b: probes.loss_on_plane(m, loss, shifted(m), b, num=3),
    "gradients": lambda m, loss, b: probes.gradient_alignment(m, loss, None, b),
    "lagged": lambda m, loss, b: probes.gradients_along(
        m, loss, dict(enumerate(shifted(m).values())), b, lags=[1]
    ),
    "ensemble": lambda m, loss, b: probes.ensemble(m, loss, shifted(m), b, logits=False),
    "modes": lambda m, loss, b: probes.compare_modes(m, loss, None, b),
}


@pytest.fixture(params=EVERY_PROBE)
def every_probe(request):
    """Each probe in turn: a function of a model, a loss and three batches."""
    probe = EVERY_PROBE[request.param]
    probe.__name__ = request.param
    return probe
