"""Suites: every row by its own rule, what is missing said, the same whatever the batch."""

import dataclasses
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
import tfds_sets
import tiny
from absl import flags
from conftest import ROOT, TINY, random_classifier

from adv_ssl import evaluate as evaluate_command
from adv_ssl import provenance
from adv_ssl.checkpoint import Checkpoints, State
from adv_ssl.data import corruptions, sources, transforms
from adv_ssl.errors import UserError
from adv_ssl.evaluation import corrupted, images, page, predict, robust, rules, runner, suites
from adv_ssl.evaluation.predict import Model, Predictions
from adv_ssl.files import write_json
from adv_ssl.models.vit import ViT
from adv_ssl.tasks.classifier import classify
from adv_ssl.weights.transfer import export_weights

OPTIONS = runner.Options("", 4, 0)


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    root = tmp_path_factory.mktemp("sets")
    tfds_sets.write_imagenet_variants(root)
    return root


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """The folder of a stage with a tiny classifier of 1000 classes."""
    folder = tmp_path_factory.mktemp("run") / "finetune"
    save(folder, 1000)
    return folder


def save(
    folder: pathlib.Path,
    classes: int,
    names: tuple[str, ...] = (),
    step: int = 0,
    scale: float = 1.0,  # of the logits
) -> None:
    params = random_classifier(classes)
    noise = np.random.default_rng(1).standard_normal((TINY.width, classes)).astype(np.float32)
    params["head"]["kernel"] = jnp.asarray(scale * noise)
    with Checkpoints(folder / "checkpoints", TINY) as checkpoints:
        checkpoints.save(State(jnp.int32(step), params, None, None, jnp.int32(0)), wait=True)
    if names:
        write_json(folder / "stage.json", {"steps": 0, "classes": names})


def row(name: str) -> suites.Row:
    return next(row for row in suites.IMAGENET if row.name == name)


def score(name, logits, sets, monkeypatch, tmp_path, classes=1000):
    """The records of a row where the model's logits are ``logits``."""

    def said(model, source, what, resize, batch_size):
        assert resize == images.resize_of(which, model)
        labels = np.array([source.records[i]["label"] for i in range(len(source.records))])
        return Predictions(np.asarray(logits, np.float32), labels, 1.0, 0.5)

    monkeypatch.setattr(runner, "predict", said)
    model = Model(TINY, {"head": {"kernel": np.zeros((1, classes))}}, ())
    options = runner.Options(str(sets), 4, 0)
    which = row(name) if isinstance(name, str) else name
    records = runner._score(which, model, options, tmp_path / "figures")
    return {r["metric"]: (r["value"], r["n"]) for r in records}


def logits_of(*firsts: int | tuple[int, ...]) -> np.ndarray:
    """Rows of logits whose largest ones stand at the given places, in their order."""
    made = np.zeros((len(firsts), 1000))
    for i, places in enumerate(firsts):
        for rank, place in enumerate(places if isinstance(places, tuple) else (places,)):
            made[i, place] = 10 - rank
    return made


def test_what_is_resized_before_its_centre_is_cropped():
    """E, F: a side of 256 for 224 pixels; the conflict stimuli and ImageNet-C come at 224."""
    model = Model(dataclasses.replace(TINY, image_size=224), {}, ())
    assert [images.resize_of(row, model) for row in suites.IMAGENET] == [256] * 6 + [0] * 76


def test_the_logits_of_a_set_are_those_of_its_pixels(sets, classifier):
    model = predict.load(classifier)
    source = images.opened(row("conflict"), model, str(sets))
    found = predict.predict(model, source, "conflict", 0, 3).logits
    pixels = [transforms.eval_crop(r["image"], 0, TINY.image_size) for r in source.records]
    x = np.stack(pixels).astype(np.float32) / 255
    expected = classify(ViT(TINY), model.params, x, None)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_the_sets_of_the_suites():
    """E and F, written out: name, set, split, images, whether the centre is cropped."""
    rows = [r for r in suites.IMAGENET if not r.name.startswith("c/")]
    assert [tuple(r[:5]) for r in rows] == [
        ("imagenet", "imagenet2012:5.*", "validation", 50_000, True),
        ("real", "imagenet2012_real:1.0.0", "validation", 50_000, True),
        ("v2", "imagenet_v2/matched-frequency:3.0.0", "test", 10_000, True),
        ("a", "imagenet_a:0.1.0", "test", 7_500, True),
        ("r", "imagenet_r:0.2.0", "test", 30_000, True),
        ("sketch", "imagenet_sketch:1.0.0", "test", 50_889, True),
        ("conflict", "geirhos_conflict_stimuli:1.0.0", "test", 1_280, False),
    ]
    corrupted = suites.IMAGENET[len(rows) :]
    assert len(corrupted) == 75
    assert tuple(corrupted[-1][:5]) == (
        "c/jpeg_compression_5", "imagenet2012_corrupted/jpeg_compression_5:3.1.0", "validation",
        50_000, False,
    )  # fmt: skip
    assert not any(r.crop or r.corruption for r in corrupted)
    assert [tuple(r[:5]) for r in suites.TRANSFER] == [
        ("cifar10", "cifar10:3.0.2", "test", 10_000, False),
        ("cifar100", "cifar100:3.0.2", "test", 10_000, False),
        ("sun397", "sun397/tfds:4.0.0", "test", 21_750, False),
        ("resisc45", "resisc45:3.0.0", "train[80%:]", 6_300, False),
        ("dmlab", "dmlab:2.0.1", "test", 22_735, False),
    ]


