"""python -m benchmarks.run [PART ...] [--methods=byol,mae] [--rounds=N]

A table, and benchmarks/results.json, in which each part renews its own section.
"""

import argparse
import json
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax

from adv_ssl import recipes, runtime
from adv_ssl.files import write_json
from benchmarks import compare, inference, inputs, startup, timing
from benchmarks.compare import torch_steps
from benchmarks.steps import Case

OUTPUT = pathlib.Path(__file__).parent / "results.json"
NO_TORCH = (
    "PyTorch is not installed: only our half is measured; pip install -e '.[bench]' adds the other."
)
Options = argparse.Namespace
Measure = Callable[[Options], Iterator[tuple[str, Any]]]


def _steps(scale: str, dtype: str, rounds: int) -> Measure:
    def measure(options: Options) -> Iterator[tuple[str, Any]]:
        for method in options.methods:
            case = Case(method, scale, dtype)
            yield method, compare.method(case, options.rounds or rounds, scale == "imagenet")
            jax.clear_caches()

    return measure


def _evaluation(options: Options) -> Iterator[tuple[str, Any]]:
    for scale, rounds in (("cifar10", 5), ("imagenet", 3)):
        case, times = Case("supervised", scale), options.rounds or rounds
        yield scale, inference.both(case, times)
        yield f"{scale}, from files", inference.from_files(case, times)


def _input(options: Options) -> Iterator[tuple[str, Any]]:
    yield "stages", inputs.stages(options.rounds or 7)
    yield "whole", inputs.whole(options.rounds or 7)


def _startup(options: Options) -> Iterator[tuple[str, Any]]:
    for recipe in ("supervised_nominal", "supervised_l2"):
        yield recipe, startup.cold_and_warm(recipe)


class Part(NamedTuple):
    """What is measured, and how."""

    what: str
    measure: Measure


PARTS = {
    "small": Part(
        "Steps of a ViT of width 128 and 4 blocks on 64 images of 32 pixels, float32.",
        _steps("cifar10", "float32", 7),
    ),
    "small-bfloat16": Part("The same with products in bfloat16.", _steps("cifar10", "bfloat16", 5)),
    "vit-b16": Part(
        "Steps of ViT-B/16 on 8 images of 224 pixels, float32.", _steps("imagenet", "float32", 3)
    ),
    "vit-b16-bfloat16": Part(
        "The same with products in bfloat16.", _steps("imagenet", "bfloat16", 3)
    ),
    "input": Part(
        "From JPEGs of 288 x 384 pixels to batches of 224: each stage in one thread, and all.",
        _input,
    ),
    "startup": Part(
        "Seconds to the first step of ViT-B/16, 8 images, float32, in a fresh process.", _startup
    ),
    "evaluation": Part(
        "Classes that the small ViT and ViT-B/16 say: clean, under PGD-10, from files; float32.",
        _evaluation,
    ),
}


def _measure(part: str, options: Options) -> None:
    """Writes and prints each figure as soon as it is there."""
    section: dict[str, Any] = {"what": PARTS[part].what}
    for name, figures in PARTS[part].measure(options):
        section |= {name: figures | {"circumstances": timing.circumstances()}}
        results = json.loads(OUTPUT.read_text()) if OUTPUT.exists() else {}
        write_json(OUTPUT, results | {part: results.get(part, {}) | section})
        _print(f"{part}, {name}", figures)


def _print(title: str, figures: dict[str, Any]) -> None:
    """Lines of the table; a median has its quartiles behind it."""
    print(f"\n{title}  (load {timing.circumstances()['load'][0]})")
    for name, value in _leaves(figures):
        if isinstance(value, dict):
            spread = f"  {value['q1']:>10,.4g} to {value['q3']:,.4g}"
            by = f"   by FLOPs {value['by_flops']}" if "by_flops" in value else ""
            print(f"  {name:<42} {value['median']:>12,.4g}{spread}{by}", flush=True)
        else:
            print(f"  {name:<42} {value:>12,.4g}", flush=True)


def _leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        name = f"{prefix} {key}".strip()
        if isinstance(value, dict) and "median" not in value:
            yield from _leaves(value, name)
        else:
            yield name, value


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the parts that are asked for: all by default."""
    lines = "\n".join(f"  {name:<18} {part.what}" for name, part in PARTS.items())
    parser = argparse.ArgumentParser(
        "python -m benchmarks.run",
        description="Our steps against PyTorch's, input, start-up, evaluation.\n\n" + lines,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "part", nargs="*", choices=[*PARTS, []], metavar="PART", help="all by default"
    )
    parser.add_argument("--methods", type=lambda s: s.split(","), default=recipes.METHODS)
    parser.add_argument("--rounds", type=int, help="measurements of each; by default by the part")
    options = parser.parse_args(argv)
    if options.rounds == 1:
        parser.error("--rounds: 2 or more, for a spread")
    if unknown := set(options.methods) - set(recipes.METHODS):
        parser.error(f"--methods: {', '.join(unknown)}: choose from {', '.join(recipes.METHODS)}")
    runtime.prepare()
    if not torch_steps:
        print(NO_TORCH)
    for part in options.part or PARTS:
        _measure(part, options)


if __name__ == "__main__":
    main()
