"""Estimates: FLOPs against XLA's count and section H, the reading of compiled programs, costs."""

import dataclasses
import functools
import importlib.util
import json
import sys

import commands
import jax
import jax.numpy as jnp
import pytest
import tiny

from adv_ssl import recipes, sharding, train
from adv_ssl.config import parse
from adv_ssl.errors import UserError
from adv_ssl.estimate import __main__ as command_line
from adv_ssl.estimate import costs, here, hlo, pod, program
from adv_ssl.estimate.chips import CHIPS, topology
from adv_ssl.estimate.flops import matmul_flops
from adv_ssl.estimate.hlo import Traffic
from adv_ssl.estimate.pod import Compiled

# Wide enough for matrix products to be nearly all there is to count.
WIDE = {
    "model__width": 256, "model__heads": 4, "model__mlp": 1024, "model__depth": 1,
    "pretrain__batch_size": 8, "finetune__batch_size": 8,
}  # fmt: skip
OF_METHOD = {
    "mae": {
        "pretrain__task__width": 256, "pretrain__task__heads": 4, "pretrain__task__mlp": 1024,
        "model__patch": 4,
    },
}  # fmt: skip


def run_of(method: str, steps: int | None, **changes) -> program.Run:
    """Pre-training of a small but wide ViT; ``steps`` of the attack, None: no attack."""
    if steps is not None:
        changes["pretrain__attack__steps"] = steps
    threat = "nominal" if steps is None else "l2"
    raw = tiny.config(threat, method, **WIDE | OF_METHOD.get(method, {}) | changes)
    return program.runs(parse(raw.to_dict()))["pretrain"]


def counted(function, *shapes) -> int:
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return matmul_flops(jax.make_jaxpr(function)(*arrays).jaxpr)


def by_xla(run: program.Run) -> float:
    """XLA's count of the step before it optimizes: element-wise operations too, loops once."""
    made = program.recipe(run)
    step = jax.jit(functools.partial(train.train_step, made))
    return step.lower(*program.shapes(made, run)).cost_analysis()["flops"]


def test_sets_are_estimated_without_their_images(tmp_path):
    """By the facts about them; a set of which nobody trains is looked for."""

    def run(name: str, split: str) -> program.Run:
        changes = {"data__name": name, "data__dir": str(tmp_path), "pretrain__split": split}
        raw = tiny.config(**changes, finetune__split=split)
        return program.runs(parse(raw.to_dict()))["pretrain"]

    made = run("sun397/tfds:4.0.0", "train+validation[:5]")
    assert (made.images, made.classes) == (76_128 + 5, 397)
    with pytest.raises(UserError, match="'imagenet_a' is not prepared"):
        run("imagenet_a", "train")


# ---- FLOPs ----------------------------------------------------------------------------------


def test_flops_of_products_by_hand():
    assert counted(lambda a, b: a @ b, (3, 5), (5, 7)) == 2 * 3 * 5 * 7
    assert counted(jax.vmap(jnp.dot), (4, 3, 5), (4, 5, 7)) == 4 * 2 * 3 * 5 * 7
    convolve = functools.partial(jax.lax.conv, window_strides=(1, 1), padding="VALID")
    assert counted(convolve, (2, 3, 8, 8), (5, 3, 3, 3)) == 2 * (2 * 5 * 6 * 6) * (3 * 3 * 3)


def test_loops_count_as_often_as_they_run():
    def looped(a, b):
        return jax.lax.scan(lambda x, _: (jnp.tanh(x @ b), None), a, length=6)[0]

    assert counted(looped, (3, 5), (5, 5)) == 6 * 2 * 3 * 5 * 5
    assert counted(jax.checkpoint(looped), (3, 5), (5, 5)) == 6 * 2 * 3 * 5 * 5


def test_a_loop_of_unknown_length_is_not_guessed():
    def until(a, b):
        return jax.lax.while_loop(lambda x: x.sum() < 1, lambda x: x @ b, a)

    with pytest.raises(ValueError, match="while"):
        counted(until, (3, 5), (5, 5))


