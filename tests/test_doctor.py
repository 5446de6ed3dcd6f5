"""The command that tells which data sets are ready, and prepares the others."""

import errno
import itertools
import json
import pathlib
import re
import signal
import types
from typing import Any

import commands
import pytest
import tensorflow_datasets as tfds
import tfds_sets
from array_record.python.array_record_module import ArrayRecordWriter
from conftest import ROOT
from PIL import Image

from adv_ssl.data import sources
from adv_ssl.data.folders import SUFFIXES
from adv_ssl.doctor import check, prepare, report, sets
from adv_ssl.doctor.check import MISSING, READY, WRONG
from adv_ssl.errors import UserError
from adv_ssl.evaluation.suites import SUITES
from adv_ssl.preemption import Preempted
from adv_ssl.recipes import paper

NAMES = ["a", "b", "c"]


def write(root: pathlib.Path, names=NAMES, labels=(0, 1, 2, 1), split: str = "test") -> None:
    """A small set that is called tiny."""
    pairs = zip(tfds_sets.images(len(labels)), labels, strict=True)
    examples = [{"image": image, "label": label} for image, label in pairs]
    features = {"label": tfds.features.ClassLabel(names=list(names))}
    tfds_sets.write(root, "tiny:1.0.0", split, features, examples)


def tiny(**facts: Any) -> sets.Set:
    """What is expected of it."""
    return sets.Set(
        "tiny", ("tiny:1.0.0",), {"test": 4}, sources.LABEL, False, sets.Facts(3, 1000, **facts)
    )


@pytest.fixture
def root(tmp_path):
    write(tmp_path)
    return tmp_path


def states(found: check.Report) -> tuple[str, str]:
    return found.state, found.images


# ---- the table of sets -----------------------------------------------------------------------


def test_every_set_of_a_suite_and_a_recipe_is_known():
    parts = {part for known in sets.SETS.values() for part in known.parts}
    assert parts == {row.dataset for suite in SUITES.values() for row in suite}
    assert {name for name, _, _ in paper.TRANSFER_SETS.values()} <= parts
    assert len(parts) == 12 + 75
    for known in sets.SETS.values():
        assert all(known.name == re.split("[/:]", part)[0] for part in known.parts)


def test_counts_are_those_of_the_papers():
    """Written out again, from spec E and F."""
    assert {name: known.splits for name, known in sets.SETS.items()} == {
        "imagenet2012": {"train": 1281167, "validation": 50000},
        "imagenet2012_real": {"validation": 50000},
        "imagenet_v2": {"test": 10000},
        "imagenet_a": {"test": 7500},
        "imagenet_r": {"test": 30000},
        "imagenet_sketch": {"test": 50889},
        "geirhos_conflict_stimuli": {"test": 1280},
        "imagenet2012_corrupted": {"validation": 50000},
        "cifar10": {"train": 50000, "test": 10000},
        "cifar100": {"train": 50000, "test": 10000},
        "sun397": {"train": 76128, "validation": 10875, "test": 21750},
        "resisc45": {"train": 31500},
        "dmlab": {"train": 65550, "validation": 22628, "test": 22735},
    }


def test_slices_of_the_suites_are_of_these_counts():
    sliced = {r for suite in SUITES.values() for r in suite if "[" in r.split}
    assert [(r.name, r.split, r.images) for r in sliced] == [("resisc45", "train[80%:]", 6300)]
    assert sets.SETS["resisc45"].splits["train"] * 0.2 == 6300


