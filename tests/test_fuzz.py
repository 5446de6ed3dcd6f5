"""Configurations that nobody would write: each is refused in one line, or can be trained as it is.

Whole classes of mistakes, where ``test_mistakes.py`` has single ones with what is said of them.
"""

import copy
import dataclasses
import functools
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import tiny
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from adv_ssl import pipeline, stage, train
from adv_ssl.config import Config, parse
from adv_ssl.errors import UserError
from adv_ssl.estimate import program

METHODS = tuple(tiny.OF_METHOD)
TRACED: set[tuple[Any, ...]] = set()  # what decides a step's shapes: nothing is traced twice
WRONG = [
    None, True, False, "", "x", "a\nb", "\0", "nan", b"x", 1j, object, (), [], {}, (None,), (1, 2),
    (0.5, 0.25), (0.1, 0.2, 0.3), [["l2", 1, 1]], {"name": "x"}, float("nan"), float("inf"),
    "train[", "train[:0]", "train[:50]", "digits", "folder:/nowhere", "folder:", "no/such:1.0.0",
]  # fmt: skip
NUMBERS = st.one_of(
    st.integers(-3, 12),  # what lies between is a size that somebody may mean
    st.integers(min_value=2**31),
    st.floats(0.0, 1.0),
    st.floats(allow_nan=False),
)
CHANGES = st.one_of(
    NUMBERS.map(lambda value: ("set", value)),
    st.sampled_from(WRONG).map(lambda value: ("set", value)),
    st.sampled_from([("negate", None), ("take out", None), ("add beside", None)]),
)


@functools.cache
def plain(method: str) -> dict[str, Any]:
    """A configuration in which no group of keys is None, but for the attack of fine-tuning."""
    config = tiny.config(method=method).to_dict()
    del config["sources"]
    if method == "supervised":  # which the others do not have; there is no erasing under attack
        erasing = {"prob": 0.25, "area": (0.02, 0.3), "ratio": 0.3}
        mixing = {"mixup": 0.8, "cutmix": 1.0, "cutmix_prob": 0.5, "group": 4}
        randaugment = {"ops": 2, "prob": 0.5, "magnitude": 9.0, "magnitude_std": 0.5}
        config["finetune"]["task"] |= {"erasing": erasing, "mixing": mixing}
        config["finetune"]["augment"]["randaugment"] = randaugment
    return config


def paths(tree: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Of all groups and all leaves."""
    for key, value in tree.items():
        yield (*above, key)
        if isinstance(value, Mapping):
            yield from paths(value, (*above, key))


@st.composite
def configurations(draw: st.DrawFn) -> tuple[dict[str, Any], list[str]]:
    """(a configuration with one or two changes, the last keys of what was changed)."""
    method = draw(st.sampled_from(METHODS))
    config = copy.deepcopy(plain(method))
    touched = []
    for path in draw(st.lists(st.sampled_from(list(paths(config))), min_size=1, max_size=2)):
        *above, key = path
        group: Any = config
        for name in above:
            group = group.get(name) if isinstance(group, dict) else None
        if not isinstance(group, dict) or key not in group:
            continue  # an earlier change took it away
        kind, value = draw(CHANGES)
        if kind == "negate" and not isinstance(group[key], int | float):
            kind, value = "take out", None
        match kind:
            case "set":
                group[key] = value
            case "negate":
                group[key] = -group[key]
            case "take out":
                del group[key]
            case "add beside":
                group[f"{key}_"] = 1
        touched.append(key)
    return config, touched


def started(raw: dict[str, Any]) -> Config:
    """All that is done before the first step, but that arrays are shapes alone.

    Raises:
      UserError: as the run does.
    """
    config = parse(raw)
    stages = config.stages
    sets = pipeline._opened(config, stages)
    pipeline._check_data(stages, sets)
    for key in ("weights", "init_from"):
        pipeline._check_weights(config, key)
    for name, run in program.runs(config).items():
        next(stage.batches(name, config, run.stage, sets[name], 0, 1))
        shape = (config.model, config.dtype, config.remat, run.stage, run.classes)
        if shape in TRACED:
            continue
        TRACED.add(shape)
        step = functools.partial(train.train_step, program.recipe(run))
        made = program.shapes(program.recipe(run), run)
        state, metrics = jax.eval_shape(step, *made)
        assert jax.tree.structure(state) == jax.tree.structure(made[0]), name
        assert metrics["loss"].shape == ()
    return config


def as_given(parsed: Any, given: Any) -> bool:
    """Whether a frozen value is what was written, nothing added, dropped or bent."""
    if dataclasses.is_dataclass(parsed):
        fields = {f.name: getattr(parsed, f.name) for f in dataclasses.fields(parsed)}
        return set(given) - {"name"} <= set(fields) and all(
            as_given(value, given[name]) for name, value in fields.items()
        )
    if isinstance(parsed, tuple):
        return len(parsed) == len(given) and all(map(as_given, parsed, given))
    return parsed == given and isinstance(parsed, bool) == isinstance(given, bool)


def test_whatever_is_written_is_refused_in_a_line_or_can_be_trained():
    ends: Counter[str] = Counter()

    @settings(
        max_examples=240,
        derandomize=True,
        deadline=None,
        phases=[Phase.generate],  # to shrink a failure would trace hundreds of steps
        suppress_health_check=list(HealthCheck),
    )
    @given(configurations())
    def one(drawn):
        raw, touched = drawn
        try:
            config = started(copy.deepcopy(raw))
        except UserError as error:
            said = str(error)
            assert "\n" not in said.replace("a\nb", "")
            assert any(key in said for key in touched), (touched, said)
            ends["refused"] += 1
        else:
            assert as_given(config, raw)
            ends["started"] += 1

    one()
    assert ends["refused"] > 100, ends
    assert ends["started"] > 15, ends