def test_imagenet_v2_is_by_integer_label_and_not_by_folder_order(sets, monkeypatch, tmp_path):
    """F10: labels 0, 10, 100 and 999 as they are, where a sort of names would make 0, 1, 2, 3."""
    found = score("v2", logits_of(0, 10, 100, 3), sets, monkeypatch, tmp_path)
    assert found == {"top1": (0.75, 4)}


def test_real_counts_any_of_its_labels_and_skips_images_without(sets, monkeypatch, tmp_path):
    """Labels {3}, {}, {5, 6}, {999}; 3, 0, 6, 0 are said."""
    found = score("real", logits_of(3, 0, 6, 0), sets, monkeypatch, tmp_path)
    assert found == {"top1": (2 / 3, 3)}


def test_a_is_among_its_200_classes_and_1000_way_beside_it(sets, monkeypatch, tmp_path):
    """Labels 6 and 11; class 0 is none of the 200: a guess of it is passed over."""
    found = score("a", logits_of((0, 6), (0, 6, 11)), sets, monkeypatch, tmp_path)
    assert found == {"top1": (0.5, 2), "top1_1000way": (0.0, 2)}


def test_cifar10_shares_seven_classes_with_conflict(sets, monkeypatch, tmp_path):
    """Shapes airplane, bear, bicycle, bird, boat; textures the same, bicycle, bear, boat, bird."""
    stimuli = suites.CIFAR10[1]
    logits = np.eye(10)[[0, 0, 0, 2, 2]]  # airplane thrice, bird twice
    found = score(stimuli, logits, sets, monkeypatch, tmp_path, classes=10)
    assert found == {
        "shape_top1": (2 / 3, 3),  # of airplane, bird, boat
        "shape_top1_conflict": (1 / 2, 2),
        "texture_top1_conflict": (1 / 2, 2),
        "shape_bias": (1 / 2, 2),
    }
    with np.load(tmp_path / "figures" / "wrong_conflict.npz") as wrong:
        assert wrong["label"].tolist() == ["shape boat, texture bird"]
        assert wrong["said"].tolist() == ["bird"]


def test_conflict_decides_by_the_mean_of_a_classs_indices(sets, monkeypatch, tmp_path):
    """F4: bears are four of the 1000 classes, whose sum is more than the airplane's one."""
    classes = runner.rules.conflict_classes()
    logits = np.full((5, 1000), -50.0)
    logits[:, list(classes["airplane"])] = np.log(0.3)
    logits[:, list(classes["bear"])] = np.log(0.1)
    assert (len(classes["airplane"]), len(classes["bear"])) == (1, 4)
    found = score("conflict", logits, sets, monkeypatch, tmp_path)
    assert found["shape_top1"] == (1 / 5, 5)  # the first image's shape
    assert found["shape_top1_by_sum"] == (1 / 5, 5)  # the second's


def test_conflict_counts_shapes_and_textures(sets, monkeypatch, tmp_path):
    """Shapes 0 1 2 3 4, textures 0 2 1 4 3. Said: shape, shape, texture, shape, neither."""
    said = [np.full(1000, -50.0) for _ in range(5)]
    for logits, decided in zip(said, (0, 1, 1, 3, 9), strict=True):
        logits[list(list(runner.rules.conflict_classes().values())[decided])] = 5.0
    found = score("conflict", said, sets, monkeypatch, tmp_path)
    assert found["shape_top1"] == (3 / 5, 5)
    assert found["shape_top1_conflict"] == (2 / 4, 4)
    assert found["texture_top1_conflict"] == (1 / 4, 4)
    assert found["shape_bias"] == (2 / 3, 3)
    assert {f"{metric}_by_sum" for metric in list(found)[:5]} == set(list(found)[5:])


def test_what_was_got_wrong_is_kept_with_its_names(sets, monkeypatch, tmp_path):
    score("v2", logits_of(0, 1, 100, 3), sets, monkeypatch, tmp_path)
    with np.load(tmp_path / "figures" / "wrong_v2.npz") as wrong:
        assert list(wrong["label"]) == ["brambling", "toilet tissue"]
        assert list(wrong["said"]) == ["goldfish", "tiger shark"]
        assert wrong["images"].shape == (2, 8, 8, 3)