@pytest.mark.parametrize("name", sets.SETS)
def test_what_tfds_says_of_each_set(name, tmp_path):
    """Its code, which knows classes, files and their sizes, though not the counts."""
    known = sets.SETS[name]
    builder = tfds.builder(known.parts[0].replace("5.*", "5.*.*"), data_dir=tmp_path)
    feature = builder.info.features[known.labels.feature]
    label = getattr(feature, "feature", feature)
    assert label.num_classes == known.facts.classes
    if name not in ("cifar10", "cifar100"):  # which read their names from the download
        assert not list(check._wrong_classes(known, label.names))
    files = {i.filename or url: i.size for url, i in builder.url_infos.items()}
    config = known.parts[0].split(":")[0].partition("/")[2]
    fetched = {f: size for f, size in files.items() if "ILSVRC2012" not in f}
    fetched = {f: size for f, size in fetched.items() if config in f} or fetched
    assert sum(fetched.values()) == known.facts.download
    told = builder.MANUAL_DOWNLOAD_INSTRUCTIONS
    assert bool(told) == bool(known.facts.by_hand)
    needed = known.facts.by_hand if name.startswith("imagenet2012") else ()
    assert all(file in told for file in needed)


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(UserError, match=r"cifr10: no such data set; did you mean cifar10\?"):
        sets.find("cifr10")
    with pytest.raises(UserError, match=r"qqq: no such data set; choose from digits, imagenet2012"):
        report.reports(["qqq"], "", False)


# ---- what is wrong with a set ----------------------------------------------------------------


def test_a_whole_set_is_ready(root):
    found = check.check(tiny(), str(root), thorough=False)
    assert states(found) == (READY, "test 4")
    assert found.where == str(root / "tiny" / "1.0.0")
    assert not found.details
    files = (root / "tiny" / "1.0.0").iterdir()
    assert found.size == sum(path.stat().st_size for path in files)


def test_a_set_that_is_not_there_has_its_command(tmp_path):
    found = check.check(tiny(download=2_000_000), str(tmp_path), thorough=False)
    assert (found.state, found.images, found.size) == (MISSING, "-", 0)
    assert f"python -m adv_ssl.data --prepare=tiny --data_dir={tmp_path}" in found.details
    assert found.details[-1].startswith("downloads 2.0 MB, takes 1.0 kB; ")


def test_an_interrupted_preparation_is_not_taken_for_a_set(root):
    whole = root / "tiny" / "1.0.0"
    whole.rename(whole.with_name("incomplete.AB12CD_1.0.0"))
    assert check.check(tiny(), str(root), thorough=False).state == MISSING


def test_a_sample_of_a_set_is_told(tmp_path):
    write(tmp_path, labels=(0, 1, 2))
    found = check.check(tiny(), str(tmp_path), thorough=False)
    assert states(found) == (WRONG, "test 3 of 4")
    assert found.details[0] == "test: 3 of 4 images: it can be read, as a sample"
    assert found.details[1] == f"for a whole one move {tmp_path / 'tiny' / '1.0.0'} away, then:"


def test_more_images_than_there_should_be_are_told(tmp_path):
    write(tmp_path, labels=(0,) * 5)
    found = check.check(tiny(), str(tmp_path), thorough=False)
    assert states(found) == (WRONG, "test 5 of 4")
    assert found.details[0] == "test: 5 of 4 images"


def test_a_missing_split_is_told(tmp_path):
    write(tmp_path, split="train")
    found = check.check(tiny(), str(tmp_path), thorough=False)
    assert states(found) == (WRONG, "test 0 of 4")
    assert found.details[0] == "test: 0 of 4 images"


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["a", "c", "b"], "classes in another order: class 1 is c, not b"),
        (["a", "b", "c", "d"], "4 classes, not 3"),
    ],
)
def test_other_classes_are_told(names, said, tmp_path):
    write(tmp_path, names=names)
    found = check.check(tiny(), str(tmp_path), thorough=False)
    assert found.state == WRONG
    assert found.details[0] == said


def test_the_order_of_imagenet_is_its_own():
    """Sorted names are not enough: they must be the 1000 WNIDs."""
    known = sets.SETS["imagenet_a"]
    names = list(check.wnids())
    assert not list(check._wrong_classes(known, names))
    names[999] = "n99999999"
    assert list(check._wrong_classes(known, names)) == [
        "classes in another order: class 999 is n99999999, not n15075141"
    ]


