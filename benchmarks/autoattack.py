"""AutoAttack here and in torchattacks, on one small ViT: robust accuracy and time per attack.

    python -m benchmarks.autoattack [--set=cifar10] [--norm=l2] [--alone] [--threads=2]

Needs torch, timm and torchattacks (beside the package). The ViT is trained against PGD, in a minute
or two on scikit-learn's digits, in ten on CIFAR-10; timm's ViT gets the same weights. Each attack
runs in turn on the images that still stand, and with --alone also on all images that are right
without an attack. Times are in CPU seconds of all threads, which other work on the machine changes
least, and in seconds.
"""

import argparse
import dataclasses
import functools
import json
import time
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
import torchattacks
from sklearn.datasets import load_digits
from timm.models.vision_transformer import VisionTransformer

from adv_ssl.attacks import pgd
from adv_ssl.data import sources
from adv_ssl.models.vit import MEAN, STD, Architecture, ViT, encode, init_encoder
from adv_ssl.robustness.autoattack import ATTACKS, CLEAN, STANDS, Budget, Verdict, autoattack
from adv_ssl.robustness.losses import cross_entropy

PyTree = Any


Images = tuple[np.ndarray, np.ndarray]  # [N, H, W, 3] in [0, 1], labels [N]


def digits() -> tuple[Images, Images]:
    """(1,437 digits to train on, 360 to attack)."""
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.images))
    grey = data.images[order].astype(np.float32) / 16
    x, y = np.repeat(grey[..., None], 3, -1), data.target[order].astype(np.int32)
    return (x[360:], y[360:]), (x[:360], y[:360])


def cifar10() -> tuple[Images, Images]:
    """(the training set, the test set) of CIFAR-10."""

    def split(name: str) -> Images:
        records = sources.load("cifar10:3.0.2", name, "").records
        images, labels = zip(*((r["image"], r["label"]) for r in records), strict=True)
        return np.stack(images).astype(np.float32) / 255, np.array(labels, np.int32)

    return split("train"), split("test")


@dataclasses.dataclass(frozen=True)
class Bench:
    """A test model, and how it is trained and attacked."""

    load: Callable[[], tuple[Images, Images]]
    architecture: Architecture
    steps: int
    epsilon: dict[str, float]  # by norm
    images: int
    queries: int = 5000


BENCHES = {
    "digits": Bench(digits, Architecture(8, 2, 32, 2, 2, 64), 800, {"linf": 0.06, "l2": 0.6}, 240),
    "cifar10": Bench(
        cifar10, Architecture(32, 8, 128, 4, 4, 512), 2000, {"linf": 4 / 255, "l2": 0.5}, 500
    ),
}


@functools.lru_cache
def classifier(architecture: Architecture) -> Callable[[PyTree, jax.Array], jax.Array]:
    """(params, x) -> logits of the ten classes."""
    encoder = ViT(architecture)

    def classify(params: PyTree, x: jax.Array) -> jax.Array:
        features = encode(encoder, params["encoder"], x, None)
        return nn.Dense(10).apply({"params": params["head"]}, features)  # type: ignore[return-value]

    return classify


def train(bench: Bench, norm: str, x: np.ndarray, y: np.ndarray) -> PyTree:
    """Weights of a ViT that is trained against PGD with five steps."""
    classify = classifier(bench.architecture)
    features, encoder = init_encoder(ViT(bench.architecture), jax.random.key(0))
    params = {
        "encoder": encoder,
        "head": nn.Dense(10).init(jax.random.key(1), features)["params"],
    }
    optimizer = optax.adamw(optax.warmup_cosine_decay_schedule(0, 2e-3, 50, bench.steps))

    @jax.jit
    def step(params: PyTree, state: PyTree, x: jax.Array, y: jax.Array, key: jax.Array) -> Any:
        search = pgd(norm, bench.epsilon[norm], 5, 0.4)
        x_adv, _ = search(lambda x: cross_entropy(classify(params, x), y), x, key)
        slopes = jax.grad(lambda p: cross_entropy(classify(p, x_adv), y).mean())(params)
        updates, state = optimizer.update(slopes, state, params)
        return optax.apply_updates(params, updates), state

    state, rng = optimizer.init(params), np.random.default_rng(0)
    for i in range(bench.steps):
        rows = rng.integers(0, len(x), 64)
        params, state = step(params, state, x[rows], y[rows], jax.random.key(i))
    return params


