"""The two commands: a file of weights into a checkpoint, a checkpoint into a file of weights."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

import adv_ssl
from adv_ssl.checkpoint import POSITIONS, Checkpoints, State, begun, stage_meant
from adv_ssl.errors import UserError, disk_full, in_one_line
from adv_ssl.files import held, read_json, sha256, write_json
from adv_ssl.models.vit import MEAN, STD, Architecture, sincos_table
from adv_ssl.weights import files, fit, layouts, selftest
from adv_ssl.weights.layouts import Converted, Row

_HALF = (0.5, 0.5, 0.5)  # mean and std of Google's releases


@dataclasses.dataclass(frozen=True)
class Options:
    """What a file of weights does not tell; None: what it says itself, or what is usual."""

    image_size: int | None = None  # pixels a side that positions are to be for
    heads: int | None = None
    mean: Sequence[float | str] | None = None  # of pixels in [0, 1], red, green, blue
    std: Sequence[float | str] | None = None


def import_weights(
    path: pathlib.Path, workdir: pathlib.Path, options: Options = Options()
) -> dict[str, Any]:
    """Writes the encoder in ``path``, and its classifier if ours can be it, as a checkpoint.

    ``workdir`` is then what ``config.weights`` names. Returns the report of import.json: what
    became of every array of the file, and every parameter of ours that it has not.

    Raises:
      UserError: the file is none, damaged, unsafe, or not of our architecture; or workdir is taken.
    """
    raw = files.read(path)
    stated = _stated_beside(path)
    try:
        made, architecture, report = _fitted(raw, stated, options)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    report = {"source": path.name, "sha256": sha256(path)} | report
    report["parameters"] = [row._asdict() for row in made.rows]
    with held(workdir):
        if (workdir / "config.json").exists():
            raise UserError(f"{workdir} is the folder of a run: choose another --workdir.")
        _write(workdir, architecture, made.params)
        write_json(workdir / "import.json", report)
    return report


def _write(workdir: pathlib.Path, architecture: Architecture, params: layouts.Arrays) -> None:
    """Step 0 of a stage. UserError: there are steps already, or the disk is full."""
    state = State(jnp.int32(0), unflatten_dict(dict(params), sep="/"), None, None, jnp.int32(0))
    try:
        with Checkpoints(workdir / "checkpoints", architecture) as checkpoints:
            if checkpoints.latest() is not None:
                raise UserError(f"{workdir} has checkpoints already: choose another --workdir.")
            checkpoints.save(state, wait=True)
    except (OSError, ValueError) as error:  # orbax tells of a full disk by a ValueError
        reason = in_one_line(error)
        reason = "no space left on its disk" if disk_full(error) else reason
        raise UserError(f"{workdir} cannot be written to: {reason}.") from error


def _fitted(
    raw: files.Raw, stated: dict[str, Any], options: Options
) -> tuple[Converted, Architecture, dict[str, Any]]:
    """A file's arrays as parameters of ours, their architecture, and the head of the report."""
    made = layouts.convert(raw.arrays)
    if stated.get("global_pool", "avg") != "avg":
        layouts.drop_head(made, f"pools by {stated['global_pool']!r} there, by the mean here")
    old = _architecture(raw.manifest, made, options)
    if made.google:
        fit.compute_positions(made, old)
    missing = fit.missing_rows(made.params, old, made.optional)
    tested = "none: the file stores no outputs"
    if raw.manifest:
        tested = selftest.check(old, made.params, raw.manifest.get("outputs"))
    mean, std = _normalisation(raw.manifest or stated, made, options)
    fit.fold_normalisation(made, mean, std)
    size = old.image_size if options.image_size is None else options.image_size
    architecture = dataclasses.replace(old, image_size=size)
    fit.resize_positions(made, old, architecture.image_size)
    made.rows += missing
    head = made.params.get("head/kernel")
    report = {
        "architecture": dataclasses.asdict(architecture),
        "classes": None if head is None else head.shape[1],
        "task": raw.manifest.get("task"),
        "mean": [float(v) for v in mean],
        "std": [float(v) for v in std],
        "self_test": tested,
        "notes": made.notes,
    }
    return made, architecture, report


def _architecture(manifest: dict[str, Any], made: Converted, options: Options) -> Architecture:
    """The encoder's shape as the file states it, or as its arrays tell it."""
    stated = _stated_architecture(manifest) if manifest else None
    known = stated.heads if stated else made.heads
    if known and options.heads and known != options.heads:
        raise UserError(f"--heads={options.heads}: the file says {known}; leave the option out.")
    size = stated.image_size if stated else options.image_size
    found = fit.architecture_of(made.params, known or options.heads, size)
    if stated and found != stated:
        raise UserError(f"it states {stated}, its arrays are of {found}: export it again.")
    if not known and not options.heads:
        made.notes.append(f"{found.heads} heads: assumed, one for each {fit.HEAD_WIDTH} of width")
    return found


