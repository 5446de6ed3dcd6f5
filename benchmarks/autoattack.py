"""AutoAttack here and in torchattacks, on one ViT: robust accuracy and time per attack.

    python -m benchmarks.autoattack --weights=DIR/finetune [--norm=linf] [--images=500]
    python -m benchmarks.autoattack --weights=runs/demo/finetune --data=digits --epsilon=0.03

Needs torch, timm and torchattacks (beside the package). --weights is a classifier of CIFAR-10, or
of --data, attacked on the first test images; timm's ViT gets the same weights. Each attack runs in
turn on the images that still stand. Times are in CPU seconds of all threads, which other work on
the machine changes least, and in seconds; --threads is torch's.
"""

import argparse
import functools
import json
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import torch
import torchattacks
from flax.traverse_util import flatten_dict
from timm.models.vision_transformer import VisionTransformer

from adv_ssl.data import sources
from adv_ssl.data.transforms import eval_crop
from adv_ssl.evaluation import predict
from adv_ssl.evaluation.predict import classifier
from adv_ssl.models.vit import MEAN, STD, Architecture
from adv_ssl.robustness.autoattack import ATTACKS, CLEAN, STANDS, Budget, Verdict, autoattack
from adv_ssl.weights.layouts import to_timm
from benchmarks import timing

PyTree = Any


class Bench(NamedTuple):
    """A classifier, and what it is attacked with."""

    architecture: Architecture
    params: PyTree
    images: np.ndarray  # [N, S, S, 3] in [0, 1]
    labels: np.ndarray
    epsilon: float


def attacked(weights: pathlib.Path, data: str, epsilon: float, images: int) -> Bench:
    """A trained classifier on the first images of a test set."""
    model, source = predict.load(weights), sources.load(data, "test", "").first(images)
    size = model.architecture.image_size
    x = np.stack([eval_crop(record["image"], 0, size) for record in source.records])
    labels = np.array([record["label"] for record in source.records], np.int32)
    return Bench(model.architecture, model.params, x.astype(np.float32) / 255, labels, epsilon)


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
        arrays, _ = to_timm(flatten_dict(params, sep="/"), a.patch)
        self.vit.load_state_dict(
            {name: torch.tensor(np.ascontiguousarray(array)) for name, array in arrays.items()}
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.vit((x - self.mean) / self.std)


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


def compare(bench: Bench, norm: str, batch_size: int, queries: int) -> dict[str, Any]:
    """The figures of both, one attack after another."""
    x, y, epsilon = bench.images, bench.labels, bench.epsilon
    model = TorchViT(bench.architecture, bench.params).eval()
    classify = classifier(bench.architecture)
    with torch.no_grad():
        their_logits = model(torch.tensor(x.transpose(0, 3, 1, 2))).numpy()
    logits = np.asarray(classify(bench.params, jnp.asarray(x)))
    print(f"largest difference of the logits: {np.abs(logits - their_logits).max():.1e}")

    ours = functools.partial(
        autoattack, classify, bench.params, x, y, np.arange(len(x)),
        norm=norm, epsilon=epsilon, batch_size=batch_size, budget=Budget(queries=queries),
    )  # fmt: skip
    options = {"norm": norm, "epsilon": epsilon, "queries": queries}
    compiling = [timed(alone(ours, x, name)) for name in ATTACKS]
    clean, *verdicts = timed(ours)
    standing = clean[0].robust
    figures: dict[str, Any] = {
        "norm": norm, "epsilon": epsilon, "images": len(x), "clean": standing.mean(),
        "in turn": {}, "circumstances": timing.circumstances(),
    }  # fmt: skip
    print(f"{norm} {epsilon:.4g}, {len(x)} images, clean {standing.mean():.2%}\n{HEAD}", flush=True)
    for name, ((_, compiled),), (verdict, spent) in zip(ATTACKS, compiling, verdicts, strict=True):
        rows = np.flatnonzero(standing)
        broken, their_time = fallen(name, model, x[rows], y[rows], batch_size, **options)
        standing[rows[broken]] = False
        line = row(verdict.robust, spent, standing, their_time)
        figures["in turn"][name] = line | {"cpu_compiling": round(float(compiled[0]), 1)}
        show(name, line)
    return figures


def alone(ours: Callable[..., Any], x: np.ndarray, name: str) -> Callable[[], Any]:
    """One attack of ours, at a radius where no step is made, as if the others were done already."""
    skipped = (CLEAN, *(other for other in ATTACKS if other != name))
    stands = Verdict(skipped, np.full(len(x), STANDS, "<U8"), x)
    return functools.partial(ours, verdict=stands, epsilon=100.0)


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
    """[CPU seconds of all threads, seconds]."""
    return np.array([time.process_time(), time.perf_counter()])


def timed(run: Callable[[], Any]) -> list[tuple[Verdict, np.ndarray]]:
    """The verdicts and the time that each took."""
    verdicts, began = [], clock()
    for verdict in run():
        now = clock()
        verdicts.append((verdict, now - began))
        began = now
    return verdicts


COLUMNS = ("robust", "theirs", "differ", "cpu_ours", "cpu_theirs", "seconds_ours", "seconds_theirs")
HEAD = " " * 16 + "".join(f"{name:>15}" for name in COLUMNS)


def show(name: str, line: Mapping[str, float]) -> None:
    """A line of the table: accuracies in percent, times in seconds."""
    cells = [f"{100 * line[c]:.1f}" for c in COLUMNS[:3]] + [f"{line[c]:.1f}" for c in COLUMNS[3:]]
    print(f"{name:<16}" + "".join(f"{cell:>15}" for cell in cells), flush=True)


def main() -> None:
    """Prints a table, then the same as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--weights", type=pathlib.Path, required=True, help="folder of a stage")
    parser.add_argument("--data", default="cifar10:3.0.2", help="of its test split")
    parser.add_argument("--norm", choices=("linf", "l2"), default="linf")
    parser.add_argument("--epsilon", type=float, help="by default 4/255 in L-inf, 0.5 in L2")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--queries", type=int, default=Budget().queries, help="of Square")
    parser.add_argument("--batch_size", type=int, default=100)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    epsilon = args.epsilon or {"linf": 4 / 255, "l2": 0.5}[args.norm]
    made = attacked(args.weights, args.data, epsilon, args.images)
    figures = compare(made, args.norm, args.batch_size, args.queries)
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