def test_the_encoder_of_the_paper():
    """H: 17.56 GMAC forward, and three times that a nominal step."""
    raw = recipes.recipe("rotnet", "nominal", "imagenet").to_dict()
    run = program.runs(parse(raw))["pretrain"]
    assert run.steps == 93_600
    tokens, width = 197, 768
    block = 12 * tokens * width**2 + 2 * tokens**2 * width
    forward = 12 * block + 196 * width**2 + 4 * width
    assert forward == pytest.approx(17.56e9, rel=0.002)
    # Of the first layer no gradient of the pixels is taken.
    step = 2 * (3 * forward - 196 * width**2)
    assert program.flops(run) / run.stage.batch_size == pytest.approx(step, rel=1e-3)


@pytest.mark.parametrize(("method", "attacked"), [("rotnet", False), ("mae", True), ("byol", True)])
def test_flops_against_xla(method, attacked):
    """With one step of the attack: XLA takes a loop's body once."""
    run = run_of(method, 1 if attacked else None)
    assert program.flops(run) == pytest.approx(by_xla(run), rel=0.06)


@pytest.mark.parametrize("method", ["rotnet", "mae", "byol"])  # supervised is as rotnet
def test_the_price_of_the_attack(method):
    """H: (3 + 2K)/3 of the nominal step, BYOL (8 + 4K)/8; attention costs a little more."""
    nominal, two = (program.flops(run_of(method, steps)) for steps in (None, 2))
    assert two / nominal == pytest.approx(2.0 if method == "byol" else 7 / 3, rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("method", recipes.METHODS)
def test_the_price_of_the_attack_at_the_papers_scale(method, monkeypatch):
    """H: of ViT-B/16, by the matrix products and by XLA's count of all that is computed."""

    def of(threat: str) -> program.Run:
        raw = recipes.recipe(method, threat, "imagenet")
        raw.pretrain.batch_size = 8
        if method == "supervised":
            raw.pretrain.task.mixing.group = 8
        return program.runs(parse(raw.to_dict()))["pretrain"]

    # As a loop, the attack would be counted as one step.
    monkeypatch.setattr(jax.lax, "scan", functools.partial(jax.lax.scan, unroll=True))
    for count in (program.flops, by_xla):
        ratio = count(of("l2")) / count(of("nominal"))
        assert ratio == pytest.approx(2.0 if method == "byol" else 7 / 3, rel=0.05)


def test_each_step_of_the_attack_costs_the_same():
    none, zero, one, three = (program.flops(run_of("rotnet", steps)) for steps in (None, 0, 1, 3))
    assert none == zero
    assert three - none == 3 * (one - none)


# ---- compiled programs ----------------------------------------------------------------------

PROGRAM = """\
HloModule jit_train_step, is_scheduled=true

%adder (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%inside (p: f32[8,128]) -> f32[2,128] {
  %p = f32[8,128]{1,0:T(8,128)} parameter(0)
  %all-reduce.2 = f32[8,128]{1,0:T(8,128)} all-reduce(%p), replica_groups={{0,1,2,3}}, to_apply=%adder
  ROOT %slice.1 = f32[2,128]{1,0:T(8,128)} slice(%all-reduce.2), slice={[0:2], [0:128]}
}

%rounds (s: (s32[], bf16[4,128])) -> pred[] {
  %limit = s32[]{:T(128)} constant(3)
  %s = (s32[]{:T(128)}, bf16[4,128]{1,0:T(8,128)(2,1)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%s), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %limit), direction=LT
}

%round (s.1: (s32[], bf16[4,128])) -> (s32[], bf16[4,128]) {
  %s.1 = (s32[]{:T(128)}, bf16[4,128]{1,0:T(8,128)(2,1)}) parameter(0)
  %x = bf16[4,128]{1,0:T(8,128)(2,1)} get-tuple-element(%s.1), index=1
  %fusion.1 = bf16[4,128]{1,0:T(8,128)(2,1)S(1)} fusion(%x), kind=kLoop, calls=%adder, metadata={op_name="jit(train_step)/while/mul"}, backend_config={"window_config":{"estimated_cycles":"100"}}
  %all-reduce.1 = bf16[4,128]{1,0:T(8,128)(2,1)} all-reduce(%fusion.1), replica_groups={{0,1,2,3}}, to_apply=%adder
  ROOT %tuple.1 = (s32[]{:T(128)}, bf16[4,128]{1,0:T(8,128)(2,1)}) tuple(%i, %all-reduce.1)
}

%found (s.2: (s32[], bf16[4,128])) -> pred[] {
  %most = s32[]{:T(128)} constant(99)
  %s.2 = (s32[]{:T(128)}, bf16[4,128]{1,0:T(8,128)(2,1)}) parameter(0)
  %j = s32[]{:T(128)} get-tuple-element(%s.2), index=0
  %few = pred[]{:T(512)} compare(%j, %most), direction=LT
  ROOT %and = pred[]{:T(512)} and(%few, %few)
}

ENTRY %main (w: f32[8,128]) -> f32[2,128] {
  %w = f32[8,128]{1,0:T(8,128)} parameter(0)
  %start = (s32[]{:T(128)}, bf16[4,128]{1,0:T(8,128)(2,1)}) custom-call(), custom_call_target="AllocateBuffer"
  %copy-start = (f32[8,128]{1,0:T(8,128)}, f32[8,128]{1,0:T(8,128)S(1)}, u32[]{:S(2)}) copy-start(%w)
  %copy-done = f32[8,128]{1,0:T(8,128)S(1)} copy-done(%copy-start)
  %while.1 = (s32[]{:T(128)}, bf16[4,128]{1,0:T(8,128)(2,1)}) while(%start), condition=%rounds, body=%round
  %while.2 = (s32[]{:T(128)}, bf16[4,128]{1,0:T(8,128)(2,1)}) while(%while.1), condition=%found, body=%round
  %kernel = f32[8,128]{1,0:T(8,128)S(1)} custom-call(%copy-done), custom_call_target="tpu_custom_call", backend_config={"body":"TUzv"}
  %gather = (f32[8,128]{1,0:T(8,128)}, f32[32,128]{1,0:T(8,128)}) all-gather-start(%w), dimensions={0}
  %gathered = f32[32,128]{1,0:T(8,128)} all-gather-done(%gather)
  ROOT %fusion.2 = f32[2,128]{1,0:T(8,128)} fusion(%w), kind=kCustom, calls=%inside, backend_config={"window_config":{"estimated_cycles":"7"}}
}
"""  # noqa: E501


def test_cycles_by_hand():
    """100 in a loop of three rounds and in one of unknown length, which counts once; and 7."""
    assert sum(i.cycles for i in hlo.instructions(PROGRAM)) == 4 * 100 + 7


def test_bytes_by_hand():
    """What is in fast memory, marked S(1), does not count, nor what is only named anew."""
    wide, narrow = 8 * 128 * 4, 4 * 128 * 2
    copy, kernel, gather, last = wide, 0, wide, wide + 2 * 128 * 4
    start, rounds = (
        4 + narrow,
        4 * (narrow + narrow),
    )  # the fusion's operand, the collective's result
    by_hand = start + copy + rounds + kernel + 2 * gather + last
    assert sum(i.moved for i in hlo.instructions(PROGRAM)) == by_hand


def test_traffic_by_hand():
    assert hlo.traffic(PROGRAM) == [
        Traffic("all-gather", "f32", 1, 32 * 128 * 4),
        Traffic("all-reduce", "bf16", 4, 4 * 4 * 128 * 2),
        Traffic("all-reduce", "f32", 1, 8 * 128 * 4),
    ]


SCHEDULE = """\
Schedule analysis:
\ttotal scheduled bundles:    310
\tempty scheduled bundles:      7
\t300.00 scheduled bundles (100.00%): %kernel = f32[8,128]{1,0:T(8,128)S(1)} custom-call(%copy-done), custom_call_target="tpu_custom_call", backend_config={"body":"TUzv"}
"""  # noqa: E501


def test_custom_kernels_by_hand():
    """The compiler's schedule for each of eight rows; without a schedule, one that is not known."""
    run = hlo.instructions(PROGRAM)
    caller, other = SCHEDULE.replace("300", "  2"), SCHEDULE.replace("tpu_custom_call", "other")
    bundles = hlo.schedules(["", SCHEDULE, caller, other.replace("TUzv", "else")])
    assert bundles == {"TUzv": 300}
    assert hlo.schedules([caller]) == {"TUzv": 2}  # small numbers are set right
    assert hlo.kernels(run, bundles) == (8 * 300, 0)
    assert hlo.kernels(run, {}) == (0, 1)


# ---- costs ----------------------------------------------------------------------------------


def test_costs_by_hand():
    """A second of cycles; 2 * 3/4 of 1e9 bytes out and in, at 200e9 bytes/s of both together."""
    chips, clock = topology("v5e:2x2"), CHIPS["v5e"].hertz
    traffic = (Traffic("all-reduce", "f32", 1, 10**9),)
    compiled = Compiled(True, 2**30, round(clock), 0, round(819e9 / 2), traffic)
    made = costs.OnPod(chips, compiled, flops=round(4 * 197e12 * 0.4))
    assert made.compute == pytest.approx(1.0)
    assert made.share == pytest.approx(0.4)
    assert made.by_bytes == pytest.approx(0.5)
    assert made.exchange == pytest.approx(1.5e9 / 100e9)
    run = run_of("rotnet", None, pretrain__steps=3600)
    estimate = costs.Estimate(run, 1, pod=made)
    assert estimate.hours == pytest.approx(1.015)
    assert estimate.chip_hours == pytest.approx(4 * 1.015)
    full = estimate._replace(pod=made._replace(compiled=dataclasses.replace(compiled, fits=False)))
    assert full.seconds is full.chip_hours is None


@pytest.mark.parametrize(
    ("room", "found"), [(0, 0), (1, 1), (3, 2), (64, 64), (100, 64), (300, 256)]
)
def test_the_largest_batch(room, found):
    tried = []

    def fits(n):
        tried.append(n)
        return n <= room

    assert costs.doubled(fits, fewest=1, guess=64) == found
    assert len(tried) == len(set(tried)) <= 8


def test_a_timed_step(monkeypatch):
    """On a CPU of as many images as are not too many FLOPs, in whole parts of a batch."""
    run = run_of("rotnet", 2, model__width=16, model__mlp=16, pretrain__accumulation=2)
    monkeypatch.setattr(here, "CPU_STEP", program.flops(run) * 5.5 / 8)
    monkeypatch.setattr(here.statistics, "median", lambda seconds: 1.5 if min(seconds) > 0 else 0)
    made = costs.timed(run, "pretrain")
    assert made.here.batch_size == 4
    assert made.seconds == 1.5 * 8 / 4
    assert made.hours == made.seconds * 6 / 3600
    assert made.chip_hours is None
    state = program.shapes(program.recipe(run), run)[0]
    assert made.here.memory > sum(leaf.size * 4 for leaf in jax.tree.leaves(state.params))


def test_a_timed_step_has_two_images_a_part_where_they_are_compared(monkeypatch):
    """BYOL's batch norm is over the images of a part."""
    run = run_of("byol", None, pretrain__accumulation=4, pretrain__batch_size=16)
    monkeypatch.setattr(here, "CPU_STEP", 1.0)
    assert here.timed(run, 10**12).batch_size == 8


# ---- the step is training's -----------------------------------------------------------------


def test_the_program_is_on_the_mesh_it_is_told():
    mesh = sharding.mesh_of(jax.devices())
    made = program.make(run_of("rotnet", 2), mesh)
    assert {leaf.sharding.mesh for leaf in jax.tree.leaves(made.arguments)} == {mesh}
    image = made.arguments[1]["image"]
    assert (image.shape, image.sharding.spec) == (
        (8, 16, 16, 3),
        sharding.batch_sharding(mesh).spec,
    )


def test_published_sizes_need_no_data(tmp_path):
    config = recipes.recipe("byol", "l2", "imagenet")
    config.data.dir = str(tmp_path)
    runs = program.runs(parse(config.to_dict()))
    assert {name: run.steps for name, run in runs.items()} == {
        "pretrain": 93_600,
        "finetune": 250_200,
    }
    config.finetune.split = "train[:10%]"
    config.finetune.steps = None
    made = program.runs(parse(config.to_dict()))["finetune"]
    assert (made.images, made.classes) == (128_117, 1000)
    config.finetune.split = "validation"
    with pytest.raises(UserError, match="is not prepared"):
        program.runs(parse(config.to_dict()))


# ---- mistakes -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["v5e", "v9:8x8", "v5e:8", "v5e:0x8", "v5e:2x2x2", "v5p:2x2", "x"])
def test_no_such_topology(name):
    with pytest.raises(UserError, match=rf"--topology={name}: expected CHIP:AxB"):
        topology(name)


def test_topologies():
    assert topology("v5e:8x8").chips == 64
    assert topology("v5p:2x2x4").chips == 16
    assert all(chip.flops / chip.bandwidth > 100 for chip in CHIPS.values())


def test_a_missing_compiler_is_one_line(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[estimate\]'$"):
        pod.compiled({}, "pretrain", topology("v5e:8x8"))


def test_a_batch_that_the_chips_do_not_divide():
    raw = tiny.config(pretrain__batch_size=24).to_dict()
    with pytest.raises(UserError, match=r"config\.pretrain\.batch_size=24: .* by the 64 chips"):
        costs.on_pod(raw, "pretrain", topology("v5e:8x8"))


def test_a_batch_whose_parts_the_chips_do_not_divide():
    """As the run itself refuses it: each part is spread over all chips."""
    raw = tiny.config(pretrain__batch_size=64, pretrain__accumulation=2).to_dict()
    with pytest.raises(UserError, match="by the 64 chips of --topology=v5e:8x8 times accumul"):
        costs.on_pod(raw, "pretrain", topology("v5e:8x8"))


@pytest.mark.parametrize(("devices", "unit"), [(1, 8), (4, 8), (8, 16), (3, 24)])
def test_a_batch_is_whole_groups_on_every_device_in_every_part(devices, unit):
    config = tiny.config(method="supervised", pretrain__accumulation=2)
    assert parse(config.to_dict()).pretrain.unit(devices) == unit  # groups of 4


def test_a_batch_that_the_data_does_not_fill():
    raw = tiny.config(pretrain__batch_size=2048).to_dict()
    with pytest.raises(UserError, match=r"config\.pretrain\.batch_size=2048 is more than the 1437"):
        costs.on_pod(raw, "pretrain", topology("v5e:8x8"))


def test_a_refusal_of_the_child_is_one_line(monkeypatch, tmp_path):
    """Whatever else it printed before."""
    fake = tmp_path / "python"
    fake.write_text(
        f"#!{sys.executable}\nimport sys\nprint('noise\\nwhy', file=sys.stderr)\nsys.exit(2)"
    )
    fake.chmod(0o755)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(sys, "executable", str(fake))
    with pytest.raises(UserError, match=r"^why$"):
        pod.compiled({}, "pretrain", topology("v5e:8x8"))


BYOL = "--config=configs/byol_l2.py:digits"
COMMANDS = {  # what is said -> the command line
    "say either --config=FILE[:SCALE] or --all": "--topology=v5e:8x8",
    "either": f"--all {BYOL}",
    "--all takes --topology alone": "--all --stage=pretrain",
    "--price need --topology=CHIP:AxB": f"--price=1 {BYOL}",
    "this run trains only finetune": f"--stage=pretrain {BYOL} --config.weights=X",
    "pretrian.steps: no such key; did you mean pretrain?": f"{BYOL} --config.pretrian.steps=1",
    "expected CHIP:AxB": f"{BYOL} --topology=v5e",
}


def test_the_command_line(tmp_path):
    imports, lines = ["adv_ssl.estimate.costs"], [line.split() for line in COMMANDS.values()]
    found = commands.ran("adv_ssl.estimate", imports, lines, tmp_path)
    for said, (code, _, error) in zip(COMMANDS, found, strict=True):
        assert (code, error.count("\n")) == (2, 1), error
        assert said in error


def test_what_is_printed_of_a_pod():
    traffic = (Traffic("all-reduce", "f32", 3, 86_000_000),)
    clock = CHIPS["v5e"].hertz
    compiled = Compiled(True, 2**33, round(clock / 4), 2, round(81.9e9), traffic)
    run = run_of("rotnet", None, pretrain__steps=36_000)
    made = costs.Estimate(run, 100, pod=costs.OnPod(topology("v5e:8x8"), compiled, round(64e12)))
    text = "\n".join(command_line._lines("pretrain", made, 2.0))
    for said in (
        "36,000 steps of 8 images", "8.0 of 15.8 GiB a chip: fits", "250 ms", "2% of 197 TFLOP/s",
        "100 ms by memory", "2 custom kernels", "1.7 ms more",
        "all-reduce, f32: 86.0 MB in 3 arrays", "0.252 s a step", "2.5 hours",
        "161 chip-hours, 322 at 2 each",
    ):  # fmt: skip
        assert said in text
    both = "\n".join(command_line._total([made, made], 2.0))
    for said in ("both stages", "5.0 hours", "322 chip-hours, 644 at 2 each"):
        assert said in both, both
    full = made.pod._replace(compiled=Compiled(False, 2**35))
    assert not list(command_line._total([made, made._replace(pod=full)], None))
    text = "\n".join(command_line._lines("pretrain", made._replace(pod=full), None))
    assert "32.0 of 15.8 GiB a chip: DOES NOT FIT" in text
    assert "hours" not in text


# ---- the TPU's compiler itself --------------------------------------------------------------

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="the TPU's compiler is missing: pip install -e .[estimate]",
)


@pytest.mark.slow
@needs_libtpu
def test_a_step_compiled_for_a_pod():
    raw = json.loads(json.dumps(program_of_tiny()))
    made = costs.on_pod(raw, "pretrain", topology("v5e:2x2"))
    compiled = made.pod.compiled
    assert compiled.fits
    assert 0 < compiled.memory < CHIPS["v5e"].memory
    assert compiled.cycles > 0
    parameters = program.shapes(program.recipe(made.run), made.run)[0].params
    size = sum(leaf.size for leaf in jax.tree.leaves(parameters))
    reduced = sum(row.bytes for row in compiled.traffic if row.kind == "all-reduce")
    assert reduced > 2 * size  # each gradient, in two bytes or four


@pytest.mark.slow
@needs_libtpu
def test_a_pod_that_the_compiler_refuses():
    with pytest.raises(UserError, match=r"--topology=v5e:3x3: libtpu refuses it: .*divisible"):
        pod.compiled(program_of_tiny(), "pretrain", topology("v5e:3x3"))


@pytest.mark.slow
@needs_libtpu
def test_a_step_that_does_not_fit():
    raw = program_of_tiny(pretrain__batch_size=2**18, model__width=1024, model__mlp=4096)
    compiled = pod.compiled(raw, "pretrain", topology("v5e:2x2"))
    assert not compiled.fits
    assert compiled.memory > CHIPS["v5e"].memory


def program_of_tiny(**changes):
    return tiny.config("l2", "rotnet", **changes).to_dict()