def _stated_architecture(manifest: dict[str, Any]) -> Architecture:
    try:
        shape = manifest["architecture"]
        return Architecture(
            **{f.name: int(shape[f.name]) for f in dataclasses.fields(Architecture)}
        )
    except (KeyError, TypeError, ValueError):
        raise UserError("its architecture is damaged: export the weights again.") from None


def _normalisation(
    stated: dict[str, Any], made: Converted, options: Options
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and std that the file's encoder expects: by option, as stated, or as usual."""
    usual = {"mean": _HALF, "std": _HALF} if made.google else {"mean": MEAN, "std": STD}
    values = []
    for name, default in usual.items():
        value, given = getattr(options, name), f"--{name}"
        if value is None:
            value, given = stated.get(name), f"its {name}"
        if value is None:
            value = default
            made.notes.append(f"{name} of pixels {', '.join(f'{v:g}' for v in value)}: assumed")
        values.append(_rgb(given, value))
    return values[0], values[1]


def _rgb(name: str, value: Any) -> np.ndarray:
    """A mean or deviation of each channel. UserError: it cannot be one of pixels in [0, 1]."""
    try:
        array = np.asarray(value, np.float32)
        valid = array.shape == (3,) and array.min() >= 0 and array.max() <= 1
    except (TypeError, ValueError):
        valid = False
    if not valid or ("std" in name and array.min() < 1e-3):
        raise UserError(
            f"{name}={value!r}: expected one number for red, green and blue, in units of pixels "
            "in [0, 1] (0.485,0.456,0.406; not 123.7,116.3,103.5)."
        )
    return array


def _stated_beside(path: pathlib.Path) -> dict[str, Any]:
    """What the config.json beside a file of timm's hub says of pixels and pooling."""
    beside = path.with_name("config.json")
    content = read_json(beside, dict) if beside.is_file() else {}
    config = content.get("pretrained_cfg")
    if not isinstance(config, dict):
        return {}
    stated: dict[str, Any] = config | content
    return {name: stated[name] for name in ("mean", "std", "global_pool") if name in stated}


def export_weights(folder: pathlib.Path, path: pathlib.Path) -> list[Row]:
    """Writes the newest parameters of the stage in ``folder`` to ``path``.

    A .safetensors has the encoder and classifier by timm's names, an .npz everything by ours.

    Raises:
      UserError: there is no whole checkpoint, the suffix is another one, or the disk is full.
    """
    if path.suffix not in (".safetensors", ".npz"):
        raise UserError(f"{path}: its name must end in .safetensors (timm's names) or .npz (ours).")
    if not begun(folder):
        raise UserError(f"{folder}: no checkpoint in it; {stage_meant(folder)}")
    with Checkpoints(folder / "checkpoints") as checkpoints:
        architecture = checkpoints.architecture()
        params = {k: np.asarray(v) for k, v in flatten_dict(checkpoints.params(), sep="/").items()}
        source = checkpoints.folder.absolute() / str(checkpoints.latest())
    manifest = _manifest(source, architecture, params)
    if path.suffix == ".safetensors":
        table = sincos_table(architecture.grid, architecture.width)[None]  # if it is none to learn
        arrays, rows = layouts.to_timm({POSITIONS: table} | params, architecture.patch)
    else:
        arrays, rows = params, [Row(name, name, "used") for name in params]
    files.write(path, arrays, manifest)
    return rows


def _manifest(
    source: pathlib.Path, architecture: Architecture, params: layouts.Arrays
) -> dict[str, Any]:
    """What a file says of itself; ``source``: the folder of a step, in that of a stage."""
    stage = source.parent.parent
    return {
        "adv_ssl": adv_ssl.__version__,
        "architecture": dataclasses.asdict(architecture),
        "task": _task(stage),
        "stage": stage.name,
        "step": int(source.name),
        "sha256": sha256(source),
        "mean": MEAN.tolist(),
        "std": STD.tolist(),
        "outputs": selftest.outputs(architecture, params),
    }


def _task(stage: pathlib.Path) -> str | None:
    """The task of a stage of a run, which the run's configuration names."""
    path = stage.parent / "config.json"
    options = read_json(path, dict).get(stage.name) if path.is_file() else None
    return options["task"]["name"] if options else None


def summary(rows: Sequence[Row]) -> list[str]:
    """The rows as lines: those with the same fate in one, with two of their names."""
    groups: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        groups.setdefault((row.status, row.how), []).append(row.source or row.target)
    lines = []
    for (status, how), names in groups.items():
        shown = ", ".join(names[:2]) + ", ..." * (len(names) > 2)
        lines.append(f"{status:>10} {len(names):4d}  {shown}" + f": {how}" * bool(how))
    return lines
