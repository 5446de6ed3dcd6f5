"""Scores a classifier by the rules of a suite.

python -m adv_ssl.evaluate --weights=PATH --suite=imagenet|transfer|cifar10 --workdir=DIR
python -m adv_ssl.evaluate --weights=PATH --suite=robust --workdir=DIR [--attack=autoattack]
    [--norm=l2 --radii=0.125,0.25,0.5] [--norm=linf --radii=1/255,4/255] [--data=SET --split=SPLIT]

PATH is the folder of a stage of a run, or a file of foreign weights, as adv_ssl.weights imports
them. The same command again scores what is still missing. Exit codes: 0 done; 2 a mistake, or
nothing could be scored, told in one line; 75 stopped, what was scored is kept.
"""

import math
import pathlib
from collections.abc import Sequence
from typing import Any

from absl import flags

from adv_ssl import checkpoint, command, provenance
from adv_ssl.command import leave
from adv_ssl.config import LARGEST_LINF
from adv_ssl.errors import UserError
from adv_ssl.evaluation import images, page, predict, robust, runner
from adv_ssl.evaluation.suites import SUITES
from adv_ssl.files import at_last, held, read_json, sha256, user_path, write_json
from adv_ssl.weights.transfer import import_weights

_WEIGHTS = flags.DEFINE_string("weights", None, "Folder of a stage of a run, or a file.")
_SUITE = flags.DEFINE_enum("suite", None, [*SUITES, "robust"], "What is scored.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the scores: a new one, or to go on in.")
_DATA_DIR = flags.DEFINE_string(
    "data_dir", "", "Folder of TFDS; default: $TFDS_DATA_DIR, else ~/tensorflow_datasets."
)
_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", 64, "Images at once, over all devices.", lower_bound=1
)
_IMAGES = flags.DEFINE_integer(
    "images", None, "The first so many of each set; default: all, robust: 5000.", lower_bound=1
)
_CORRUPTED = flags.DEFINE_string(
    "corrupted", None, "Keeps images corrupted on the fly in this folder, for the next model."
)
_SEED = flags.DEFINE_integer(
    "seed",
    0,
    "Random seed of corruptions made on the fly and of attacks.",
    lower_bound=0,
    upper_bound=2**32 - 1,
)
_DATA = flags.DEFINE_string("data", None, "robust: the set; default: ImageNet or CIFAR-10.")
_SPLIT = flags.DEFINE_string(
    "split", None, "robust: split of the set; default: its suite's, or test."
)
_RESIZE = flags.DEFINE_integer(
    "resize",
    None,
    "robust: short side before the central crop, pixels, 0: stretched; default: as the model's run "
    "or the suite has it.",
    lower_bound=0,
)
_ATTACK = flags.DEFINE_enum("attack", "apgd", [*robust.SEARCHES], "robust: the search.")
_NORM = flags.DEFINE_enum("norm", "l2", [*robust.RADII], "robust: of the radii.")
_RADII = flags.DEFINE_list(
    "radii", None, "robust: increasing radii such as 0.5 or 4/255, pixels in [0, 1]."
)

_OF_ROBUST = ("attack", "norm", "radii", "data", "split", "resize")


def _parse_flags(argv: Sequence[str]) -> list[str]:
    rest = command.parse_flags(argv)
    if rest[1:]:
        leave(f"unexpected argument {rest[1]!r}: options begin with --.")
    if not (_WEIGHTS.value and _SUITE.value and _WORKDIR.value):
        leave("--weights=PATH, --suite=NAME and --workdir=DIR are needed.")
    given = [name for name in _OF_ROBUST if flags.FLAGS[name].present]
    if _SUITE.value != "robust" and given:
        leave(f"--{given[0]} is of --suite=robust: --suite={_SUITE.value} does not read it.")
    if _CORRUPTED.value and _SUITE.value != "cifar10":
        leave("--corrupted is of --suite=cifar10: no other images are corrupted on the fly.")
    return rest