def test_metadata_of_another_kind_are_told(root):
    info = root / "tiny" / "1.0.0" / "dataset_info.json"
    info.write_text("{")
    found = check.check(tiny(), str(root), thorough=False)
    assert states(found) == (WRONG, "test 0 of 4")
    assert "cannot be read" in found.details[0]
    assert f"move {root / 'tiny'} away" in found.details[1]


def test_another_format_is_told(root):
    folder = root / "tiny" / "1.0.0"
    info = json.loads((folder / "dataset_info.json").read_text()) | {"fileFormat": "tfrecord"}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    for path in folder.glob("*array_record*"):
        path.rename(str(path).replace("array_record", "tfrecord"))
    found = check.check(tiny(), str(root), thorough=False)
    assert found.state == WRONG
    assert "as tfrecord, which has no random access" in found.details[0]


def test_a_missing_file_is_told(root):
    next((root / "tiny" / "1.0.0").glob("*array_record*")).unlink()
    found = check.check(tiny(), str(root), thorough=False)
    assert found.state == WRONG
    assert "is incomplete" in found.details[0]


def rewrite(root: pathlib.Path, change: Any) -> None:
    """The records again, each one changed."""
    path = next((root / "tiny" / "1.0.0").glob("*array_record*"))
    builder = sources.prepared("tiny:1.0.0", str(root))
    records = [
        dict(example)
        for example in builder.as_data_source(
            "test", decoders={"image": tfds.decode.SkipDecoding()}
        )
    ]
    path.unlink()
    writer = ArrayRecordWriter(str(path), "group_size:1")
    features = builder.info.features
    serializer = tfds.core.example_serializer.ExampleSerializer(features.get_serialized_info())
    for i, record in enumerate(records):
        writer.write(serializer.serialize_example(change(i, record)))
    writer.close()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda i, r: r | {"image": r["image"][:-40]}, "image 2 cannot be read (image file is"),
        (lambda i, r: r | {"image": b"text"}, "image 2 cannot be read (cannot identify"),
        (lambda i, r: r | {"label": 3}, "image 2 has label 3, outside [0, 3)"),
    ],
)
def test_a_damaged_record_is_told(change, said, root):
    rewrite(root, lambda i, record: change(i, record) if i == 2 else record)
    found = check.check(tiny(), str(root), thorough=False)
    assert states(found) == (WRONG, "test 4")
    assert said in found.details[0]
    assert len([line for line in found.details if "image" in line]) == 1


def test_a_sample_is_spread_and_thorough_is_all(root, monkeypatch):
    assert check.spread(50_000, True) == range(50_000)
    assert check.spread(64, False) == range(64)
    sample = check.spread(50_000, False)
    assert (len(sample), sample[0], sample[-1]) == (64, 0, 49_999)
    assert 780 < max(b - a for a, b in itertools.pairwise(sample)) < 800
    monkeypatch.setattr(check, "WHOLE", 2)
    monkeypatch.setattr(check, "SAMPLE", 2)  # the first and the last
    rewrite(root, lambda i, record: record | {"image": b""} if i == 2 else record)
    assert check.check(tiny(), str(root), thorough=False).state == READY
    assert check.check(tiny(), str(root), thorough=True).state == WRONG


def test_ctrl_c_ends_a_look_at_many_images(monkeypatch):
    assert list(check.in_threads(str, range(5000), "x")) == [str(i) for i in range(5000)]
    seen = []

    def stop():
        seen.append(1)
        if len(seen) == 2:
            raise Preempted

    monkeypatch.setattr(check, "stop_if_asked", stop)
    with pytest.raises(Preempted):
        list(check.in_threads(str, range(5000), "x"))


def test_of_much_trouble_the_first_is_told():
    assert check.shortened("abcde") == list("abcde")
    assert check.shortened("abcdefg") == [*"abcde", "and 2 more"]


