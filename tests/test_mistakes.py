"""A user's mistake: one line that names the key or file, exit code 2, before any training."""

import json
import re
import subprocess
import sys

import commands
import pytest
import tiny
from conftest import ROOT

from adv_ssl import command, pipeline, train
from adv_ssl.config import parse
from adv_ssl.errors import UserError

# Changes to the tiny configuration, and what the one line says.
MISTAKES = {
    "negative radius": ({"pretrain__attack__epsilon": -1.0}, r"pretrain\.attack\.epsilon=-1\.0"),
    "radius in 255ths": (
        {"pretrain__attack__norm": "linf", "pretrain__attack__epsilon": 4.0},
        r"did you mean 4/255",
    ),
    "L2 radius in 255ths": (
        {"pretrain__attack__epsilon": 128.0},
        r"pretrain\.attack\.epsilon=128 in L2: from 13\.86 on, any 768 values .*"
        r"did you mean 128/255 = 0\.50196\?",
    ),
    "scored at a radius in 255ths": (
        {"evaluate__attacks": (("l2", 0.5, 2), ("l2", 64.0, 2))},
        r"config\.evaluate\.attacks\[1\]\.epsilon=64 in L2: .*did you mean 64/255",
    ),
    "step in 255ths": (
        {
            "pretrain__attack__norm": "linf",
            "pretrain__attack__epsilon": 4 / 255,
            "pretrain__attack__step_size": 2.5,
        },
        r"pretrain\.attack\.step_size=2\.5: a fraction of epsilon=0\.01569, .*mean 0\.625\?",
    ),
    "step in pixels": (
        {
            "pretrain__attack__norm": "linf",
            "pretrain__attack__epsilon": 4 / 255,
            "pretrain__attack__step_size": 2.5 / 255,
        },
        r"step_size=0\.0098.*: a fraction of epsilon=.*cover 0\.0196 epsilon; .*mean 0\.625\?",
    ),
    "step of no unit": (
        {"pretrain__attack__step_size": 1e-9},
        r"step_size=1e-09: a fraction of epsilon=0\.5, not pixels; .* cover 2e-09 epsilon\.$",
    ),
    "no such norm": ({"pretrain__attack__norm": "l7"}, r"attack\.norm='l7': choose from linf, l2"),
    "no such attack": ({"pretrain__attack__name": "fgsm"}, r"attack\.name='fgsm': choose from pgd"),
    "start of another norm": (
        {"pretrain__attack__start": "sphere"},
        r"start='sphere': for l2 choose from ball, radius_uniform, zero",
    ),
    "negative steps": ({"pretrain__attack__steps": -1}, r"attack\.steps=-1"),
    "size and patch": ({"model__patch": 5}, r"model\.image_size=16 is not divisible by patch=5"),
    "start of no pre-training": (
        {"init_from": "a", "weights": "b"},
        r"config\.init_from='a': there is no pre-training to start from it",
    ),
    "nothing to start from": (
        {"init_from": "WEIGHTS"},
        r"config\.init_from='WEIGHTS': no checkpoint in it",
    ),
    "one image in each part": (
        {"pretrain__batch_size": 16, "pretrain__accumulation": 16},
        r"pretrain\.batch_size=16, accumulation=16: each part needs 2 images",
    ),
    "an attack that does not move": ({"evaluate__reach": 0.001}, r"evaluate\.reach=0\.001: steps"),
    "an end above the peak": (
        {"finetune__schedule__min_lr": 10.0},
        r"finetune\.schedule\.min_lr=10\.0: must not be above the peak learning rate, 0\.",
    ),
    "trained positions that would be lost": (
        {"finetune__learned_positions": False},
        r"finetune\.learned_positions=False: pre-training trains positions",
    ),
    "more blocks than can be compiled": ({"model__depth": 10**6}, r"model\.depth=1000000: must be"),
    "width and heads": ({"model__heads": 3}, r"model\.width=16 is not divisible by heads=3"),
    "batch larger than the set": (
        {"pretrain__batch_size": 100000},
        r"config\.pretrain\.batch_size=100000 is more than the 1437",
    ),
    "a later batch larger than the set": (
        {"finetune__batch_size": 1438},
        r"config\.finetune\.batch_size=1438 is more than the 1437",
    ),
    "seed of 80 bits": ({"seed": 10**24}, r"config\.seed=10+: must be from 0 to 4294967295"),
    "no such task": (
        {"pretrain__task__name": "mea"},
        r"task\.name='mea': choose from byol, mae",
    ),
    "no such optimizer": ({"pretrain__optimizer__name": "sgdw"}, r"optimizer\.name='sgdw'"),
    "smoothing of 1": ({"finetune__task__label_smoothing": 1.0}, r"label_smoothing=1\.0"),
    "gamma of 0": (
        {"finetune__layer_decay": 0.0},
        r"finetune\.layer_decay=0\.0: must be in \(0, 1\]",
    ),
    "drop path of 1": ({"finetune__drop_path": 1.0}, r"finetune\.drop_path=1\.0"),
    "negative rate": ({"pretrain__optimizer__lr": -1.0}, r"optimizer\.lr=-1\.0"),
    "rate beyond float32": ({"pretrain__optimizer__lr": 1e39}, r"lr=1e\+39: must be 0, or a fin"),
    "radius that would be 0": (
        {"pretrain__attack__epsilon": 1e-300},
        r"epsilon=1e-300: must",
    ),
    "depth of 40 bits": ({"model__depth": 10**12}, r"depth=1000000000000: must be from 0 to 42949"),
    "steps beyond int32": ({"pretrain__steps": 2**31}, r"config\.pretrain: .*: 2147483647 is the"),
    "later epochs beyond int32": (
        {"finetune__steps": None, "finetune__epochs": 1e9},
        r"9e\+10 steps",
    ),
    "crop of a speck": ({"evaluate__resize": 129}, r"resize=129 is more than 8 times model\.image"),
    "rate not finite": ({"pretrain__optimizer__lr": float("inf")}, r"finite"),
    "no such kind": ({"pretrain__optimizer__decayed": ("bias",)}, r"decayed has 'bias': the kinds"),
    "warm-up in steps": (
        {"pretrain__schedule__warmup": 500.0},
        r"schedule\.warmup=500\.0: must be in \[0, 1\]",
    ),
    "average of 2": ({"pretrain__ema__decay": 2.0}, r"ema\.decay=2\.0"),
    "crop of nothing": ({"pretrain__augment__min_area": 0.0}, r"augment\.min_area=0\.0"),
    "attack without steps": ({"evaluate__attacks": (("l2", 0.5, 0),)}, r"attacks\[0\] has 0 steps"),
    "evaluated norm": ({"evaluate__attacks": (("l3", 0.5, 1),)}, r"attacks\[0\]\.norm='l3'"),
    "attack cut short": ({"evaluate__attacks": (("l2", 0.5),)}, r"attacks\[0\].*expected 3 values"),
    "resize below the crop": ({"evaluate__resize": 8}, r"evaluate\.resize=8 is below"),
    "no such type": ({"dtype": "float16"}, r"config\.dtype='float16'"),
    "set not prepared": ({"data__name": "cifar100:3.0.2"}, r"cifar100.*tfds build"),
    "no data set": ({"data__name": ""}, r"data set '': give digits, folder:/path or"),
    "a folder without a path": ({"data__name": "folder:"}, r"data set 'folder:'"),
    "a place that cannot be read": (
        {"data__name": "cifar10:3.0.2", "data__dir": "gs://bucket/sets"},
        r"'cifar10:3\.0\.2' in gs://bucket/sets cannot be read",
    ),
    "a folder without folder:": ({"data__name": "configs"}, r"did you mean folder:configs\?"),
    "no such folder": ({"data__name": "folder:/nowhere"}, r"/nowhere"),
    "no such split": ({"pretrain__split": "trian"}, r"config\.pretrain\.split='trian' of.*train"),
    "no such test split": ({"evaluate__split": "tst"}, r"config\.evaluate\.split='tst' of digits"),
    "no whole number": ({"log_every": 0}, r"log_every=0"),
}
# The same of other methods: (method, changes, what is said).
OTHERS = {
    "no average to predict": (
        "byol",
        {"pretrain__ema": None},
        r"pretrain\.ema=None: BYOL predicts",
    ),
    "a radius that the visible patches cannot have": (
        "mae",
        {"pretrain__attack__epsilon": 7.0},
        r"pretrain\.attack\.epsilon=7 in L2: from 6\.928 on, any 192 values .* plain grey",
    ),
    "mask of all": (
        "mae",
        {"pretrain__task__mask_ratio": 0.99},
        r"config\.pretrain\.task\.mask_ratio=0\.99 of 16 patches leaves 0 visible",
    ),
    "mask of none": (
        "mae",
        {"pretrain__task__mask_ratio": 0.0},
        r"config\.pretrain\.task\.mask_ratio=0\.0 of 16 patches leaves 16 visible",
    ),
    "decoder's heads": ("mae", {"pretrain__task__heads": 3}, r"pretrain\.task\.width=8: must be"),
    "mixup for RotNet": (
        "rotnet",
        {"pretrain__task__mixing": {"mixup": 0.8}},
        r"pretrain\.task\.mixing: unknown key; the keys here are label_smoothing, head_std",
    ),
    "erasing under attack": (
        "supervised",
        {"pretrain__task__erasing": {"prob": 0.25, "area": (0.02, 0.3), "ratio": 0.3}},
        r"config\.pretrain\.task\.erasing: not with an attack",
    ),
    "groups of another size": (
        "supervised",
        {"pretrain__task__mixing__group": 5},
        r"pretrain\.batch_size=16: must be a multiple of task\.mixing\.group=5",
    ),
    "a batch not of its parts": (
        "supervised",
        {"pretrain__accumulation": 3},
        r"16: must be a multiple of accumulation=3, the parts of a batch, times task\.mixing",
    ),
    "gamma above 1": ("rotnet", {"pretrain__layer_decay": 1.5}, r"layer_decay=1\.5: must be in"),
    "supervised without labels": (
        "supervised",
        {"data__name": "unlabelled", "evaluate__split": "test"},
        r"config\.pretrain\.task\.name='supervised' needs labels, folder:.*has none",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_before_any_training(name, tmp_path, monkeypatch):
    changes, said = MISTAKES[name]
    monkeypatch.setattr(train, "run", lambda *_: pytest.fail("it trained"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "empty"))
    with pytest.raises(UserError, match=said) as raised:
        pipeline.run(tiny.config(**changes), tmp_path / "run")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", OTHERS)
def test_a_mistake_with_another_method(name, tmp_path, monkeypatch):
    method, changes, said = OTHERS[name]
    monkeypatch.setattr(train, "run", lambda *_: pytest.fail("it trained"))
    config = tiny.config(method=method)
    config.unlock()  # as a configuration written by hand is
    if changes.get("data__name") == "unlabelled":
        images = tiny.folder_of_images(tmp_path / "images", 40)
        changes = changes | {"data__name": f"folder:{images}"}
    for path, value in changes.items():
        config.update_from_flattened_dict({path.replace("__", "."): value})
    with pytest.raises(UserError, match=said) as raised:
        pipeline.run(config, tmp_path / "run")
    assert "\n" not in str(raised.value)


def test_a_test_set_of_other_classes_is_noticed_before_any_training(tmp_path, monkeypatch):
    for folder in ("train/a", "train/b", "test"):
        tiny.folder_of_images(tmp_path / "images" / folder, 20)
    monkeypatch.setattr(train, "run", lambda *_: pytest.fail("it trained"))
    changes = {"data__name": f"folder:{tmp_path / 'images'}", "evaluate__split": "test"}
    with pytest.raises(UserError, match=r"train has 2 classes and .* test, .*split, 0"):
        pipeline.run(tiny.config(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_one_class_is_nothing_to_tell_apart(tmp_path, monkeypatch):
    tiny.folder_of_images(tmp_path / "images" / "photos", 60)
    monkeypatch.setattr(train, "run", lambda *_: pytest.fail("it trained"))
    changes = {"data__name": f"folder:{tmp_path / 'images'}", "evaluate__split": "test"}
    with pytest.raises(UserError, match=r"train has one class, photos: .* two folders or more"):
        pipeline.run(tiny.config(**changes), tmp_path / "run")


def test_a_folder_of_scores_is_no_place_for_a_run(tmp_path):
    (tmp_path / "evaluation.json").write_text("{}")
    with pytest.raises(UserError, match="holds the scores of an evaluation: choose another"):
        pipeline.run(tiny.config(), tmp_path)
    assert not (tmp_path / "config.json").exists()


def test_a_file_of_weights_is_to_be_imported(tmp_path):
    (tmp_path / "vit.npz").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"python -m adv_ssl\.weights import .*vit\.npz --workdir"):
        pipeline.run(tiny.config(weights=str(tmp_path / "vit.npz")), tmp_path / "run")


def test_every_leaf_refuses_another_type():
    config = tiny.config().to_dict()
    del config["sources"]

    def leaves(tree, path=()):
        for key, value in tree.items():
            yield from leaves(value, (*path, key)) if isinstance(value, dict) else [(*path, key)]

    paths = list(leaves(config))
    assert len(paths) > 70
    for path in paths:
        changed, name = json.loads(json.dumps(config)), re.escape(".".join(path))
        parse(changed)
        group = changed
        for key in path[:-1]:
            group = group[key]
        group[path[-1]] = {"not": "this"}
        with pytest.raises(UserError, match=rf"^config\.{name}\b"):
            parse(changed)
        del group[path[-1]]
        with pytest.raises(UserError, match=rf"^config\.{name}\b"):
            parse(changed)
        group[path[-1] + "_"] = 1
        with pytest.raises(UserError, match=rf"^config\.{name}(_: unknown key|=None: choose)"):
            parse(changed)


def test_a_broken_connection_is_not_taken_for_output_that_nobody_reads():
    with pytest.raises(BrokenPipeError), command._answered():
        raise BrokenPipeError


def test_an_unknown_key_is_named():
    config = tiny.config().to_dict()
    config["pretrain"]["attack"]["epsilom"] = 1.0
    with pytest.raises(
        UserError, match=r"config\.pretrain\.attack\.epsilom: unknown key; the keys"
    ):
        parse(config)


BYOL, ROTNET = "--config=configs/byol_l2.py:digits", "--config=configs/rotnet_l2.py:digits"
NOMINAL = "--config=configs/rotnet_nominal.py:digits"
COMMANDS = {  # what is said -> the command line
    "pretrian.steps: no such key; did you mean pretrain?": f"{BYOL} --config.pretrian.steps=1",
    "config.seed": f"{BYOL} --config.seed=x",
    "scale 'digit'": "--config=configs/byol_l2.py:digit",
    "task.mixing.group: no such key.": f"{ROTNET} --config.pretrain.task.mixing.group=4",
    "epsilon: attack is None in this configuration; take one that": (
        f"{NOMINAL} --config.pretrain.attack.epsilon=1"
    ),
    "no attack is configs/METHOD_nominal.py": f"{BYOL} --config.pretrain.attack=None",
    "is not to be set": f"{BYOL} --config.sources.seed=1",
    "--config: SyntaxError": "--config=README.md",
    "no such configuration file": "--config=configs/nowhere.py",
    "=-1.0": f"{BYOL} --config.pretrain.attack.epsilon=-1",
    "'4/255'; write 0.015686 for 4/255": f"{BYOL} --config.pretrain.attack.epsilon=4/255",
    "expected a tuple; write 0.031373 for 8/255": (
        f"{BYOL} --config.evaluate.attacks=(('linf',8/255,10),)"
    ),
    "attacks[0][1]='2/255': expected float; write 0.007843": (
        f"{BYOL} --config.evaluate.attacks=(('linf','2/255',10),)"
    ),
    "unexpected argument 'digits'": f"{BYOL} digits",
    "--workdir=DIR are needed": f"{BYOL} --workdir=",
    "'./255'": f"{BYOL} --config.pretrain.attack.epsilon=./255",
    "'4/0'": f"{BYOL} --config.pretrain.attack.epsilon=4/0",
    "config.finetune.epochs: steps=2500 comes before it": (
        "--config=configs/transfer_sgd.py:cifar100 --config.finetune.epochs=20"
    ),
    "config.weights='WEIGHTS': no checkpoint": "--config=configs/transfer_sgd.py:digits,digits",
}


def test_the_command_line(tmp_path):
    imports = [f"adv_ssl.{name}" for name in ("command", "config_flag", "hosts", "pipeline")]
    lines = [[f"--workdir={tmp_path}/run", *line.split()] for line in COMMANDS.values()]
    for said, (code, out, error) in zip(
        COMMANDS, commands.ran("adv_ssl.main", imports, lines, tmp_path), strict=True
    ):
        assert (code, out, error.count("\n")) == (2, "", 1), error
        assert said in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("steps", "size", "said"),
    [(2, 5 / 8, None), (0, 0.5, None), (1, 1.0, None), (2, 0.4, "shorter"), (1, 1.01, "longer")],
)
def test_steps_that_are_too_short_or_too_long_are_doubted(steps, size, said):
    changes = {"pretrain__attack__steps": steps, "pretrain__attack__step_size": size}
    attack = parse(tiny.config(**changes).to_dict()).pretrain.attack
    assert said in attack.doubt if said else attack.doubt is None


@pytest.mark.parametrize(("radius", "doubted"), [(8 / 255, True), (0.03, False), (0.5, False)])
def test_an_l2_radius_that_is_written_as_one_in_linf_is_doubted(radius, doubted):
    attack = parse(tiny.config(pretrain__attack__epsilon=radius).to_dict()).pretrain.attack
    said = f"{round(radius * 255)}/255 over the whole image"
    assert said in attack.doubt if doubted else attack.doubt is None


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            "PermissionError(errno.EACCES, 'Permission denied', '/closed/vit.npz')",
            "/closed/vit.npz: Permission denied: name another place, or change what is there.",
        ),
        (
            "OSError(errno.ENOSPC, 'No space left on device')",
            "no space left on the disk: make room and start again.",
        ),
        (
            "jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: 9 GB')",
            "out of memory (RESOURCE_EXHAUSTED: 9 GB): go on with config.remat=True, with "
            "config.fsdp=True on several devices or, in scoring, a lower "
            "config.evaluate.batch_size (--batch_size of adv_ssl.evaluate); or begin a new "
            "--workdir with a higher config.STAGE.accumulation.",
        ),
    ],
)
def test_what_the_machine_refuses_is_one_line(error, said):
    line = (
        "import errno, jax, sys; from adv_ssl import command, main, pipeline\n"
        f"def full(*_): raise {error}\n"
        "pipeline.run = full; sys.argv[1:] = "
        "['--config=configs/byol_l2.py:digits', '--workdir=somewhere']; command.start("
        "main._work, main._parse_flags)"
    )
    done = subprocess.run([sys.executable, "-c", line], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, f"adv_ssl: {said}\n")