def _work(_: Sequence[str]) -> None:
    weights, workdir = user_path(str(_WEIGHTS.value)), user_path(str(_WORKDIR.value))
    kept = user_path(_CORRUPTED.value) if _CORRUPTED.value else None
    options = runner.Options(_DATA_DIR.value, _BATCH_SIZE.value, _SEED.value, _IMAGES.value, kept)
    curve = _curve()
    if not weights.exists():
        raise UserError(f"--weights={weights}: there is no such file or folder.")
    with held(workdir):
        claim = _claim(workdir, weights, options)
        model = predict.load(_stage(weights, workdir, claim["contents"]))
        if weights.is_dir() and checkpoint.fingerprint(weights) != claim["contents"]:
            raise UserError(
                f"--weights={weights} is still being trained: score it when training has finished."
            )
        if _SUITE.value == "robust":
            curve.check(model.architecture.image_size)
        write_json(workdir / "evaluation.json", claim)  # now that there is something to score
        provenance.record(workdir / "provenance.json", options.seed, {})
        with at_last(lambda: page.write(workdir)):
            if _SUITE.value == "robust":
                source, crop = images.to_attack(
                    model, _DATA.value, _SPLIT.value, _DATA_DIR.value, weights.parent, _RESIZE.value
                )
                robust.run(model, source, crop, curve, workdir)
            else:
                runner.run(str(_SUITE.value), model, options, workdir)
    print(workdir / page.NAME)


def _curve() -> robust.Curve:
    radii = robust.RADII[_NORM.value] if _RADII.value is None else _RADII.value
    images = robust.IMAGES if _IMAGES.value is None else _IMAGES.value
    return robust.Curve(
        _NORM.value,
        tuple(_radius(text, _NORM.value) for text in radii),
        _ATTACK.value,
        images,
        _SEED.value,
        _BATCH_SIZE.value,
    )


def _radius(text: str, norm: str) -> float:
    """0.5 or 4/255. UserError: no number, or one that is meant for the other norm."""
    try:
        over, slash, under = text.partition("/")
        radius = float(over) / (float(under) if slash else 1)
    except (ValueError, ZeroDivisionError):
        radius = math.nan
    if not math.isfinite(radius):
        raise UserError(f"--radii: {text!r} is no number; write 0.5 or 4/255.")
    if norm == "l2" and text.endswith("/255") and 0 < radius <= LARGEST_LINF:
        raise UserError(
            f"--radii={text}: an L2 radius is over the whole image, where this is next to nothing. "
            f"For a radius of each pixel take --norm=linf; if you mean it, write {radius:.4g}."
        )
    return radius


def _claim(workdir: pathlib.Path, weights: pathlib.Path, options: runner.Options) -> dict[str, Any]:
    """What makes ``workdir`` these weights' and this seed's. UserError: it is another's."""
    if (workdir / "config.json").exists():
        raise UserError(
            f"--workdir={workdir} is the folder of a run, which has results of its own: name "
            "another one, such as a new folder in it."
        )
    path = workdir / "evaluation.json"
    theirs = read_json(path, dict) if path.exists() else {}
    ours = {"weights": str(weights), "contents": _fingerprint(weights), "seed": options.seed}
    if _SUITE.value != "robust":  # whose records say of how many images they are
        ours["images"] = options.images
    if not theirs and (workdir / "results.json").exists():
        raise UserError(
            f"{workdir} has results.json without evaluation.json, so that nobody knows whose "
            "scores they are: choose another --workdir."
        )
    what = [key for key in ours if key != "weights"]  # contents tell, wherever they lie
    differing = [key for key in what if key in theirs and theirs[key] != ours[key]]
    if differing:
        said = {
            "contents": "of other weights",
            "seed": f"with --seed={theirs.get('seed')}",
            "images": f"of {theirs.get('images') or 'all'} images a set",
        }[differing[0]]
        raise UserError(
            f"{workdir} holds scores {said}: choose another --workdir, or remove that one."
        )
    return theirs | ours


def _fingerprint(weights: pathlib.Path) -> str | None:
    """Of the weights that are scored: to notice that they were trained on, or are another file."""
    if weights.is_file():
        return sha256(weights)
    return checkpoint.fingerprint(weights)


def _stage(weights: pathlib.Path, workdir: pathlib.Path, contents: str) -> pathlib.Path:
    """The folder of a stage: the one that is named, or what a foreign file is made into."""
    if weights.is_dir():
        return weights
    imported = workdir / f"weights-{contents[:12]}"  # another file's may lie there
    if not checkpoint.begun(imported):
        import_weights(weights, imported)
    if (imported / "import.json").exists():  # else the import was killed before its end
        _check_classifier(weights, read_json(imported / "import.json", dict, parameters=list))
    return imported


def _check_classifier(weights: pathlib.Path, report: dict[str, Any]) -> None:
    """UserError where none came of a foreign file."""
    if report["classes"] is None:
        heads = [row for row in report["parameters"] if "head" in row["source"] and row["how"]]
        raise UserError(
            f"--weights={weights} has no classifier to score"
            + "".join(f" ({row['source']}: {row['how']})" for row in heads[:1])
            + f"; its encoder can be fine-tuned: `python -m adv_ssl.weights import {weights} "
            "--workdir=W`, then --config.weights=W."
        )


if __name__ == "__main__":
    command.start(_work, _parse_flags)