def test_a_set_of_several_parts(tmp_path):
    for name, labels in (("one", (0, 1)), ("two", (0,))):
        pairs = zip(tfds_sets.images(2), labels, strict=False)
        examples = [{"image": image, "label": label} for image, label in pairs]
        features = {"label": tfds.features.ClassLabel(names=NAMES)}
        tfds_sets.write(tmp_path, f"tiny/{name}:1.0.0", "test", features, examples)
    parts = tuple(f"tiny/{name}:1.0.0" for name in ("one", "two", "three"))
    known = tiny()._replace(parts=parts, splits={"test": 2})
    found = check.check(known, str(tmp_path), thorough=False)
    assert states(found) == (WRONG, "1 of 3 sets")
    assert found.where == str(tmp_path / "tiny")
    assert found.details[0].startswith("tiny/two:1.0.0: test: 1 of 2 images")
    assert found.details[1] == f"for a whole one move {tmp_path / 'tiny/two/1.0.0'} away, then:"


@pytest.mark.parametrize(
    ("count", "said"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (167_332_000_000, "167 GB"),
     (9_940_000, "9.9 MB"), (9_960_000, "10 MB"), (999_600_000, "1.0 GB"), (5e15, "5000 TB")],
)  # fmt: skip
def test_bytes_in_words(count, said):
    assert check.told_bytes(count) == said


def test_real_sets(real_data):
    found = {r.name: r for r in report.reports([], str(real_data), False)}
    assert list(found) == ["digits", *sets.SETS]
    assert states(found["digits"]) == (READY, "train 1,437, test 360")
    assert states(found["cifar10"]) == (READY, "train 50,000, test 10,000")
    for name, samples, whole in (
        ("imagenet2012", r"train [\d,]+ of 1,281,167, validation [\d,]+ of 50,000",
         "train 1,281,167, validation 50,000"),
        ("geirhos_conflict_stimuli", r"test [\d,]+ of 1,280", "test 1,280"),
    ):  # fmt: skip
        state, counts = states(found[name])
        assert re.fullmatch({WRONG: samples, READY: whole}[state], counts)
        assert len(found[name].details) < 8


# ---- preparing -------------------------------------------------------------------------------


@pytest.fixture
def builder(monkeypatch):
    """TFDS's code of the set tiny; all packages are there."""
    made: dict[str, Any] = {"labels": (0, 1, 2, 1), "fail": None}

    class Tiny:
        def __init__(self, name, data_dir):
            assert name == "tiny:1.0.0"
            self.root = pathlib.Path(data_dir)
            self.url_infos = {"http://x/t.tar": types.SimpleNamespace(filename="t.tar")}

        def download_and_prepare(self, file_format, download_config):
            assert file_format == "array_record"
            assert not download_config.try_download_gcs
            if made["fail"]:
                raise made["fail"]
            write(self.root, labels=made["labels"])

    monkeypatch.setattr(prepare.tfds, "builder", Tiny)
    monkeypatch.setattr(sets.importlib.util, "find_spec", lambda name: True)
    return made


def test_a_prepared_set_is_ready(builder, tmp_path):
    prepare.prepare(tiny(), str(tmp_path))
    assert check.check(tiny(), str(tmp_path), thorough=True).state == READY
    builder["fail"] = AssertionError("it prepared it again")
    prepare.prepare(tiny(), str(tmp_path))


def test_signals_are_the_command_s_again_afterwards(builder, tmp_path):
    before = [signal.getsignal(number) for number in prepare._SIGNALS]
    prepare.prepare(tiny(), str(tmp_path))
    assert [signal.getsignal(number) for number in prepare._SIGNALS] == before


def test_a_preparation_that_came_out_short_is_told(builder, tmp_path):
    """As ImageNet's does where one of the two tar files is missing."""
    builder["labels"] = (0, 1)
    with pytest.raises(UserError, match=r"was prepared, but is wrong \(test: 2 of 4 images"):
        prepare.prepare(tiny(), str(tmp_path))


