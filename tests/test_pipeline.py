"""Runs from end to end: files, resume, hand-off, and the same numbers whatever interrupts them."""

import dataclasses
import errno
import inspect
import json
import shutil
import signal
import subprocess
import sys
import time

import chex
import jax
import numpy as np
import pytest
import tiny
from conftest import ROOT

from adv_ssl import checkpoint, pictures, pipeline, preemption, report, sharding, train
from adv_ssl import config as config_module
from adv_ssl.checkpoint import Checkpoints
from adv_ssl.config import parse
from adv_ssl.data import sources
from adv_ssl.errors import UserError
from adv_ssl.evaluation import scores
from adv_ssl.files import held
from adv_ssl.stage import make_recipe, make_task, random_state


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run from start to end."""
    workdir = tmp_path_factory.mktemp("runs") / "finished"
    pipeline.run(tiny.config(), workdir)
    return workdir


def test_the_files_of_a_run(finished):
    for name in ("config.json", "provenance.json", "results.json", "report.html"):
        assert (finished / name).stat().st_size > 0
    for stage in ("pretrain", "finetune"):
        assert list((finished / stage).glob("events.out.tfevents.*"))
        steps = [r["step"] for r in tiny.records(finished / stage / "metrics.jsonl")]
        assert steps == [1, 2, 4, 6]
    statuses = {r["status"] for r in json.loads((finished / "finetune/handoff.json").read_text())}
    assert statuses == {"carried", "fresh", "dropped"}


def test_results_are_complete(finished):
    clean, attacked = json.loads((finished / "results.json").read_text())
    assert clean["attack"] is None
    assert attacked["attack"]["norm"] == "l2"
    assert attacked["attack"]["epsilon"] == 0.5
    assert (attacked["attack"]["step_size"], attacked["attack"]["start"]) == (2.5 / 2, "ball")
    assert (clean["n"], attacked["n"]) == (50, 40)
    for record in (clean, attacked):
        low, high = record["ci95"]
        assert 0 <= low <= record["value"] <= high <= 1
        assert (record["stage"], record["step"], record["seed"]) == ("finetune", 6, 0)


def test_a_score_has_beside_it_that_of_the_commonest_class(finished, monkeypatch):
    source = sources.load("digits", "test[:50]", "")
    labels = [int(source.records[i]["label"]) for i in range(50)]
    share = max(map(labels.count, labels)) / 50
    clean, _ = tiny.results(finished)
    assert (clean["commonest"], clean["flags"]) == (share, [])
    page = (finished / "report.html").read_text()
    assert f"Always predicting the most frequent class would score {100 * share:.1f}%" in page
    monkeypatch.setattr(
        scores, "attacked", lambda *given: (None, np.full(len(given[3]["label"]), 3))
    )
    config = parse(tiny.config().to_dict())
    record = scores.score(config.model, None, source, config.evaluate, None, 0)
    assert record["value"] == labels.count(3) / 50
    assert record["flags"] == ["the model predicts one class for every image"]


def test_a_page_has_no_recipe_of_a_pretraining_that_was_elsewhere(finished, tmp_path):
    shutil.copy(finished / "config.json", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert "pretrain.attack.epsilon" in str(report._recipe(tmp_path / "config.json"))
    (tmp_path / "config.json").write_text(json.dumps(config | {"weights": "other/pretrain"}))
    assert "pretrain.attack.epsilon" not in str(report._recipe(tmp_path / "config.json"))


def test_the_encoder_is_handed_on(finished, tmp_path):
    """With no fine-tuning step at all, the encoder is the pre-trained one and the head is new."""
    pipeline.run(tiny.config(weights=str(finished / "pretrain"), finetune__steps=0), tmp_path)
    pretrained, handed = tiny.params(finished / "pretrain"), tiny.params(tmp_path / "finetune")
    chex.assert_trees_all_equal(pretrained["encoder"], handed["encoder"])
    assert np.abs(handed["head"]["kernel"]).max() < 2e-4
    assert not (tmp_path / "pretrain").exists()


def test_the_same_command_again_only_reports(finished, monkeypatch):
    starts = len(json.loads((finished / "provenance.json").read_text())["starts"])
    before = {p: p.read_bytes() for p in finished.rglob("*.json*")}
    monkeypatch.setattr(train, "run", lambda *_: pytest.fail("it trained again"))
    pipeline.run(tiny.config(), finished)
    for path, content in before.items():
        if path.name != "provenance.json":
            assert path.read_bytes() == content, path
    now = json.loads((finished / "provenance.json").read_text())["starts"]
    assert len(now) == starts + 1


def test_a_stopped_run_ends_like_an_uninterrupted_one(finished, tmp_path, monkeypatch):
    """SIGTERM after 3, 5, 9 and 11 steps, between saves: the same parameters and log in the end."""
    asked, stops = tiny.stops(monkeypatch, 3, 5, 9, 11), 0
    for _ in range(5):
        try:
            pipeline.run(tiny.config(), tmp_path)
        except preemption.Preempted:
            stops += 1
            preemption._asked.clear()
    assert stops == 4
    assert len(asked) == 12
    for stage in ("pretrain", "finetune"):
        chex.assert_trees_all_equal(tiny.params(finished / stage), tiny.params(tmp_path / stage))
        theirs, ours = (tiny.records(d / stage / "metrics.jsonl") for d in (finished, tmp_path))
        last = {record["step"]: record for record in ours}
        assert sorted(last) == sorted(r["step"] for r in ours), "a step was logged twice"
        assert last[6]["learning_rate"] == theirs[-1]["learning_rate"]


@pytest.mark.parametrize("method", ["rotnet", pytest.param("byol", marks=pytest.mark.slow)])
def test_an_attack_of_no_steps_is_the_nominal_run_bit_for_bit(method, tmp_path):
    changes = {"finetune__steps": 2, "evaluate__attacks": ()}
    pipeline.run(tiny.config("l2", method, pretrain__attack__steps=0, **changes), tmp_path / "l2")
    pipeline.run(tiny.config("nominal", method, **changes), tmp_path / "nominal")
    for stage in ("pretrain", "finetune"):
        ours, theirs = (tiny.params(tmp_path / run / stage) for run in ("l2", "nominal"))
        chex.assert_trees_all_equal(ours, theirs)
        assert tiny.records(tmp_path / "l2" / stage / "metrics.jsonl") == tiny.records(
            tmp_path / "nominal" / stage / "metrics.jsonl"
        )


def test_an_unlabelled_folder_is_pretrained_on(tmp_path):
    """Whatever is asked of fine-tuning and scoring, which are left out."""
    images = tiny.folder_of_images(tmp_path / "images", 40)
    changes = {"data__name": f"folder:{images}", "pretrain__steps": 2}
    changes |= {"finetune__batch_size": 512, "evaluate__split": "validation"}
    page = pipeline.run(tiny.config("nominal", "rotnet", **changes), tmp_path / "run")
    assert page.exists()
    assert not (tmp_path / "run" / "finetune").exists()
    for split in ("validation", "test"):  # other splits of it may have labels
        for name in ("cat", "dog"):
            tiny.folder_of_images(images / split / name, 2)
    tiny.folder_of_images(images / "train", 20)
    config = parse(tiny.config(data__name=f"folder:{images}", finetune__split="validation",
                               evaluate__split="test").to_dict())  # fmt: skip
    sets = pipeline._opened(config, config.stages)
    assert {key: source.num_classes for key, source in sets.items()} == {
        "pretrain": 0, "finetune": 2, "evaluate": 2,
    }  # fmt: skip


def test_a_workdir_of_another_config_is_refused(finished):
    with pytest.raises(UserError, match=r"config\.seed is 0 there, 1 here.*another --workdir"):
        pipeline.run(tiny.config(seed=1), finished)


def test_what_computes_the_same_may_change_on_the_way(finished, tmp_path):
    """Such as on a smaller machine: none of these makes another run of it."""
    shutil.copytree(finished, tmp_path / "run")
    changes = {"fsdp": True, "remat": True, "log_every": 3, "save_every": 5, "data__dir": "/sets"}
    changes |= {"evaluate__batch_size": 16}
    pipeline.run(tiny.config(**changes), tmp_path / "run")
    assert json.loads((tmp_path / "run" / "config.json").read_text())["fsdp"] is True


def test_a_checkpoint_of_another_architecture_is_refused(finished, tmp_path):
    changes = {"weights": str(finished / "pretrain"), "model__width": 32}
    with pytest.raises(UserError, match="width is 16 there and 32 here"):
        pipeline.run(tiny.config(**changes), tmp_path)


@pytest.mark.parametrize("method", ["byol", "mae"])
def test_pretraining_goes_on_from_an_encoder(method, finished, tmp_path):
    given = finished / "pretrain"
    none = {"pretrain__steps": 0, "finetune__steps": 0, "pretrain__learned_positions": True}
    pipeline.run(tiny.config(method=method, init_from=str(given), **none), tmp_path)
    wanted, found = (tiny.params(run)["encoder"] for run in (given, tmp_path / "pretrain"))
    chex.assert_trees_all_equal(
        {k: found[k] for k in wanted if k in found}, {k: wanted[k] for k in wanted if k in found}
    )
    assert set(found) - set(wanted) == ({"norm"} if method == "mae" else set())
    fates = {
        r["name"]: r["status"] for r in json.loads((tmp_path / "pretrain/handoff.json").read_text())
    }
    assert fates["encoder/pos_embed"] == "carried"
    if method == "byol":  # what it predicts starts from the same encoder, with a head of its own
        with Checkpoints(tmp_path / "pretrain" / "checkpoints") as checkpoints:
            rest = checkpoints._manager.restore(checkpoints.latest())["rest"]
            chex.assert_trees_all_equal(rest["ema"]["encoder"], found)


def test_a_key_that_came_since_is_no_other_configuration(tmp_path):
    some = tiny.config(pretrain__steps=0, finetune__steps=0)
    pipeline.run(some, tmp_path)
    path = tmp_path / "config.json"
    old = json.loads(path.read_text())
    del old["init_from"]
    path.write_text(json.dumps(old))
    pipeline.run(some, tmp_path)
    path.write_text(json.dumps(old))
    some.init_from = str(tmp_path / "pretrain")
    with pytest.raises(UserError, match=r"config\.init_from is None there, '.*pretrain' here"):
        pipeline.run(some, tmp_path)


def test_weights_that_are_not_there(finished, tmp_path):
    for weights, said in (
        (
            tmp_path / "nowhere",
            r"config\.weights='.*nowhere': no checkpoint in it; name the folder",
        ),
        (finished, rf"did you mean {finished}/pretrain\?"),
        (finished / "pretrain" / "checkpoints", rf"did you mean {finished}/pretrain\?"),
    ):
        with pytest.raises(UserError, match=said):
            pipeline.run(tiny.config(weights=str(weights)), tmp_path / "run")
        assert not (tmp_path / "run").exists()


def test_scores_are_of_the_checkpoint_that_is_there(finished, tmp_path):
    """Trained again, where checkpoints were lost, a model is scored again."""
    shutil.copytree(finished, tmp_path / "run")
    path = tmp_path / "run" / "results.json"
    before = tiny.results(tmp_path / "run")
    assert {r["weights"].split(",")[0] for r in before} == {"step 6"}
    path.write_text(json.dumps([{**r, "value": 0.99} for r in before]))
    pipeline.run(tiny.config(), tmp_path / "run")
    assert {r["value"] for r in tiny.results(tmp_path / "run")} == {0.99}
    pictures_of = {"filters": "pretrain", "pretrain_gallery": "pretrain", "gallery": "finetune"}
    for name, stage in pictures_of.items():
        np.savez(tmp_path / "run" / "figures" / f"{name}.npz", weights="step 6, of another one")
        shutil.rmtree(tmp_path / "run" / stage / "checkpoints", ignore_errors=True)
    pipeline.run(tiny.config(), tmp_path / "run")
    for name, stage in pictures_of.items():
        with np.load(tmp_path / "run" / "figures" / f"{name}.npz") as picture:
            assert str(picture["weights"]) == checkpoint.fingerprint(tmp_path / "run" / stage)
            assert len(picture.files) > 2
    after = tiny.results(tmp_path / "run")
    assert [r["value"] for r in after] == [r["value"] for r in before]
    assert len(after) == len(before)


def test_scores_that_were_interrupted_are_completed(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    path = tmp_path / "run" / "results.json"
    first, second = tiny.results(finished)
    kept = json.dumps([first | {"value": 0.99}])
    path.write_text(kept)
    preemption._asked.set()
    with pytest.raises(preemption.Preempted):
        pipeline.run(tiny.config(), tmp_path / "run")
    assert path.read_text() == kept
    preemption._asked.clear()
    pipeline.run(tiny.config(), tmp_path / "run")
    assert [r["value"] for r in tiny.results(tmp_path / "run")] == [0.99, second["value"]]


def test_a_run_that_has_begun_needs_its_encoder_no_more(finished, tmp_path):
    shutil.copytree(finished / "pretrain", tmp_path / "given")
    config = tiny.config(weights=str(tmp_path / "given"))
    pipeline.run(config, tmp_path / "run")
    shutil.rmtree(tmp_path / "given")
    pipeline.run(config, tmp_path / "run")


@pytest.mark.parametrize("key", ["weights", "init_from"])
def test_weights_that_are_trained_in_part(key, finished, tmp_path):
    """A run that was stopped: not silently taken for what it will be."""
    stage = tmp_path / "stopped" / "pretrain"
    shutil.copytree(finished / "pretrain", stage)
    steps = sorted(int(path.name) for path in (stage / "checkpoints").iterdir())
    shutil.rmtree(stage / "checkpoints" / str(steps[-1]))
    said = rf"config\.{key}=.* is only partly trained, step {steps[-2]} of 6: start its own command"
    with pytest.raises(UserError, match=said):
        pipeline.run(tiny.config(**{key: str(stage)}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_pretraining_whose_checkpoints_are_gone_is_not_done_again(
    finished, tmp_path, monkeypatch
):
    shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "pretrain" / "checkpoints")
    monkeypatch.setattr(train, "run", lambda *_: pytest.fail("it trained again"))
    pipeline.run(tiny.config(), tmp_path / "run")
    assert tiny.results(tmp_path / "run") == tiny.results(finished)


def test_scores_on_images_that_were_trained_on_are_warned_of(tmp_path, caplog):
    changes = {"finetune__split": "train[:200]", "evaluate__split": "train[150:210]+test[:5]"}
    some = tiny.config(
        pretrain__split="train[210:]", finetune__steps=0, pretrain__steps=0, **changes
    )
    pipeline.run(some, tmp_path)
    (said,) = (r.getMessage() for r in caplog.records if "images that are scored" in r.getMessage())
    assert said.startswith("finetune is trained on 50 of the 65 images that are scored")


def test_data_that_changed_under_a_run_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "_train", lambda *_: None)
    images = tiny.folder_of_images(tmp_path / "images" / "train", 20)
    tiny.folder_of_images(tmp_path / "images" / "test", 4)
    name = f"folder:{tmp_path / 'images'}"
    config = tiny.config(data__name=name, pretrain__steps=1, evaluate__split="test")
    pipeline.run(config, tmp_path / "run")
    (images / "0.png").rename(images / "a.png")  # their number is what the order hangs on
    pipeline.run(config, tmp_path / "run")
    (images / "a.png").unlink()
    with pytest.raises(UserError, match=r"images train held 20 images .* and holds 19 images"):
        pipeline.run(config, tmp_path / "run")


def test_a_folder_is_listed_once_for_all_of_its_splits(tmp_path, monkeypatch):
    tiny.folder_of_images(tmp_path / "images", 40)
    scan, listed = sources.folders.scan, []
    monkeypatch.setattr(sources.folders, "scan", lambda name: listed.append(name) or scan(name))
    monkeypatch.setattr(pipeline, "_train", lambda *_: None)
    name = f"folder:{tmp_path / 'images'}"
    changes = {"pretrain__batch_size": 8, "evaluate__split": "test"}
    pipeline.run(tiny.config("nominal", "rotnet", data__name=name, **changes), tmp_path / "run")
    assert listed == [name]


def test_a_page_that_cannot_be_written_hides_no_reason_of_the_end(tmp_path, monkeypatch):
    """The disk that the last checkpoint filled: exit code 75 stays 75."""

    def stopped(*_):
        raise preemption.Preempted

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pipeline, "_train", stopped)
    monkeypatch.setattr(report, "write", full)
    with pytest.raises(preemption.Preempted):
        pipeline.run(tiny.config(), tmp_path / "run")


def test_a_run_goes_on_with_another_learning_rate_in_a_copy(tmp_path, monkeypatch):
    """As docs/scale.md says of one that diverges."""
    tiny.stops(monkeypatch, 3)
    with pytest.raises(preemption.Preempted):
        pipeline.run(tiny.config("nominal", "rotnet"), tmp_path / "run")
    preemption._asked.clear()
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    lower = tiny.config("nominal", "rotnet", pretrain__optimizer__lr=1e-5, finetune__steps=1)
    path = tmp_path / "copy" / "config.json"
    with pytest.raises(UserError, match="belongs to another configuration"):
        pipeline.run(lower, tmp_path / "copy")
    config = json.loads(path.read_text())
    config["pretrain"]["optimizer"]["lr"], config["finetune"]["steps"] = 1e-5, 1
    path.write_text(json.dumps(config))
    pipeline.run(lower, tmp_path / "copy")
    records = tiny.records(tmp_path / "copy" / "pretrain" / "metrics.jsonl")
    rates = {r["step"]: r["learning_rate"] for r in records}
    assert list(rates) == [1, 2, 4, 6]
    assert rates[2] > 10 * rates[4]


def test_an_image_that_cannot_be_read_loses_no_step(tmp_path, monkeypatch):
    images = tiny.folder_of_images(tmp_path / "images", 60)
    changes = {"data__name": f"folder:{images}", "evaluate__split": "test", "save_every": 100}
    config = tiny.config("nominal", "rotnet", **changes)
    pipeline.run(config, tmp_path / "whole")
    contents = {path: path.read_bytes() for path in images.iterdir()}
    assembled = sharding.assembled

    def breaking(batch):
        for path in contents:
            path.write_bytes(b"broken")
        return assembled(batch)

    with monkeypatch.context() as patch:
        patch.setattr(sharding, "assembled", breaking)
        with pytest.raises(UserError, match=r"png: not a readable image"):
            pipeline.run(config, tmp_path / "run")
    assert (tmp_path / "run" / "report.html").exists()
    with Checkpoints(tmp_path / "run" / "pretrain" / "checkpoints") as checkpoints:
        assert 0 < checkpoints.latest() < 6
    for path, content in contents.items():
        path.write_bytes(content)
    pipeline.run(config, tmp_path / "run")
    ours, theirs = (tiny.params(tmp_path / run / "pretrain") for run in ("run", "whole"))
    chex.assert_trees_all_equal(ours, theirs)


@pytest.mark.parametrize(("hosts", "parts"), [(1, 16), (3, 1)])
def test_pictures_are_of_a_few_images_however_a_batch_is_split(hosts, parts, tmp_path, monkeypatch):
    """Into more parts than there are pictures, or over hosts that do not divide them."""
    config = parse(tiny.config("l2", "rotnet", pretrain__accumulation=parts).to_dict())
    source = sources.load("digits", "train", "")
    recipe = make_recipe(config.pretrain, make_task(config, config.pretrain, 10), 1)
    state = random_state(config.pretrain, recipe, jax.random.key(0))
    monkeypatch.setattr(jax, "process_count", lambda: hosts)
    pictures.pretraining(config, config.pretrain, state, "step 0", source, tmp_path)
    with np.load(tmp_path / "pretrain_gallery.npz") as drawn:
        clean, attacked = drawn["clean_input"], drawn["attacked_input"]
    assert len(clean) == pictures.PICTURES
    radii = np.linalg.norm((attacked - clean).reshape(len(clean), -1), axis=1)
    epsilon = config.pretrain.attack.epsilon
    assert np.all((radii > 0.7 * epsilon) & (radii <= epsilon * (1 + 1e-5))), radii


@pytest.mark.parametrize("name", ["config.json", "provenance.json", "results.json"])
def test_a_damaged_file_of_the_run_is_named(finished, name, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / name).write_text('{"half')
    with pytest.raises(UserError, match=rf"run/{name} is damaged .*move it away"):
        pipeline.run(tiny.config(), tmp_path / "run")
    other = "[3]" if name == "results.json" else "[]"
    (tmp_path / "run" / name).write_text(other)
    with pytest.raises(UserError, match=rf"run/{name} is damaged .a (list|int), not a dict"):
        pipeline.run(tiny.config(), tmp_path / "run")


def test_checkpoints_are_nobodys_without_their_configuration(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run/config.json").unlink()
    with pytest.raises(UserError, match=r"run/config\.json is gone, and the checkpoints beside it"):
        pipeline.run(tiny.config(pretrain__attack__epsilon=0.1), tmp_path / "run")


def test_a_workdir_is_for_one_run_at_a_time(tmp_path):
    with held(tmp_path), pytest.raises(UserError, match="another run is at work in"):
        pipeline.run(tiny.config(), tmp_path)


def test_a_workdir_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(UserError, match=f"{path} cannot be written to"):
            pipeline.run(tiny.config(), path)


def test_every_key_is_read(tmp_path, monkeypatch):
    """A key that only the border reads is dead: changing it would change nothing."""
    read = set()
    for _, cls in inspect.getmembers(config_module, dataclasses.is_dataclass):
        classes = [cls]
        if cls is config_module.Stage:
            classes += [k for choice in config_module._CHOICES.values() for k in choice.values()]
        for kind in classes:
            _watch(kind, read, monkeypatch)
    from adv_ssl.data.photometric import Photometric

    _watch(Photometric, read, monkeypatch)
    changes = {
        "pretrain__steps": 1,
        "finetune__steps": None,
        "finetune__epochs": 1 / 89,
        "pretrain__task__view1__jitter_prob": 0.5,
        "pretrain__task__view1__blur_prob": 0.5,
    }
    pipeline.run(tiny.config(**changes), tmp_path)
    unread = {
        (cls.__name__, field.name)
        for cls in {kind for kind, _ in read}
        for field in dataclasses.fields(cls)
    } - {(cls.__name__, name) for cls, name in read}
    # LARS is the imagenet scale's; its rule has a test of its own.
    assert {pair for pair in unread if pair[0] != "Lars"} == set()


def _is_of_the_border(frame):
    """Whether it checks, compares or copies: none of that computes with a value."""
    if frame.f_code.co_name in ("__hash__", "__eq__", "__repr__"):
        return True
    if frame.f_globals.get("__name__") == "dataclasses":
        return True
    while frame is not None:
        if frame.f_code.co_name == "__post_init__":
            return True
        frame = frame.f_back
    return False


def _watch(cls, read, monkeypatch):
    names = {field.name for field in dataclasses.fields(cls)}

    def watched(self, name):
        if name in names and not _is_of_the_border(sys._getframe(1)):
            read.add((cls, name))
        return object.__getattribute__(self, name)

    monkeypatch.setattr(cls, "__getattribute__", watched)


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_a_signal_saves_and_exits_with_75(number, tmp_path):
    command = [
        *(sys.executable, "-m", "adv_ssl.main", f"--workdir={tmp_path}"),
        *("--config=configs/rotnet_l2.py:digits", *tiny.flags("rotnet", pretrain__steps=100000)),
    ]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    log = tmp_path / "pretrain" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (log.exists() and log.read_text()):
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 75, out
    assert "stopped: start the same command" in out
    assert tiny.params(tmp_path / "pretrain")


def test_nobody_reads_any_more_and_the_run_goes_on(tmp_path):
    """As behind ``| head -1``: neither a traceback nor a lost step."""
    flags = f"--workdir={tmp_path}", "--config=configs/rotnet_nominal.py:digits"
    line = [sys.executable, "-m", "adv_ssl.main", *flags, *tiny.flags("rotnet")]
    piped = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(line, cwd=ROOT, **piped) as process:
        process.stdout.readline()
        process.stdout.close()
        error = process.stderr.read()
    assert (process.returncode, error) == (0, "")
    assert (tmp_path / "report.html").exists()