class TorchViT(torch.nn.Module):
    """timm's ViT behind the normalisation: [B, 3, H, W] in [0, 1] -> logits."""

    def __init__(self, architecture: Architecture, params: PyTree):
        super().__init__()
        a = architecture
        self.mean = torch.tensor(MEAN).reshape(1, 3, 1, 1)
        self.std = torch.tensor(STD).reshape(1, 3, 1, 1)
        self.vit = VisionTransformer(
            img_size=a.image_size,
            patch_size=a.patch,
            embed_dim=a.width,
            depth=a.depth,
            num_heads=a.heads,
            mlp_ratio=a.mlp / a.width,
            num_classes=10,
            global_pool="avg",
        )
        self.vit.load_state_dict(torch_weights(architecture, params))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.vit((x - self.mean) / self.std)


def torch_weights(architecture: Architecture, params: PyTree) -> dict[str, torch.Tensor]:
    """Our parameters by timm's names and in torch's layouts."""
    patch = architecture.patch
    weights = {}
    for path, value in jax.tree_util.tree_leaves_with_path(params):
        name = ".".join(part.key for part in path).removeprefix("encoder.")
        name = name.replace("block_", "blocks.").replace("patch_embed", "patch_embed.proj")
        name = name.replace("kernel", "weight").replace("scale", "weight")
        array = np.array(value)
        if "patch_embed" in name and name.endswith("weight"):
            array = array.reshape(patch, patch, 3, -1).transpose(3, 2, 0, 1)
        elif name.endswith("weight") and array.ndim == 2:
            array = array.T
        weights[name] = torch.tensor(array)
    return weights


def theirs(name: str, model: torch.nn.Module, norm: str, epsilon: float, queries: int) -> Any:
    """Torchattacks' attack of this name, set as the standard AutoAttack is."""
    common = {"norm": {"linf": "Linf", "l2": "L2"}[norm], "eps": epsilon, "seed": 0}
    return {
        "apgd-ce": lambda: torchattacks.APGD(model, steps=100, loss="ce", **common),
        "apgd-t": lambda: torchattacks.APGDT(model, steps=100, **common),
        "fab-t": lambda: torchattacks.FAB(model, steps=100, multi_targeted=True, **common),
        "square": lambda: torchattacks.Square(
            model, n_queries=queries, resc_schedule=False, **common
        ),
    }[name]()


def fallen(
    name: str, model: torch.nn.Module, x: np.ndarray, y: np.ndarray, size: int, **options: Any
) -> tuple[np.ndarray, np.ndarray]:
    """(misclassified in the ball [N], time) of torchattacks, in batches of ``size``."""
    attack = theirs(name, model, **options)
    began, broken = clock(), np.zeros(len(x), bool)
    for i in range(0, len(x), size):
        images = torch.tensor(x[i : i + size]).permute(0, 3, 1, 2).contiguous()
        labels = torch.tensor(y[i : i + size].astype(np.int64))
        x_adv = attack(images, labels)
        with torch.no_grad():
            wrong = model(x_adv).argmax(-1) != labels
        d = (x_adv - images).reshape(len(images), -1)
        order = {"linf": float("inf"), "l2": 2}[options["norm"]]
        inside = torch.linalg.vector_norm(d, order, dim=1) <= options["epsilon"] * (1 + 1e-5)
        broken[i : i + size] = (wrong & inside).numpy()
    return broken, clock() - began


