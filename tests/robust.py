"""Small classifiers and images for the tests of adv_ssl.robustness."""

import jax
import jax.numpy as jnp
import numpy as np

SHAPE = (6, 5, 2)  # height, width, channels: all different
CLASSES = 5
PIXELS = int(np.prod(SHAPE))


def mlp_params(seed: int = 0, classes: int = CLASSES, steepness: float = 8.0) -> dict:
    rng = np.random.default_rng(seed)
    slopes = steepness / np.sqrt(PIXELS) * rng.standard_normal((PIXELS, 16))
    return {
        "in": slopes.astype(np.float32),
        "out": rng.standard_normal((16, classes), np.float32),
    }


def classify(params: dict, x: jax.Array) -> jax.Array:
    """A random network with one hidden layer."""
    hidden = jnp.tanh((x.reshape(len(x), -1) - 0.5) @ params["in"])
    return hidden @ params["out"]


def linear_classify(params: dict, x: jax.Array) -> jax.Array:
    return x.reshape(len(x), -1) @ params["slopes"] + params["bias"]


def images(count: int = 8, seed: int = 0, low: float = 0.0, high: float = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(low, high, (count, *SHAPE)).astype(np.float32)


def predicted(params: dict, x: np.ndarray, model=classify) -> np.ndarray:
    return np.asarray(model(params, x)).argmax(-1).astype(np.int32)


def keys(indices, seed: int = 0) -> jax.Array:
    return jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(jnp.asarray(indices))


def distances(norm: str, x_adv: np.ndarray, x: np.ndarray) -> np.ndarray:
    """[B], of the float32 pixels, computed in float64."""
    d = (np.asarray(x_adv, np.float64) - np.asarray(x, np.float64)).reshape(len(x), -1)
    return np.abs(d).max(1) if norm == "linf" else np.linalg.norm(d, axis=1)


def linear_distances(norm: str, params: dict, x: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """[B, classes]: from each image to the boundary of each class; infinite for its own."""
    logits = np.asarray(linear_classify(params, x), np.float64)
    slopes = np.asarray(params["slopes"], np.float64).T
    order = {"linf": 1, "l2": 2}[norm]  # the dual norm
    ahead = np.take_along_axis(logits, labels[:, None], 1) - logits
    steepness = np.linalg.norm(slopes[labels][:, None] - slopes[None], ord=order, axis=2)
    own = labels[:, None] == np.arange(logits.shape[1])
    return np.where(own, np.inf, ahead / np.where(own, 1, steepness))
