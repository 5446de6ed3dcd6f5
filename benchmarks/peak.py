"""What this machine's matrix products reach, in float32 at the shapes of ViT-B/16 with 8 images."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

TOKENS, WIDTH = 8 * 197, 768
SHAPES = {  # rows, contracted, columns
    "qkv": (TOKENS, WIDTH, 3 * WIDTH),
    "fc1": (TOKENS, WIDTH, 4 * WIDTH),
    "fc2": (TOKENS, 4 * WIDTH, WIDTH),
}
CALLS = 4  # at once, for products that take a tenth of a second


def products(libraries: tuple[str, ...]) -> dict[tuple[str, str], Callable[[], Any]]:
    """By library and shape, a function that computes the product ``CALLS`` times."""
    makers = {"jax": _jax, "torch": _torch}
    rng = np.random.default_rng(0)

    def operands(m: int, k: int, n: int) -> list[np.ndarray]:
        return [rng.standard_normal(shape, np.float32) for shape in ((m, k), (k, n))]

    return {
        (library, name): makers[library](*operands(*shape))
        for library in libraries
        for name, shape in SHAPES.items()
    }


def flops(name: str) -> int:
    """Of one call of a product."""
    m, k, n = SHAPES[name]
    return CALLS * 2 * m * k * n


def _jax(a: np.ndarray, b: np.ndarray) -> Callable[[], Any]:
    on_device, product = [jax.device_put(x) for x in (a, b)], jax.jit(lambda a, b: a @ b)
    return lambda: [jax.block_until_ready(product(*on_device)) for _ in range(CALLS)]


def _torch(a: np.ndarray, b: np.ndarray) -> Callable[[], Any]:
    import torch  # not needed to measure ours

    left, right = torch.from_numpy(a), torch.from_numpy(b)
    return lambda: [left @ right for _ in range(CALLS)]