def test_what_is_there_and_wrong_is_not_overwritten(builder, tmp_path):
    write(tmp_path, labels=(0, 1))
    folder = tmp_path / "tiny" / "1.0.0"
    with pytest.raises(
        UserError,
        match=f"is already there, but damaged or incomplete .*: move {folder} away, then start",
    ):
        prepare.prepare(tiny(), str(tmp_path))
    assert folder.is_dir()


@pytest.mark.parametrize(
    "error",
    [
        ConnectionError("no route\nto host"),
        OSError("read timed out"),
        ValueError("checksum"),
        AssertionError("Manual directory is empty"),
    ],
)
def test_a_failure_of_the_network_is_one_line(error, builder, tmp_path):
    builder["fail"] = error
    with pytest.raises(UserError, match=f"could not be prepared .{type(error).__name__}: ") as e:
        prepare.prepare(tiny(), str(tmp_path))
    assert "\n" not in str(e.value)
    assert f"put t.tar into {tmp_path}/downloads/manual yourself" in str(e.value)
    assert check.check(tiny(), str(tmp_path), thorough=False).state == MISSING


def test_a_full_disk_and_ctrl_c_are_the_command_s_to_tell(builder, tmp_path):
    builder["fail"] = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(OSError, match="No space left"):
        prepare.prepare(tiny(), str(tmp_path))
    builder["fail"] = KeyboardInterrupt()
    with pytest.raises(Preempted):
        prepare.prepare(tiny(), str(tmp_path))


def test_packages_that_are_not_there_are_named(builder, tmp_path, monkeypatch):
    there = {"skimage"}
    monkeypatch.setattr(sets.importlib.util, "find_spec", lambda name: name in there)
    with pytest.raises(
        UserError, match=r"tiny: preparing .* First pip install tensorflow, best .*; then start"
    ):
        prepare.prepare(tiny(), str(tmp_path))
    there.remove("skimage")
    monkeypatch.setattr(sets.shutil, "which", lambda name: None)
    known = tiny(packages=("scikit-image",), program="imagemagick")
    said = r"pip install tensorflow scikit-image, best .*; then install ImageMagick .* ln -s"
    with pytest.raises(UserError, match=said):
        prepare.prepare(known, str(tmp_path))
    lines = check.check(known, str(tmp_path), thorough=False).details
    assert any(line.startswith("before, pip install tensorflow scikit-image, ") for line in lines)


def test_what_must_be_fetched_by_hand_is_asked_for_first(builder, tmp_path):
    known = tiny(by_hand=("a.tar", "b.tar"), terms="an account")
    manual = tmp_path / "downloads" / "manual"
    manual.mkdir(parents=True)
    (manual / "a.tar").write_text("")
    said = rf"put b\.tar into {manual} \(an account\); then start"
    with pytest.raises(UserError, match=said):
        prepare.prepare(known, str(tmp_path))
    (manual / "b.tar").write_text("")
    prepare.prepare(known, str(tmp_path))


def test_the_original_files_of_one_configuration_are_named(tmp_path):
    name = "imagenet_v2/matched-frequency:3.0.0"
    infos = tfds.builder(name, data_dir=tmp_path).url_infos
    assert prepare._originals(name, infos) == "imagenetv2-matched-frequency.tar.gz"
    infos = tfds.builder("cifar10:3.0.2", data_dir=tmp_path).url_infos
    assert prepare._originals("cifar10:3.0.2", infos) == "cifar-10-binary.tar.gz"


def test_a_set_that_tfds_does_not_even_build_is_one_line(tmp_path, monkeypatch):
    def broken(*_, **__):
        raise ImportError("no\nmodule")

    monkeypatch.setattr(tfds, "builder", broken)
    with pytest.raises(UserError, match=r"could not be prepared \(ImportError: no module\)\.$"):
        prepare._prepare("cifar10:3.0.2", str(tmp_path))