@pytest.fixture(scope="module")
def scored(sets, classifier, tmp_path_factory):
    """The suite imagenet over the small sets, as the command scores it."""
    workdir = tmp_path_factory.mktemp("scores")
    line = f"--weights={classifier} --suite=imagenet --workdir={workdir} --data_dir={sets}"
    done = evaluate(*line.split())
    assert done.returncode == 0, done.stderr
    return workdir


def evaluate(*arguments: str, devices: int = 1) -> subprocess.CompletedProcess:
    flags = f"--xla_force_host_platform_device_count={devices}"
    return subprocess.run(
        [sys.executable, "-m", "adv_ssl.evaluate", *arguments],
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_all_rows_and_means_of_the_suite(scored):
    records = tiny.results(scored)
    own = {}
    for record in records:
        own.setdefault(record["dataset"], record)
    assert len(own) == 7 + 75 + 2
    assert all(record["value"] is not None for record in own.values())
    assert {name: r["n"] for name, r in own.items() if name[:2] != "c/"} == {
        "imagenet": 3, "real": 3, "v2": 4, "a": 2, "r": 3, "sketch": 2, "conflict": 5,
        "c": 75, "mean": 8,
    }  # fmt: skip
    cells = [r["value"] for name, r in own.items() if name[:2] == "c/"]
    assert own["c"]["value"] == pytest.approx(np.mean(cells))
    low, high = own["c"]["ci95"]
    assert low <= own["c"]["value"] <= high
    eight = [own[name]["value"] for name in runner.rules.VARIANTS]
    assert own["mean"]["value"] == pytest.approx(np.mean(eight))
    assert "a sample: 3 images, the set has 50000" in own["imagenet"]["flags"]
    assert own["mean"]["flags"] == ["over samples"]


def test_the_page_of_the_suite(scored):
    text = (scored / "report.html").read_text()
    for said in ("Suite imagenet", "jpeg compression", "a sample: 2 images", "Wrong", "Provenance"):
        assert said in text
    assert "not prepared" not in text


def test_the_numbers_on_the_page_are_those_of_the_records(scored, tmp_path):
    shutil.copytree(scored, tmp_path / "scores")
    records = tiny.results(scored)
    for r in records:
        if r["dataset"].startswith("c/fog_"):
            r["value"] = int(r["dataset"][-1]) / 10
        if r["dataset"] == "v2" and r["metric"] == "top1":
            r |= {"value": 0.625, "ci95": [0.5, 0.75]}
            clean = r
    attack = {"name": "pgd", "norm": "l2", "epsilon": 0.5, "steps": 40}
    for name, value in (("pgd", 0.375), ("apgd", 0.25)):  # the stronger one is the score
        records.append(
            clean | {"suite": "robust", "value": value, "attack": attack | {"name": name}}
        )
    (tmp_path / "scores" / "results.json").write_text(json.dumps(records))
    text = page.write(tmp_path / "scores").read_text()
    plain = " ".join(re.sub(r"<[^>]*>", " ", text).split())
    assert "fog 10.0 20.0 30.0 40.0 50.0 30.0" in plain
    assert "62.5 50.0 to 75.0 4" in plain
    headline = plain.split("Suite imagenet")[0]
    assert "v2 62.5%" in headline
    assert "0.5 25.0%" in headline
    assert "37.5%" not in headline


def test_the_same_command_again_scores_nothing_again(scored, sets, classifier, monkeypatch):
    monkeypatch.setattr(runner, "predict", lambda *_: pytest.fail("it scored again"))
    before = tiny.results(scored)
    options = runner.Options(str(sets), 4, 0)
    assert runner.run("imagenet", predict.load(classifier), options, scored) == before


def told(records):
    return [(r["dataset"], r["metric"], r["value"], r["n"]) for r in records]


def test_batches_change_nothing(sets, classifier, scored, tmp_path, monkeypatch):
    """In the sets of more than 3 images; those of fewer have the same batch as before."""
    larger = [row(name) for name in ("real", "v2", "conflict")]
    monkeypatch.setitem(suites.SUITES, "imagenet", larger)
    monkeypatch.setattr(runner, "summary", lambda *_: [])
    model = predict.load(classifier)
    records = runner.run("imagenet", model, runner.Options(str(sets), 3, 0), tmp_path)
    names = [one.name for one in larger]
    assert told(records) == told(r for r in tiny.results(scored) if r["dataset"] in names)


def test_devices_change_nothing(sets, classifier, scored, tmp_path):
    done = evaluate(
        f"--weights={classifier}", "--suite=imagenet", f"--workdir={tmp_path}",
        f"--data_dir={sets}", "--batch_size=3", devices=8,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert told(tiny.results(tmp_path)) == told(tiny.results(scored))
    assert len(json.loads((tmp_path / "provenance.json").read_text())["devices"]) == 8


def test_a_stopped_suite_goes_on_where_it_was(sets, classifier, tmp_path, monkeypatch):
    """Stopped in its third row: the two before are not scored again."""
    predicted, asked = runner.predict, []

    def stopping(model, source, what, *options):
        asked.append(what)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return predicted(model, source, what, *options)

    monkeypatch.setattr(runner, "predict", stopping)
    monkeypatch.setitem(suites.SUITES, "imagenet", suites.IMAGENET[:5])
    model, options = predict.load(classifier), runner.Options(str(sets), 4, 0)
    with pytest.raises(KeyboardInterrupt):
        runner.run("imagenet", model, options, tmp_path)
    assert [r["dataset"] for r in tiny.results(tmp_path)] == ["imagenet", "real"]
    records = runner.run("imagenet", model, options, tmp_path)
    assert asked == ["imagenet", "real", "v2", "v2", "a", "r"]
    assert [r["dataset"] for r in records if r["kind"] == "row" and r["metric"] == "top1"] == [
        "imagenet", "real", "v2", "a", "r",
    ]  # fmt: skip


def test_a_damaged_set_is_a_row_and_the_others_are_scored(sets, classifier, tmp_path, monkeypatch):
    predicted = runner.predict

    def damaged(model, source, what, *options):
        if what == "v2":
            raise UserError("image 3 of test cannot be read")
        return predicted(model, source, what, *options)

    monkeypatch.setattr(runner, "predict", damaged)
    monkeypatch.setitem(suites.SUITES, "imagenet", suites.IMAGENET[:7])
    options = runner.Options(str(sets), 4, 0)
    own = runner._own(runner.run("imagenet", predict.load(classifier), options, tmp_path))
    assert own["v2"]["missing"] == "image 3 of test cannot be read"
    assert own["sketch"]["n"] == 2
    assert own["mean"]["value"] is None


def test_a_missing_set_is_a_row_and_in_no_mean(sets, classifier, tmp_path):
    shutil.copytree(sets, tmp_path / "sets")
    shutil.rmtree(tmp_path / "sets" / "imagenet_r")
    shutil.rmtree(tmp_path / "sets" / "imagenet2012_corrupted" / "fog_3")
    model, options = predict.load(classifier), runner.Options(str(tmp_path / "sets"), 4, 0)
    records = runner.run("imagenet", model, options, tmp_path / "run")
    lacking = {r["dataset"]: r["missing"] for r in runner._own(records).values() if not r["n"]}
    assert set(lacking) == {"r", "c/fog_3", "c", "mean"}
    assert "tfds build imagenet_r:0.2.0 --file_format=array_record" in lacking["r"]
    assert "1 of the 75 corrupted sets have no score" in lacking["c"]
    assert "2 of the eight rows have no score" in lacking["mean"]
    write_json(tmp_path / "run" / "evaluation.json", {"weights": "w"})
    provenance.record(tmp_path / "run" / "provenance.json", 0, {})
    assert "tfds build imagenet_r:0.2.0" in page.write(tmp_path / "run").read_text()
    options = runner.Options(str(sets), 4, 0)  # now it is there
    records = runner.run("imagenet", model, options, tmp_path / "run")
    assert all(r["value"] is not None for r in runner._own(records).values())
    assert len(records) == len({(r["dataset"], r["metric"]) for r in records})


def test_a_set_of_another_class_order_is_named(sets, classifier, tmp_path):
    shutil.copytree(sets, tmp_path / "sets")
    names = tmp_path / "sets" / "imagenet_a" / "0.1.0" / "label.labels.txt"
    lines = names.read_text().splitlines()
    names.write_text("\n".join([lines[1], lines[0], *lines[2:]]) + "\n")
    options = runner.Options(str(tmp_path / "sets"), 4, 0)
    with pytest.raises(UserError, match=r"not the 1000 sorted WNIDs .* class 0, n01443537"):
        images.opened(row("a"), predict.load(classifier), options.data_dir)


def test_a_model_of_another_class_order_is_named(sets, tmp_path):
    """Known by its names, or else by a score that is no better than chance (P19)."""
    save(tmp_path / "named", 1000, tuple(reversed(rules.wnids())))
    options = runner.Options(str(sets), 4, 0)
    with pytest.raises(UserError, match=r"other classes or another order, .* class 0, n15075141"):
        images.opened(row("v2"), predict.load(tmp_path / "named"), options.data_dir)
    model = Model(TINY, {"head": {"kernel": np.zeros((1, 10))}}, ())
    shown = suites.CIFAR10[0]
    for value, doubted in ((0.10, True), (0.05, True), (0.20, False)):
        record = {"n": 10_000, "value": value, "whole": True}
        flags = runner._doubts(shown, model, record)
        assert any("no better than chance" in flag for flag in flags) == doubted


def test_labels_that_are_lost_are_named():
    """ImageNet ReaL has labels for 46,837 of its 50,000 images (F)."""
    model = Model(TINY, {"head": {"kernel": np.zeros((1, 1000))}}, ())
    for n, told in ((46_837, 0), (46_836, 1)):
        found = runner._doubts(row("real"), model, {"n": n, "value": 0.8, "whole": True})
        assert len(found) == told


@pytest.mark.parametrize(
    ("order", "named"),
    [
        ([0, 1, 2, 5, 4, 3, 6, 7, 8, 9], "2 classes seem swapped, such as cat for dog"),
        ([*range(1, 10), 0], "10 classes seem swapped, such as airplane for automobile"),
        ([*range(10)], None),
    ],
)
def test_a_planted_class_order_is_named(order, named, tmp_path, monkeypatch):
    """Two classes that changed places leave a score of 80%; only a look at what is said shows it.

    With all of them moved the score is no better than chance, which is told as well.
    """
    labels = np.tile(np.arange(10), 8)
    examples = [{"image": np.zeros((4, 4, 3), np.uint8), "label": int(i)} for i in labels]
    label = tfds_sets.tfds.features.ClassLabel(names=runner.rules.CIFAR10)
    tfds_sets.write(tmp_path, "cifar10:3.0.2", "test", {"label": label}, examples)
    said = Predictions(np.eye(10)[np.array(order)[labels]], labels, 1.0, 0.5)
    monkeypatch.setattr(runner, "predict", lambda *_: said)
    model = Model(TINY, {"head": {"kernel": np.zeros((1, 10))}}, ())
    options = runner.Options(str(tmp_path), 4, 0)
    record, *_ = runner._score(suites.CIFAR10[0], model, options, tmp_path / "figures")
    flags = [flag for flag in record["flags"] if not flag.startswith("a sample")]
    moved = sum(place != i for i, place in enumerate(order))
    assert record["value"] == 1 - moved / 10
    assert len(flags) == (0 if named is None else 1 if moved < 10 else 2)
    assert ("no better than chance" in "".join(flags)) == (moved == 10)
    assert named is None or f"{named}: is it this set's class order?" in flags


def test_a_model_of_other_classes_is_refused(sets, tmp_path):
    save(tmp_path / "ten", 10)
    with pytest.raises(UserError, match="is scored with 1000 classes and the model has 10"):
        images.opened(row("v2"), predict.load(tmp_path / "ten"), str(sets))


def test_corruptions_on_the_fly(real_data, tmp_path):
    """The suite cifar10: the same images, corrupted by seed and place."""
    save(tmp_path / "ten", 10)
    noise = next(row for row in suites.CIFAR10 if row.name == "c/gaussian_noise_5")
    clean = images.opened(noise, predict.load(tmp_path / "ten"), str(real_data)).first(6)

    def pixels(source: sources.Source) -> np.ndarray:
        return np.array([source.records[i]["image"] for i in range(6)])

    a, b, other = (corrupted.corrupted(clean, noise.corruption, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(pixels(a), pixels(b))
    assert 5 < np.abs(np.float32(pixels(clean)) - pixels(a)).mean() < 60
    assert (pixels(a)[0] != pixels(other)[0]).any()


def test_corrupted_images_are_kept_for_the_next_model(tmp_path, monkeypatch):
    def opened(value: int, seed: int = 0, name: str = "fog", folder="kept") -> list[np.ndarray]:
        clean = np.full((3, 8, 8, 3), value, np.uint8)
        records = sources.Records("plain", 3, 10, lambda i: (clean[i], i))
        kept = folder and tmp_path / folder
        made = corrupted.corrupted(sources.Source(records, 10, ()), (name, 3), seed, kept).records
        assert [record["label"] for record in made] == [0, 1, 2]
        return [np.array(record["image"]) for record in made]

    made = opened(100)
    np.testing.assert_array_equal(made, opened(100, folder=None))
    assert (made[0] != made[1]).any()  # each by its place
    with monkeypatch.context() as patch:
        patch.setattr(corruptions, "corrupt", None)  # nothing is made again
        np.testing.assert_array_equal(made, opened(100))
        for other in ({"value": 101}, {"value": 100, "seed": 1}, {"value": 100, "name": "snow"}):
            with pytest.raises(TypeError):
                opened(**other)
    assert (np.array(made) != opened(100, seed=1)).any()
    for path in tmp_path.rglob("*.npy"):
        path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(UserError, match=r"_3\.npy is damaged .*: remove it, and it is made anew"):
        opened(100)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".npy"]


def command(*arguments: str) -> None:
    """The command line, in this process."""
    flags.FLAGS.unparse_flags()
    try:
        evaluate_command._work(evaluate_command._parse_flags(["evaluate", *arguments]))
    finally:
        for name in ("weights", "suite", "workdir", "images", "batch_size", "seed", "radii",
                     "data_dir", "data", "attack", "corrupted"):  # fmt: skip
            flags.FLAGS[name].unparse()


def test_a_suite_of_which_nothing_is_scored_says_so(tmp_path):
    save(tmp_path / "ten", 10)
    line = [f"--weights={tmp_path / 'ten'}", "--suite=transfer", f"--workdir={tmp_path / 'w'}"]
    said = r"--suite=transfer: nothing was scored, each of its 5 sets is missing; cifar10: data set"
    with pytest.raises(UserError, match=said):
        command(*line, "--data_dir=/nowhere")
    assert "nothing scored; missing: cifar10" in (tmp_path / "w" / "report.html").read_text()


def test_a_folder_of_scores_is_of_the_same_weights(tmp_path):
    """A mistyped path claims no folder; weights that were trained on need a new one."""
    run, scores = tmp_path / "run", tmp_path / "w"
    save(run / "finetune", 10)
    line = ["--suite=transfer", f"--workdir={scores}", "--data_dir=/nowhere"]
    with pytest.raises(UserError, match=r"did you mean .*finetune"):
        command(f"--weights={run}", *line)
    for _ in range(2):
        with pytest.raises(UserError, match="nothing was scored"):
            command(f"--weights={run / 'finetune'}", *line)
    run.rename(tmp_path / "moved")  # the same weights, wherever they lie
    with pytest.raises(UserError, match="nothing was scored"):
        command(f"--weights={tmp_path / 'moved/finetune'}", *line)
    save(tmp_path / "moved/finetune", 10, step=1)
    with pytest.raises(UserError, match="holds scores of other weights: choose another"):
        command(f"--weights={tmp_path / 'moved/finetune'}", *line)
    (scores / "evaluation.json").unlink()
    with pytest.raises(UserError, match="nobody knows whose scores"):
        command(f"--weights={tmp_path / 'moved/finetune'}", *line)


def test_a_suite_and_robust_accuracy_of_fewer_images_share_a_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(robust, "_doubt", lambda *_: [])
    save(tmp_path / "ten", 10, tuple("0123456789"))
    line = [f"--weights={tmp_path / 'ten'}", f"--workdir={tmp_path / 'w'}"]
    with pytest.raises(UserError, match="nothing was scored"):
        command(*line, "--suite=transfer", "--data_dir=/nowhere")
    for count, radii in ((2, "0.1"), (4, "0.1"), (4, "0.05")):
        attack = "--data=digits", "--attack=pgd", f"--radii={radii}", f"--images={count}"
        command(*line, "--suite=robust", "--batch_size=2", *attack)
    records = [r for r in tiny.results(tmp_path / "w") if r["suite"] == "robust"]
    assert [(r["n"], r["attack"] and r["attack"]["epsilon"]) for r in records] == [
        (2, None), (2, 0.1), (4, 0.1), (4, None), (4, 0.05),
    ]  # fmt: skip


def test_a_curve_is_of_one_number_of_images_and_its_radii_go_up():
    def record(n, epsilon):
        attack = epsilon and {"name": "pgd", "norm": "l2", "epsilon": epsilon}
        value = n / 100 - epsilon
        return {"dataset": "d", "value": value, "ci95": [0, 1], "n": n, "attack": attack}

    asked = ((50, 0.0), (50, 0.25), (20, 0.0), (20, 0.1), (50, 0.125))
    records = [record(*pair) for pair in asked]
    found = page.curves(records, lambda r: f"{r['n']} images", lambda r: f"{r['n']} by pgd")
    assert {name: [point[:2] for point in points] for name, points in found["l2"].items()} == {
        "50 by pgd": [[0, 0.5], [0.125, 0.375], [0.25, 0.25]],
        "20 by pgd": [[0, 0.2], [0.1, pytest.approx(0.1)]],
    }


def test_a_radius_in_another_unit_claims_no_folder(tmp_path):
    save(tmp_path / "ten", 10)
    line = f"--weights={tmp_path / 'ten'}", f"--workdir={tmp_path / 'w'}", "--suite=robust"
    with pytest.raises(UserError, match="did you mean 128/255"):
        command(*line, "--data=digits", "--radii=128")
    assert not [p for p in (tmp_path / "w").iterdir() if p.suffix in (".json", ".html")]


def test_weights_of_another_file_are_not_those_of_the_one_before(tmp_path):
    """What was made of a file stays in a folder that was then not claimed."""
    for name, scale in (("a", 1.0), ("b", -1.0)):
        save(tmp_path / name, 10, scale=scale)
        export_weights(tmp_path / name, tmp_path / f"{name}.npz")

    def clean(name: str, folder: str, radii: str = "0.1") -> float:
        line = f"--weights={tmp_path / name}.npz", f"--workdir={tmp_path / folder}"
        attack = "--suite=robust", "--attack=pgd", "--data=digits", "--images=20"
        command(*line, *attack, f"--radii={radii}")
        return tiny.results(tmp_path / folder)[0]["value"]

    with pytest.raises(UserError, match="did you mean 128/255"):
        clean("a", "w", radii="128")
    assert clean("b", "w") == clean("b", "new") != clean("a", "old")


def test_the_images_of_a_run_are_prepared_as_it_scores_them(tmp_path, monkeypatch):
    """However the path of their folder is written; of a file alone it has to be said."""
    monkeypatch.chdir(tmp_path)
    tiny.folder_of_images(tmp_path / "images" / "train" / "a", 4, size=40)
    tiny.folder_of_images(tmp_path / "images" / "test" / "a", 4, size=40)
    tiny.folder_of_images(tmp_path / "images" / "test" / "b", 4, size=40)
    tiny.folder_of_images(tmp_path / "images" / "train" / "b", 4, size=40)
    config = tiny.config(data__name=f"folder:{tmp_path}/images", evaluate__resize=24).to_dict()
    write_json(tmp_path / "run" / "config.json", config)
    model = Model(TINY, {"head": {"kernel": np.zeros((8, 2))}}, ("a", "b"))
    for written in (f"folder:{tmp_path}/images", f"folder:{tmp_path}/images/", "folder:images"):
        assert images.to_attack(model, written, None, "", tmp_path / "run")[1] == 24
    assert images.to_attack(model, "folder:images", None, "", tmp_path / "file")[1] == 0
    assert images.to_attack(model, "folder:images", None, "", tmp_path / "file", 24)[1] == 24
    versions = {images._place(name) for name in ("cifar10", "cifar10:3.0.2", "cifar10:3.*")}
    assert versions == {"cifar10"}
    assert images.described(24, 16) == "short side 24, central crop of 16"
    assert images.described(0, 16) == "stretched to 16 x 16"


def test_scores_of_a_model_trained_in_part_say_so(sets, tmp_path):
    save(tmp_path / "stage", 1000, step=2300)
    options = runner.Options(str(sets), 4, 0)
    for steps, said in ((3000, ["trained in part: step 2,300 of 3,000"]), (2300, [])):
        facts = {"steps": steps, "classes": rules.wnids()}
        write_json(tmp_path / "stage" / "stage.json", facts)
        model = predict.load(tmp_path / "stage")
        first = runner._score(row("a"), model, options, tmp_path / "figures")[0]
        assert [flag for flag in first["flags"] if "in part" in flag] == said


def test_planted_logits_that_mask_the_gradient_are_named(tmp_path, monkeypatch):
    """A classifier with a million times its head, through the command, to the page."""
    clean, noise, *_, last = robust.gradient_masking.LADDER
    monkeypatch.setattr(robust.gradient_masking, "LADDER", (clean, noise, last))
    save(tmp_path / "ten", 10, scale=1e6)
    write_json(tmp_path / "ten" / "stage.json", {"steps": 7, "classes": []})
    command(
        f"--weights={tmp_path / 'ten'}", "--suite=robust", f"--workdir={tmp_path / 'w'}",
        "--data=digits", "--attack=pgd", "--radii=0.1", "--images=40", "--batch_size=40",
    )  # fmt: skip
    clean, attacked = tiny.results(tmp_path / "w")
    assert 0 < clean["value"] < 0.5
    assert any("masked gradients" in flag for flag in attacked["flags"])
    assert all("trained in part: step 0 of 7" in r["flags"] for r in (clean, attacked))
    assert "attacks by cross-entropy are blind" in (tmp_path / "w" / "report.html").read_text()


def test_images_of_a_runs_own_set_are_attacked_as_the_run_scores_them(tmp_path):
    """Cropped where the run crops; a set that it was not trained on is stretched."""
    save(tmp_path / "finetune", 10)
    model = predict.load(tmp_path / "finetune")
    assert images.to_attack(model, "digits", None, "", tmp_path)[1] == 0
    write_json(tmp_path / "config.json", {"architecture": "vit_base"})  # of timm's hub
    assert images.to_attack(model, "digits", None, "", tmp_path)[1] == 0
    for name, resize in (("digits", 20), ("folder:/images", 0)):
        config = tiny.config(data__name=name, evaluate__resize=20).to_dict()
        del config["init_from"]  # of a run from before that key was there
        write_json(tmp_path / "config.json", config)
        assert images.to_attack(model, "digits", None, "", tmp_path)[1] == resize
    write_json(tmp_path / "config.json", config | {"data": []})
    with pytest.raises(UserError, match=r"config\.json is damaged .*: move it away, or give --res"):
        images.to_attack(model, "digits", None, "", tmp_path)


@pytest.mark.parametrize(
    ("name", "split", "found"),
    [
        (None, None, ("imagenet2012:5.*", "validation", True)),
        (None, "validation[:9]", ("imagenet2012:5.*", "validation[:9]", True)),
        ("imagenet2012", None, ("imagenet2012", "validation", True)),
        ("imagenet_v2/topimages:3.0.0", None, ("imagenet_v2/topimages:3.0.0", "test", True)),
        ("imagenet_sketch", "test[:5]", ("imagenet_sketch", "test[:5]", True)),
        ("imagenet2012_corrupted/fog_1:3.1.0", None,
         ("imagenet2012_corrupted/fog_1:3.1.0", "validation", False)),
        ("folder:/images", None, ("folder:/images", "test", False)),
    ],
)  # fmt: skip
def test_a_set_is_attacked_as_its_suite_scores_it(name, split, found):
    model = predict.Model(TINY, {"head": {"kernel": np.zeros((4, 1000))}}, ())
    row = images._row(model, name, split)
    assert (row.dataset, row.split, row.crop) == found
    for other in (
        "imagenet_a",
        "imagenet_r:0.2.0",
        "imagenet2012_real",
        "geirhos_conflict_stimuli",
    ):
        with pytest.raises(UserError, match=f"--data={other}: only sets with one label an image"):
            images._row(model, other, None)


def test_the_folder_of_a_run_is_no_place_for_scores(tmp_path):
    save(tmp_path / "ten", 10)
    write_json(tmp_path / "config.json", {})
    with pytest.raises(UserError, match="is the folder of a run"):
        command(f"--weights={tmp_path / 'ten'}", "--suite=transfer", f"--workdir={tmp_path}")
    assert not (tmp_path / "results.json").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--suite=imagenet", "--workdir=w"], "--weights=PATH, --suite=NAME and --workdir=DIR"),
        (["--weights=nowhere", "--suite=imagenet", "--workdir=w"], "there is no such file"),
        (["--weights=.", "--suite=imagenett", "--workdir=w"], "one of <imagenet|transfer|"),
        (["--weights=.", "--suite=imagenet", "--workdir=w", "--batch_size=0"], "--batch_size=0"),
        (
            ["--weights=.", "--suite=imagenet", "--workdir=w", "--images=-1"],
            "--images=-1: -1 is not",
        ),
        (["--weights=.", "--suite=cifar10", "--workdir=w", "--attack=pgd"], "is of --suite=robust"),
        (["--weights=.", "--suite=cifar10", "--workdir=w", "--seed=-1"], "--seed=-1: -1 is not"),
        (["--weights=.", "--suite=robust", "--workdir=w", "--corrupted=w"], "of --suite=cifar10"),
        (["--weights=.", "--suite=robust", "--workdir=w", "--radii=1e400"], "'1e400' is no number"),
        (["--weights=.", "--suite=robust", "--workdir=w", "--radii=1e99999999"], "is no number"),
        (["--weights=.", "--suite=robust", "--workdir=w", "--radii=1/0"], "'1/0' is no number"),
        (["--weights=.", "--suite=robust", "--workdir=w", "--radii=4/"], "'4/' is no number"),
        (["--weights=.", "--suite=robust", "--workdir=w", "--radii=4/255"], "take --norm=linf; if"),
        (["--weights=README.md", "--suite=imagenet", "--workdir=w"], "README.md"),
        (["--weights=configs", "--suite=imagenet", "--workdir=w"], "configs: no checkpoint in it"),
    ],
)
def test_mistakes_in_the_command(arguments, said, tmp_path, capsys):
    arguments = [a.replace("--workdir=w", f"--workdir={tmp_path / 'w'}") for a in arguments]
    with pytest.raises((SystemExit, UserError)) as raised:
        command(*arguments)
    shown = capsys.readouterr()
    text = shown.err if raised.type is SystemExit else str(raised.value)
    assert said in text
    assert "\n" not in text.strip()
    assert shown.out == ""


def test_a_mistake_ends_with_one_line_and_2(tmp_path):
    done = evaluate("--weights=README.md", "--suite=imagenet", f"--workdir={tmp_path / 'w'}")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("adv_ssl: README.md")
    assert done.stderr.count("\n") == 1
    done = evaluate("--suite=imagenet", "--coordinator=host:1")  # it runs on one host
    assert done.returncode == 2
    assert done.stderr.startswith("adv_ssl: Unknown command line flag 'coordinator'")
