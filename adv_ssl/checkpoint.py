"""Checkpoints: save without waiting, resume exactly, hand the encoder on.

Orbax writes each step into a folder of its own and renames it when it is whole, so that a
half-written one is never picked up. What a disk does to it later shows in the sums kept beside it.
"""

import dataclasses
import logging
import pathlib
import re
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax import Array, lax

from adv_ssl import hosts, sharding
from adv_ssl.errors import UserError, in_one_line, out_of_memory
from adv_ssl.files import read_json, sha256
from adv_ssl.models.vit import Architecture, is_sincos
from adv_ssl.optim import name_of
from adv_ssl.task import PyTree

POSITIONS = "encoder/pos_embed"
_WAIT = 2.0  # seconds, before what could not be read is tried once more
_PATTERN = re.compile(r"\[.*\]|\\")  # orbax takes such a path for a pattern, and finds nothing
_log = logging.getLogger("adv_ssl")


class State(NamedTuple):
    """All that a training step reads and writes; keys are derived from the seed and ``step``."""

    step: Array  # int32: steps done
    params: PyTree
    ema: PyTree  # the moving average, or None
    opt_state: PyTree
    bad_steps: Array  # int32: steps skipped in a row because they were not finite


class Checkpoints:
    """The checkpoints of one stage, in ``folder``; a context manager that waits for the last save.

    With ``architecture`` they are written, the newest two kept; without, only read. What others
    read of a checkpoint is its parameters, or, ``averaged``, their moving average.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        architecture: Architecture | None = None,
        averaged: bool = False,
    ):
        if _PATTERN.search(str(folder.absolute())):
            raise UserError(
                f"{folder}: no checkpoints below a name with [ ] or \\ in it: rename it."
            )
        self.folder = folder
        self._architecture = architecture
        self._result = "ema" if averaged else "params"
        options = ocp.CheckpointManagerOptions(max_to_keep=2, create=architecture is not None)
        self._manager = ocp.CheckpointManager(
            folder.absolute(),
            options=options,
            item_handlers={
                "params": ocp.StandardCheckpointHandler(),
                "rest": ocp.StandardCheckpointHandler(),
                "model": ocp.JsonCheckpointHandler(),
                "sums": ocp.JsonCheckpointHandler(),
            },
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.close()

    def latest(self) -> int | None:
        """The step of the newest checkpoint: a whole one, or one being written."""
        return self._manager.latest_step()

    def save(self, state: State, *, wait: bool = False) -> None:
        """Writes ``state`` in the background; ``wait`` returns when it is on disk."""
        step = int(state.step)
        if step != self.latest():
            assert self._architecture is not None
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    params=ocp.args.StandardSave(getattr(state, self._result)),
                    rest=ocp.args.StandardSave(self._rest(state)),
                    model=ocp.args.JsonSave(dataclasses.asdict(self._architecture)),
                    sums=ocp.args.JsonSave(
                        {
                            "params": sums(getattr(state, self._result)),
                            "rest": sums(self._rest(state)),
                        }
                    ),
                ),
            )
        if wait:
            self._manager.wait_until_finished()

    def restore(self, like: State) -> State:
        """The newest state that is whole, in the shapes, types and placement of ``like``.

        Newer ones that are damaged are moved aside.
        """
        asked = {
            "params": ocp.args.StandardRestore(getattr(like, self._result)),
            "rest": ocp.args.StandardRestore(self._rest(like)),
        }
        while True:
            try:
                return self._restored(asked)
            except UserError as error:
                if not self._has_older():
                    raise
                self._put_aside(str(error))

    def _restored(self, asked: dict[str, ocp.args.CheckpointArgs]) -> State:
        """All of the newest state. UserError, on all hosts: one of them cannot read it, twice."""

        def read() -> Any:
            return hosts.agreed(lambda: self._read(lambda _: asked))

        try:
            items = read()
        except UserError:  # networks fail and recover
            time.sleep(_WAIT)
            items = read()
        return State(**{**items["rest"], self._result: items["params"]})

    def _has_older(self) -> bool:
        return len(self._manager.all_steps()) > 1

    def _put_aside(self, why: str) -> None:
        """Moves the newest checkpoint out of the way of the one that will be written again."""
        if hosts.lead():
            damaged = self.folder / str(self.latest())
            aside = self.folder.parent / "damaged" / damaged.name
            aside.parent.mkdir(exist_ok=True)
            while aside.exists():
                aside = aside.with_name(aside.name + "_")
            damaged.rename(aside)
            _log.info("%s Done: it was moved to %s.", why, aside)
        hosts.agreed(lambda: None)  # none looks before it is moved
        self._manager.reload()

    def _rest(self, state: State) -> dict[str, PyTree]:
        return {**state._asdict(), self._result: None}

    def params(self) -> PyTree:
        """The newest parameters, whatever the task was, on all devices.

        UserError: damaged, or not finite.
        """
        params = self._read(lambda step: {"params": self._everywhere(step)})["params"]
        if not _finite(params):
            raise UserError(
                f"{self.folder / str(self.latest())} holds weights that are not finite: take "
                "another checkpoint."
            )
        return params

    def _everywhere(self, step: int) -> ocp.args.CheckpointArgs:
        """To read parameters by, whatever devices they were saved from."""
        whole = sharding.replicated(sharding.mesh())
        shapes = jax.tree.map(
            lambda saved: jax.ShapeDtypeStruct(saved.shape, saved.dtype, sharding=whole),
            self._manager.item_metadata(step)["params"],
        )
        return ocp.args.StandardRestore(shapes)

    def architecture(self) -> Architecture:
        """Of the encoder in the newest checkpoint."""
        return Architecture(**self._read(lambda _: {"model": ocp.args.JsonRestore()})["model"])

    def check(self, model: Architecture) -> None:
        """UserError if there is no whole checkpoint, or one of another architecture."""
        theirs = self._read(lambda _: {"model": ocp.args.JsonRestore()})["model"]
        ours = dataclasses.asdict(model)
        differing = [key for key in ours if theirs.get(key) != ours[key]]
        if differing:
            text = ", ".join(f"{k} is {theirs.get(k)} there and {ours[k]} here" for k in differing)
            raise UserError(f"{self.folder}: checkpoints of another architecture: {text}.")

    def _read(self, make: Callable[[int], dict[str, ocp.args.CheckpointArgs]]) -> Any:
        """The items that ``make`` asks for of the newest checkpoint. UserError: it is damaged."""
        step = self.latest()
        if step is None:
            raise UserError(
                f"{self.folder}: no whole checkpoint in it; name a stage that was trained."
            )
        try:
            items = {**make(step), "sums": ocp.args.JsonRestore()}
            read = self._manager.restore(step, args=ocp.args.Composite(**items))
            for name in items.keys() & read["sums"].keys():
                if sums(read[name]) != read["sums"][name]:
                    raise ValueError(f"the numbers in {name} are not those that were saved")
            return read
        except Exception as error:  # of a damaged file the libraries raise almost anything
            if out_of_memory(error):
                raise
            reason = in_one_line(error)
            older = "the checkpoint before it is taken"
            then = older if self._has_older() else "the stage is trained anew"
            raise UserError(
                f"{self.folder / str(step)} is damaged ({type(error).__name__}: {reason}): "
                f"move it away, and {then}."
            ) from error


@jax.jit
def _finite(tree: PyTree) -> Array:
    return jnp.all(jnp.stack([jnp.isfinite(array).all() for array in jax.tree.leaves(tree)]))


def sums(tree: PyTree) -> list[int]:
    """A check sum of each array: it depends on every bit and its place, not on the devices."""
    return [int(s) for s in jax.device_get(_sums(jax.tree.leaves(tree)))]


@jax.jit  # as one program: many small ones, each over all devices, can wait for one another
def _sums(arrays: list[Array]) -> list[Array]:
    return [_sum(array) for array in arrays]


def _sum(array: Array) -> Array:
    """Modulo 2^32, where no order of summation makes a difference."""
    bits = lax.bitcast_convert_type(array, jnp.uint32)
    place = jnp.zeros(array.shape, jnp.uint32)
    for axis, length in enumerate(array.shape):
        place = place * length + lax.broadcasted_iota(jnp.uint32, array.shape, axis)
    return (bits * (2 * place + 1)).sum(dtype=jnp.uint32)


def newest(stage: pathlib.Path) -> pathlib.Path | None:
    """The newest whole checkpoint in the folder of a stage; None: there is none."""
    folder = stage / "checkpoints"
    steps = [path for path in folder.iterdir() if path.name.isdigit()] if folder.is_dir() else []
    return max(steps, key=lambda path: int(path.name), default=None)


def fingerprint(stage: pathlib.Path) -> str | None:
    """Of a stage's newest weights: to notice that they are not the same any more."""
    step = newest(stage)
    return None if step is None else f"step {step.name}, {sha256(step / 'params')[:16]}"