# ---- the command -----------------------------------------------------------------------------

# Every command line in a process of its own that begins with everything imported already.
MISTAKES = {
    "cifr10: no such data set; did you mean cifar10? choose from": ["cifr10"],
    "imagenet: no such data set; did you mean imagenet_": ["--prepare=imagenet"],
    "--prepare=cifar10 cifar100: expected one set alone.": ["--prepare=cifar10", "cifar100"],
    "Unknown command line flag 'preparre'": ["--preparre=cifar10"],
}


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """(exit code, stdout, stderr) of each command line; the last ones are no mistakes."""
    root = tmp_path_factory.mktemp("commands")
    images = root / "my images"
    for place in ("train/a", "train/b", "test/a"):
        (images / place).mkdir(parents=True)
        Image.fromarray(tfds_sets.images(1)[0]).save(images / place / "0.png")
    lines = [*MISTAKES.values(), ["digits", str(images)], ["cifar10", "digits"]]
    imports = ["adv_ssl.command", "adv_ssl.doctor.prepare", "adv_ssl.doctor.report"]
    return images, commands.ran("adv_ssl.data", imports, lines, root, TFDS_DATA_DIR=str(root))


@pytest.mark.parametrize("said", MISTAKES)
def test_a_mistake_in_the_command_is_one_line(said, ran):
    code, out, error = ran[1][list(MISTAKES).index(said)]
    assert (code, out) == (2, "")
    assert error.startswith(f"adv_ssl: {said}")
    assert error.count("\n") == 1


def test_the_table_is_aligned_and_0_says_that_all_is_ready(ran):
    images, found = ran
    code, out, error = found[-2]
    assert (code, error) == (0, "")
    head, first, second, *details, last = out.splitlines()
    at = head.index("where")
    assert (first[at:], second[at:]) == ("scikit-learn", str(images))
    assert first.split()[:2] == ["digits", "ready"]
    assert "    2 classes of 1 to 2 images" in details
    assert all(line.startswith("    ") for line in details)
    assert last == "2 of 2 ready"


def test_1_says_that_something_is_missing(ran):
    code, out, error = ran[1][-1]
    assert (code, error) == (1, "")
    assert "\ncifar10  missing  " in out
    assert "\n    python -m adv_ssl.data --prepare=cifar10\n" in out
    assert out.endswith("1 of 2 ready\n")


# ---- docs/data.md ----------------------------------------------------------------------------

PAGE = (ROOT / "docs" / "data.md").read_text()


def page_row(known: sets.Set) -> str:
    """A set as a row of the page's table."""
    version = known.parts[0].split(":")[1]
    images = ", ".join(f"{split} {count:,}" for split, count in known.splits.items())
    times = f"{len(known.parts)} times " if len(known.parts) > 1 else ""
    fetched = check.told_bytes(known.facts.download) if known.facts.download else "-"
    by_hand = ", ".join(f"`{file}`" for file in known.facts.by_hand) or "-"
    disk = check.told_bytes(known.facts.disk)
    return (
        f"| `{known.name}` | {version} | {times}{images} | {known.facts.classes:,} | {fetched} "
        f"| {disk} | {by_hand} |"
    )


def test_the_table_of_the_page_is_the_code_s():
    rows = [line for line in PAGE.splitlines() if line.startswith("| `")]
    assert rows == [page_row(known) for known in sets.SETS.values()]


def test_what_the_page_says_is_there():
    assert set(re.findall(r"--(?:config\.)?(\w+)", PAGE)) == {
        "prepare", "data_dir", "thorough", "data", "config", "model", "pretrain", "finetune",
        "evaluate", "workdir",
    }  # fmt: skip
    assert f"{check.SAMPLE} images of each split" in PAGE
    assert ", ".join(f"`{suffix}`" for suffix in SUFFIXES) in PAGE
    assert set(re.findall(r"--prepare=(\w+)", PAGE)) <= {*sets.SETS, "NAME"}
