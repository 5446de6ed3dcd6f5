"""The robust suite: curves that fall, runs that go on, attacks that doubt themselves."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from adv_ssl.data.sources import Records, Source
from adv_ssl.errors import UserError
from adv_ssl.evaluation import gradient_masking, page, predict, robust
from adv_ssl.evaluation.predict import Model
from adv_ssl.models.vit import Architecture
from adv_ssl.robustness.autoattack import Budget

SIDE, CLASSES = 4, 5
ARCHITECTURE = Architecture(SIDE, 2, 4, 1, 1, 4)
QUICK = Budget(steps=6, targets=2, queries=20, pgd_steps=6)
COUNT = 30


def network(params, x):
    """A random network of one hidden layer, in the place of the ViT."""
    return jnp.tanh((x.reshape(len(x), -1) - 0.5) @ params["in"]) @ params["head"]["kernel"]


def sure(params, x):
    """The same with logits so far apart that float32 knows no other class."""
    return 1e6 * network(params, x)


def stepped(params, x):
    """Flat between steps: no gradient at all."""
    return network(params, jnp.round(x * 8) / 8)


@pytest.fixture(scope="module")
def model():
    rng = np.random.default_rng(0)
    params = {
        "in": 4 * rng.standard_normal((SIDE * SIDE * 3, 16), np.float32) / SIDE,
        "head": {"kernel": rng.standard_normal((16, CLASSES), np.float32)},
    }
    return Model(ARCHITECTURE, params, ())


@pytest.fixture
def plain(monkeypatch):
    for module in (robust, gradient_masking, predict):
        monkeypatch.setattr(module, "classifier", lambda architecture: network)


@pytest.fixture(scope="module")
def source(model):
    """Images that the network classifies right, but for the last five."""
    images = np.random.default_rng(1).integers(0, 256, (COUNT, SIDE, SIDE, 3), np.uint8)
    labels = np.asarray(network(model.params, images.astype(np.float32) / 255)).argmax(-1)
    labels[-5:] = (labels[-5:] + 1) % CLASSES
    return Source(
        Records("noise", COUNT, CLASSES, lambda i: (images[i], labels[i])), CLASSES, tuple("abcde")
    )


def curve(**changes) -> robust.Curve:
    options = {
        "norm": "l2", "radii": (0.05, 0.2, 3.0), "attack": "apgd", "images": 100, "seed": 0,
        "batch_size": 8, "budget": QUICK,
    }  # fmt: skip
    return robust.Curve(**(options | changes))


@pytest.mark.parametrize("attack", robust.SEARCHES)
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_curve_falls_from_clean_to_nothing(attack, norm, model, source, plain, tmp_path):
    radii = {"l2": (0.05, 0.2, 3.0), "linf": (0.01, 0.05, 0.45)}[norm]
    asked = curve(attack=attack, norm=norm, radii=radii)
    records = robust.run(model, source, 0, asked, tmp_path)
    values = [r["value"] for r in records]
    assert values[0] == 25 / 30
    assert values == sorted(values, reverse=True)
    assert values[1] > values[2] > values[3] == 0
    assert [(r["attack"] or {"epsilon": 0.0})["epsilon"] for r in records] == [0.0, *radii]
    assert {r["n"] for r in records} == {COUNT}
    assert sum(records[3]["fell_to"].values()) == COUNT
    assert records == tiny.results(tmp_path)


def test_a_stopped_search_goes_on_where_it_was(model, source, plain, tmp_path, monkeypatch):
    """In chunks of 8 images, stopped in the third: the same records, and no chunk twice."""
    monkeypatch.setattr(robust, "CHUNK", 8)
    whole = robust.run(model, source, 0, curve(), tmp_path / "whole")
    search, chunks = robust._attacked, []

    def stopping(model, chunk, asked):
        chunks.append(int(chunk["index"][0]))
        if len(chunks) == 3:
            raise KeyboardInterrupt
        return search(model, chunk, asked)

    monkeypatch.setattr(robust, "_attacked", stopping)
    with pytest.raises(KeyboardInterrupt):
        robust.run(model, source, 0, curve(), tmp_path / "run")
    again = robust.run(model, source, 0, curve(), tmp_path / "run")
    assert chunks == [0, 8, 16, 16, 24]
    timed = {"seconds": 0, "images_per_second": 0}
    assert [r | timed for r in again] == [r | timed for r in whole]
    assert robust.run(model, source, 0, curve(), tmp_path / "run") == again  # the times too


def test_the_chunk_and_the_batch_change_nothing(model, source, plain, tmp_path, monkeypatch):
    values = []
    for size, batch_size in ((256, 30), (7, 3)):
        monkeypatch.setattr(robust, "CHUNK", size)
        records = robust.run(model, source, 0, curve(batch_size=batch_size), tmp_path / str(size))
        values.append([r["value"] for r in records])
    assert values[0] == values[1]


def test_another_seed_or_budget_is_another_search(model, source, plain, tmp_path):
    robust.run(model, source, 0, curve(), tmp_path)
    robust.run(model, source, 0, curve(seed=1), tmp_path)
    robust.run(model, source, 0, curve(budget=Budget(steps=3, targets=1)), tmp_path)
    assert len(list((tmp_path / "robust").glob("apgd_l2_*_000000.json"))) == 3


def test_another_set_is_another_search(model, source, plain, tmp_path):
    """In one folder: what the images of one set fell to is not taken for what another's do."""

    def named(what, labels):
        def read(i):
            image, label = source.records.read(i)
            return image, (label + labels) % CLASSES

        return Source(Records(what, COUNT, CLASSES, read), CLASSES, source.class_names)

    first = robust.run(model, named("this test", 0), 0, curve(attack="pgd"), tmp_path)
    other = robust.run(model, named("that test", 1), 0, curve(attack="pgd"), tmp_path)
    assert first[0]["value"] == 25 / 30
    assert other[0]["value"] <= 5 / 30  # only what the network gets wrong may be right by chance
    assert len(tiny.results(tmp_path)) == len(first) + len(other)
    assert len(list((tmp_path / "robust").glob("doubts_l2_*.json"))) == 2