def begun(stage: pathlib.Path) -> bool:
    """Whether the folder of a stage holds a whole checkpoint."""
    return newest(stage) is not None


def in_part(stage: pathlib.Path) -> str:
    """How far a stage is, such as "step 2,300 of 3,000"; "": to its end, or nobody knows."""
    facts, found = stage / "stage.json", newest(stage)
    if found is None or not facts.exists():
        return ""
    steps = read_json(facts, dict, steps=int)["steps"]
    return f"step {int(found.name):,} of {steps:,}" if int(found.name) < steps else ""


def stage_meant(folder: pathlib.Path, stage: str = "finetune") -> str:
    """What to say of a folder that is no stage's, where a stage of that name is likely meant."""
    near = (folder / stage, folder.parent)
    meant = [path for path in near if begun(path)]
    return f"did you mean {meant[0]}?" if meant else "name the folder of a stage of a run."


class HandedOver(NamedTuple):
    """What became of one parameter at a hand-off."""

    name: str
    shape: tuple[int, ...]
    status: str  # carried, fresh or dropped
    reason: str


def hand_over(old: PyTree, new: PyTree) -> tuple[PyTree, list[HandedOver]]:
    """``new`` with the encoder of ``old`` in it, and what became of every parameter (B11, B12).

    The encoder is carried; what only the new task has stays as freshly drawn, its head always
    (B11); what only the old task had is dropped.

    Raises:
      UserError: the shape of a shared parameter differs.
    """
    olds = {name_of(p): leaf for p, leaf in jax.tree_util.tree_leaves_with_path(old)}
    report: list[HandedOver] = []

    def carry(path: tuple[Any, ...], fresh: Array) -> Any:
        name = name_of(path)
        if not name.startswith("encoder/"):
            report.append(HandedOver(name, fresh.shape, "fresh", "belongs to the new task"))
            return fresh
        if name not in olds:
            constant = name == POSITIONS  # and this is what it starts from (B6, B7)
            reason = "the same constant there" if constant else "not in the checkpoint"
            report.append(HandedOver(name, fresh.shape, "fresh", reason))
            return fresh
        if olds[name].shape != fresh.shape:
            raise UserError(
                f"the checkpoint does not fit: {name} is {olds[name].shape} there "
                f"and {fresh.shape} here."
            )
        report.append(HandedOver(name, fresh.shape, "carried", ""))
        return np.asarray(olds[name])

    news = {name_of(p) for p, _ in jax.tree_util.tree_leaves_with_path(new)}
    if POSITIONS in olds.keys() - news and not is_sincos(olds[POSITIONS][0]):
        raise UserError(
            "the checkpoint has trained positions, and learned_positions=False here would replace "
            "them by the sin-cos table: set it to True."
        )
    merged = jax.tree_util.tree_map_with_path(carry, new)
    carried = {row.name for row in report if row.status == "carried"}
    report += [
        HandedOver(name, leaf.shape, "dropped", "belongs to the old task")
        for name, leaf in olds.items()
        if name not in carried
    ]
    return merged, report