def compare(bench: Bench, norm: str, batch_size: int, by_themselves: bool) -> dict[str, Any]:
    """The figures of both, in turn and, ``by_themselves``, alone."""
    epsilon = bench.epsilon[norm]
    (seen, its_labels), (x, y) = bench.load()
    began = time.perf_counter()
    params = train(bench, norm, seen, its_labels)
    print(f"trained in {time.perf_counter() - began:.0f} s")
    x, y = x[: bench.images], y[: bench.images]
    model = TorchViT(bench.architecture, params).eval()
    classify = classifier(bench.architecture)
    with torch.no_grad():
        their_logits = model(torch.tensor(x.transpose(0, 3, 1, 2))).numpy()
    logits = np.asarray(classify(params, jnp.asarray(x)))
    print(f"largest difference of the logits: {np.abs(logits - their_logits).max():.1e}")

    ours = functools.partial(
        autoattack, classify, params, x, y, np.arange(len(x)),
        norm=norm, epsilon=epsilon, batch_size=batch_size, budget=Budget(queries=bench.queries),
    )  # fmt: skip
    options = {"norm": norm, "epsilon": epsilon, "queries": bench.queries}
    compiling = [timed(alone(ours, x, name, epsilon=100.0)) for name in ATTACKS]  # no steps made
    clean, *verdicts = timed(ours)
    standing = clean[0].robust
    figures: dict[str, Any] = {"epsilon": epsilon, "images": len(x), "clean": standing.mean()}
    print("clean", figures["clean"], flush=True)
    figures["in turn"] = {}
    for name, ((_, compiled),), (verdict, spent) in zip(ATTACKS, compiling, verdicts, strict=True):
        rows = np.flatnonzero(standing)
        broken, their_time = fallen(name, model, x[rows], y[rows], batch_size, **options)
        standing[rows[broken]] = False
        line = row(verdict.robust, spent, standing, their_time) | {
            "cpu_compiling": round(float(compiled[0]), 1)
        }
        figures["in turn"][name] = line
        print("in turn", name, line, flush=True)
    if by_themselves:
        rows = np.flatnonzero(clean[0].robust)
        figures["alone"] = {}
        for name in ATTACKS:
            ((verdict, spent),) = timed(alone(ours, x, name, broken_by=clean[0].broken_by))
            broken, their_time = fallen(name, model, x[rows], y[rows], batch_size, **options)
            standing = clean[0].robust
            standing[rows[broken]] = False
            figures["alone"][name] = row(verdict.robust, spent, standing, their_time)
            print("alone", name, figures["alone"][name], flush=True)
    return figures


def alone(
    ours: Callable[..., Any],
    x: np.ndarray,
    name: str,
    broken_by: np.ndarray | None = None,
    **options: Any,
) -> Callable[[], Any]:
    """One attack of ours, as if the others were done already and had broken nothing."""
    skipped = (CLEAN, *(other for other in ATTACKS if other != name))
    fell = np.full(len(x), STANDS, "<U8") if broken_by is None else broken_by
    return functools.partial(ours, verdict=Verdict(skipped, fell, x), **options)


def row(
    robust: np.ndarray, spent: np.ndarray, theirs: np.ndarray, their_time: np.ndarray
) -> dict[str, float]:
    """One line of the table."""
    figures = {
        "robust": robust.mean(),
        "theirs": theirs.mean(),
        "differ": (robust != theirs).mean(),
        "cpu_ours": spent[0],
        "cpu_theirs": their_time[0],
        "seconds_ours": spent[1],
        "seconds_theirs": their_time[1],
    }
    return {name: round(float(value), 4) for name, value in figures.items()}


def clock() -> np.ndarray:
    """[CPU seconds of all threads, seconds]"""
    return np.array([time.process_time(), time.perf_counter()])


def timed(run: Callable[[], Any]) -> list[tuple[Verdict, np.ndarray]]:
    """The verdicts and the time that each took."""
    verdicts, began = [], clock()
    for verdict in run():
        now = clock()
        verdicts.append((verdict, now - began))
        began = now
    return verdicts


def main() -> None:
    """Prints the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--set", choices=BENCHES, default="digits")
    parser.add_argument("--norm", choices=("linf", "l2"), default="linf")
    parser.add_argument("--alone", action="store_true", help="each attack also by itself")
    parser.add_argument("--batch_size", type=int, default=120)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    figures = compare(BENCHES[args.set], args.norm, args.batch_size, args.alone)
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