def test_what_fell_is_kept_and_shown(model, source, plain, tmp_path):
    """The first images, each at the least radius it fell at; not those that were wrong before."""
    robust.run(model, source, 0, curve(), tmp_path)
    (path,) = (tmp_path / "figures").glob("fallen_apgd_l2_*.npz")
    with np.load(path) as file:
        shown = dict(file)
    assert shown["images"].shape == shown["attacked"].shape == (7, SIDE, SIDE, 3)
    d = (shown["attacked"].astype(float) - shown["images"]).reshape(7, -1)
    assert (np.linalg.norm(d, axis=1) <= shown["radius"] * (1 + 1e-6)).all()
    assert set(shown["fell_to"]) <= {"apgd-ce", "apgd-t"}
    assert len(set(shown["radius"])) > 1
    said = np.asarray(network(model.params, shown["attacked"])).argmax(-1)
    np.testing.assert_array_equal(shown["said"], [source.class_names[i] for i in said])
    assert (shown["said"] != shown["label"]).all()
    right = np.asarray(network(model.params, shown["images"])).argmax(-1)
    np.testing.assert_array_equal(shown["label"], [source.class_names[i] for i in right])


def test_a_model_that_says_something_else_the_second_time_is_doubted(
    model, source, plain, tmp_path, monkeypatch
):
    records = robust.run(model, source, 0, curve(), tmp_path / "sound")
    assert not any("second pass" in flag for r in records for flag in r["flags"])
    labels = np.array([source.records[i]["label"] for i in range(COUNT)])
    monkeypatch.setattr(robust, "decisions", lambda model, images, size: labels)
    *_, last = robust.run(model, source, 0, curve(), tmp_path / "random")
    assert "30 images that fell do not in a second pass: is the model random?" in last["flags"]


def test_points_outside_of_the_ball_or_of_the_pixels_are_seen():
    images = np.full((3, 2, 2, 3), 0.5, np.float32)
    points = images + np.array([0.0625, 0.07, 0.0], np.float32)[:, None, None, None]
    assert robust._inside("linf", 0.0625, points, images).tolist() == [True, False, True]
    assert robust._inside("l2", 0.0625 * 12**0.5, points, images).tolist() == [True, False, True]
    points[2] = -0.01
    assert robust._inside("linf", 1.0, points, images).tolist() == [True, True, False]


def test_a_record_says_of_which_images_and_pixels_it_is(model, source, plain, tmp_path):
    *_, record = robust.run(model, source, 0, curve(images=20, attack="pgd"), tmp_path / "few")
    assert record["n"] == 20
    assert record["image_size"] == SIDE
    assert not record["whole"]
    assert record["flags"] == ["a sample: 20 images, the set has 30"]
    assert robust._stretched(source, 2 * SIDE) == [
        "the radius is over 8 x 8 pixels, to which images of 4 x 4 are stretched"
    ]


def test_a_model_of_another_class_order_is_doubted_where_it_is_not_attacked(
    model, source, plain, tmp_path
):
    last = model.classes - 1
    read = source.records.read
    turned = dataclasses.replace(
        source,
        records=dataclasses.replace(source.records, read=lambda i: (read(i)[0], last - read(i)[1])),
    )
    clean, *_ = robust.run(model, turned, 0, curve(), tmp_path)
    assert [flag.split(":")[0] for flag in clean["flags"]] == ["no better than chance"]


