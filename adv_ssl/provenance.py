"""What a number was made with: versions, commit, devices, seed and every start of the run."""

import datetime
import pathlib
import platform
import shlex
import subprocess
import sys
from importlib import metadata
from typing import Any

import jax

import adv_ssl
from adv_ssl.errors import UserError
from adv_ssl.files import read_json, write_json
from adv_ssl.markup import Html, join, tag

_PACKAGES = (
    "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets",
    "array-record", "dm-pix", "numpy", "pillow", "opencv-python-headless", "scikit-learn",
)  # fmt: skip


def _commit() -> str | None:
    """Of the checkout this package is part of; None: there is none.

    An installed package may lie in the checkout of something else, which does not track it.
    """
    return _git("ls-files", "--error-unmatch", "errors.py") and _git("rev-parse", "HEAD")


def _git(*arguments: str) -> str | None:
    """The answer of git in the folder of this package, or None where it has none."""
    folder = pathlib.Path(adv_ssl.__file__).parent
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _version(package: str) -> str | None:
    """None: it is not installed, as where another package brings the same module."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def record(path: pathlib.Path, seed: int, data: dict[str, str]) -> None:
    """Writes provenance.json; a run that resumes adds its start to those before.

    Args:
      path: of the file.
      seed: of the run.
      data: what each split holds, in words. The order of the images depends on their number.

    Raises:
      UserError: the run was started on other data, or the file is damaged.
    """
    before: dict[str, Any] = {"starts": [], "data": {}}
    if path.exists():
        before = read_json(path, dict, starts=list, data=dict)
    for split, holds in before["data"].items():
        if split in data and data[split] != holds:
            raise UserError(
                f"the data changed under {path.parent}: {split} held {holds} when the run began "
                f"and holds {data[split]} now: put it back, or choose another --workdir."
            )
    commit = _commit()
    start = {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", *sys.orig_argv[1:]]),  # as it was given
        "commit": commit,
    }
    write_json(
        path,
        {
            "adv_ssl": adv_ssl.__version__,
            "commit": commit,
            "dirty": bool(commit and _git("status", "--porcelain", "--", ".")),
            "python": platform.python_version(),
            "platform": platform.platform(),
            "packages": {name: _version(name) for name in _PACKAGES},
            "devices": [str(device) for device in jax.devices()],
            "seed": seed,
            "data": data,
            "starts": [*before["starts"], start],
        },
    )


def shown(path: pathlib.Path) -> Html:
    """A provenance.json for a page."""
    made = read_json(path, dict)
    facts = {
        "adv_ssl": made["adv_ssl"],
        "commit": (made["commit"] or "unknown: not a git checkout")
        + (" with uncommitted changes" if made["dirty"] else ""),
        "Python": made["python"],
        "devices": ", ".join(made["devices"]),
        "seed": made["seed"],
        "packages": ", ".join(f"{name} {version}" for name, version in made["packages"].items()),
    }
    pairs = [join(tag("dt", key), tag("dd", value)) for key, value in facts.items()]
    starts = [
        tag("li", tag("small", start["time"]), tag("br"), tag("code", start["command"]))
        for start in made["starts"]
    ]
    return join(tag("dl", *pairs, class_="facts"), tag("h3", "Starts"), tag("ol", *starts))