def test_a_doubt_of_the_ladder_is_with_the_score_it_was_seen_at(
    model, source, plain, tmp_path, monkeypatch
):
    monkeypatch.setattr(
        robust.gradient_masking,
        "ladder",
        lambda *_: {"accuracy": {}, "zero_gradient": 1, "flags": ["odd"]},
    )
    records = robust.run(model, source, 0, curve(), tmp_path)
    assert [r["flags"] for r in records] == [[], [], ["odd"], []]


@pytest.mark.parametrize(
    ("norm", "radius", "said"),
    [
        (
            "l2",
            128.0,
            "--radii=128 in L2: .* any 48 values .*; did you mean 128/255 = 0.50",
        ),
        ("linf", 4.0, "--radii=4 in L-inf: from 0.5 on, .* plain grey; did you mean 4/255 = 0.015"),
    ],
)
def test_a_radius_in_another_unit_is_refused(norm, radius, said):
    with pytest.raises(UserError, match=said):
        curve(norm=norm, radii=(0.3, radius)).check(ARCHITECTURE.image_size)


def test_the_page_of_a_curve(model, source, plain, tmp_path, monkeypatch):
    robust.run(model, source, 0, curve(), tmp_path)
    (tmp_path / "evaluation.json").write_text(json.dumps({"weights": "w"}))
    (tmp_path / "provenance.json").write_text("{}")
    monkeypatch.setattr(page.provenance, "shown", lambda path: "")
    text = page.write(tmp_path).read_text()
    for said in (
        "Robust curve",
        "Gradient-masking checks",
        "PGD-40, 3 restarts",
        "apgd, L2 ε\xa0=\xa00.05",
        "Successful attacks",
    ):
        assert said in text


def ladder(classify, model, source, monkeypatch, norm="l2"):
    monkeypatch.setattr(gradient_masking, "classifier", lambda architecture: classify)
    images = np.stack([source.records[i]["image"] for i in range(25)]).astype(np.float32) / 255
    labels = np.array([source.records[i]["label"] for i in range(25)])
    jax.clear_caches()
    epsilon = {"l2": 0.2, "linf": 0.05}[norm]
    return gradient_masking.ladder(model, images, labels, norm, epsilon, 0, 8)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_nothing_is_wrong_with_a_plain_network(norm, model, source, monkeypatch):
    found = ladder(network, model, source, monkeypatch, norm)
    assert found["flags"] == []
    values = list(found["accuracy"].values())
    assert values[0] == 1.0
    assert values[-1] == 0.0
    assert values[0] >= values[1] > values[2] >= values[4]


def test_logits_that_mask_the_gradient_are_named(model, source, monkeypatch):
    """Where a network is sure, the cross-entropy has no gradient in float32."""
    found = ladder(sure, model, source, monkeypatch)
    assert found["zero_gradient"] > 0.8
    assert any(
        "masked gradients, to which attacks by cross-entropy are blind" in f for f in found["flags"]
    )


def test_a_network_of_steps_is_named(model, source, monkeypatch):
    found = ladder(stepped, model, source, monkeypatch)
    assert any("a radius that holds every image" in flag for flag in found["flags"])
    assert found["zero_gradient"] == 1.0


def test_a_weaker_rung_above_a_stronger_one_is_named():
    names = [rung.name for rung in gradient_masking.LADDER]
    well = dict(zip(names, (0.9, 0.9, 0.5, 0.45, 0.44, 0.44, 0.0), strict=True))
    assert gradient_masking.flags(well, 0.0, 256) == []
    (flag,) = gradient_masking.flags(well | {"PGD-40": 0.6}, 0.0, 256)
    assert flag.startswith("PGD-40 breaks less than PGD-10 (60.0% and 45.0% stand)")


def test_what_square_alone_breaks_is_doubted():
    assert robust._doubts({"apgd-t": 10, "square": 1}, 1, 100, 100) == []
    (flag,) = robust._doubts({"apgd-t": 5, "square": 5}, 0, 100, 100)
    assert flag.startswith("Square broke 5 images that attacks by gradient left")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"radii": ()}, "--radii: name one"),
        ({"radii": (0.0, 1.0)}, "--radii: 0 is not above 0"),
        ({"radii": (2.0, 1.0)}, "must be strictly increasing"),
    ],
)
def test_mistakes(changes, said):
    with pytest.raises(UserError, match=said):
        curve(**changes)


def test_scores_of_two_preparations_stand_beside_each_other(model, source, plain, tmp_path):
    """Never one's clean score below the other's curve."""
    made = [
        robust.run(model, source, resize, curve(attack="pgd"), tmp_path)
        for resize in (0, 2 * ARCHITECTURE.image_size)
    ]
    kept = json.loads((tmp_path / "results.json").read_text())
    assert kept == [record for records in made for record in records]
    assert len({record["prepared"] for record in kept}) == 2
    for name in ("pgd_l2_*_000000.json", "doubts_l2_*.json"):  # searched anew, too
        assert len(list((tmp_path / "robust").glob(name))) == 2
