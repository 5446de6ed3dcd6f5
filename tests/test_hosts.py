"""Several processes on one machine, as on several hosts: what they do together is what one does."""

import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import chex
import jax
import numpy as np
import pytest
import tiny
from absl.flags import FLAGS
from absl.testing import flagsaver
from conftest import ROOT

from adv_ssl import hosts, preemption
from adv_ssl.errors import UserError

LOST = r"adv_ssl: another host was lost \(.+\): start the same command .*\n"
QUICK = tiny.flags(evaluate__split="test[:49]", log_every=1)


def free_address() -> str:
    """A port of this machine that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def start(workdir: pathlib.Path, *more: str, devices: int = 4, count: int = 1, **environment: str):
    """``count`` processes of one run, each with so many devices; standard error is kept."""
    shared = [f"--coordinator={free_address()}", f"--processes={count}"] if count > 1 else []
    return [
        subprocess.Popen(
            [sys.executable, "-m", "adv_ssl.main", "--config=configs/byol_l2.py:digits"]
            + [f"--workdir={workdir}", *QUICK, *more, *shared]
            + [f"--process={i}"] * (count > 1),
            cwd=ROOT,
            env={
                **os.environ,
                "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
                "JAX_COMPILATION_CACHE_DIR": str(workdir.parent / "cache"),
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
                **environment,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(count)
    ]


def ended(processes: list[subprocess.Popen]) -> list[tuple[int, str, str]]:
    """(exit code, standard output, standard error) of each."""
    told = [process.communicate(timeout=400) for process in processes]
    return [(p.returncode, *t) for p, t in zip(processes, told, strict=True)]


def wait_for(path: pathlib.Path, pattern: str) -> None:
    """Returns when a file holds a pattern."""
    for _ in range(2000):
        if path.exists() and re.search(pattern, path.read_text()):
            return
        time.sleep(0.1)
    raise AssertionError(f"{path} never had {pattern}")


def children(parent: int) -> list[int]:
    """The processes that a process has started."""
    return list(
        map(int, pathlib.Path(f"/proc/{parent}/task/{parent}/children").read_text().split())
    )


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The folder of the run as one process with one device does it."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    for code, _, error in ended(start(workdir, devices=1)):
        assert code == 0, error
    return workdir


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The folder of the run as two processes with four devices each do it."""
    workdir = tmp_path_factory.mktemp("two") / "run"
    for code, _, error in ended(start(workdir, count=2)):
        assert code == 0, error
    return workdir


@pytest.mark.slow
def test_two_hosts_train_and_score_as_one(alone, two):
    """Up to the order of sums; adversarial BYOL, whose BatchNorm is over all hosts (B20).

    AdamW makes whole steps of what is rounding alone: the gradient of the keys' biases is zero.
    """
    for stage in ("pretrain", "finetune"):
        ours, theirs = (
            tiny.records(two / stage / "metrics.jsonl"),
            tiny.records(alone / stage / "metrics.jsonl"),
        )
        assert [r["step"] for r in ours] == [r["step"] for r in theirs] == list(range(1, 7))
        for a, b in zip(ours, theirs, strict=True):
            assert a == pytest.approx(b, rel=2e-4, abs=1e-5)
        chex.assert_trees_all_close(
            tiny.params(two / stage), tiny.params(alone / stage), rtol=1e-3, atol=1e-3
        )
    assert [r["n"] for r in tiny.results(two)] == [49, 40]
    assert (two / "report.html").exists()


@pytest.mark.parametrize(
    ("present", "line"),
    [
        (0, r"adv_ssl: 1 of 2 hosts joined within 4 s: start the same command on all of them.*"),
        pytest.param(
            1,
            r"adv_ssl: no answer from process 0 \(127.0.0.1:\d+\) within 4 s: .*",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_host_without_the_other_gives_up_in_time(tmp_path, present, line):
    both = start(tmp_path / "run", "--join_timeout=4", count=2)
    both[1 - present].kill()
    both[1 - present].communicate()
    code, _, error = ended(both)[present]
    assert code == 2
    assert re.fullmatch(line, error.strip())
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("number", "whom"), [("KILL", 0), ("KILL", 1), ("TERM", 1), ("INT", 1)])
def test_a_lost_host_ends_the_other_and_the_run_goes_on(tmp_path, two, number, whom):
    workdir = tmp_path / "run"
    both = start(workdir, count=2)
    wait_for(workdir / "pretrain" / "metrics.jsonl", '"step": 3')
    if number == "KILL":  # with its child, as when a machine is gone
        (child,) = children(both[whom].pid)
        both[whom].kill()
        os.kill(child, signal.SIGKILL)
    elif number == "INT":  # as a terminal does: to what it started and to what that started
        for pid in (both[whom].pid, *children(both[whom].pid)):
            os.kill(pid, signal.SIGINT)
    else:
        both[whom].terminate()
    began = time.monotonic()
    told = ended(both)
    assert time.monotonic() - began < 60
    code, _, error = told[1 - whom]
    assert code == 75
    if number == "KILL":
        assert re.fullmatch(LOST, error)
    else:
        assert told[whom][0] == 75
        assert not error
    for code, _, error in ended(start(workdir, count=2)):
        assert code == 0, error
    for stage in ("pretrain", "finetune"):
        chex.assert_trees_all_equal(tiny.params(workdir / stage), tiny.params(two / stage))


@pytest.mark.slow
def test_an_image_that_one_host_cannot_read_ends_both(tmp_path):
    """Nobody waits for a step, or a checkpoint, that the other does not take part in."""
    images = tiny.folder_of_images(tmp_path / "images", 60)
    (images / "broken.png").write_bytes(b"broken")
    data = f"--config.data.name=folder:{images}", "--config.evaluate.split=test"
    began = time.monotonic()
    told = ended(start(tmp_path / "run", *data, "--config.pretrain.steps=50", count=2))
    assert time.monotonic() - began < 120
    assert sorted(code for code, _, _ in told) == [2, 75]
    assert "broken.png: not a readable image" in next(error for code, _, error in told if code == 2)
    assert re.fullmatch(LOST, next(error for code, _, error in told if code == 75))


@pytest.mark.slow
def test_a_mistake_on_one_host_ends_all(tmp_path):
    """Here the leader's: the folder is another run's."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text('{"seed": 3}')
    for code, _, error in ended(start(tmp_path / "run", count=2)):
        assert code == 2
        assert error.startswith(f"adv_ssl: host 0: {tmp_path}/run belongs to another configuration")
        assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("program", "code", "said"),
    [
        ("import sys; sys.stderr.write('Exception ignored in: f, Traceback of nothing')", 0, ""),
        ("import sys; sys.stderr.write('Traceback: of a bug\\n'); sys.exit(1)", 1, "of a bug"),
        (
            "import os, sys; sys.stderr.write('E: UNAVAILABLE: host 3\\n'); sys.stderr.flush(); "
            "os.abort()",
            75,
            "another host was lost (E: UNAVAILABLE: host 3)",
        ),
        ("import os; os.abort()", 134, ""),
    ],
)
def test_how_the_process_that_works_may_end(program, code, said, monkeypatch, capsys):
    monkeypatch.setattr(sys, "orig_argv", ["python", "-c", program])
    assert hosts.watch() == code
    assert said in capsys.readouterr().err


def test_a_stop_that_came_before_the_child_listens_is_passed_on(monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", ["python", "-c", "import time; time.sleep(60)"])
    preemption._asked.set()
    began = time.monotonic()
    assert hosts.watch() == 75
    assert time.monotonic() - began < 30


@pytest.mark.slow
def test_a_stop_while_scores_are_made_ends_all_hosts(tmp_path):
    """Each host scores its own part: none may wait for one that left."""
    slow = "--config.evaluate.attacks=(('l2', 0.5, 10000),)", "--config.evaluate.batch_size=8"
    short = "--config.pretrain.steps=1", "--config.finetune.steps=1"
    both = start(tmp_path / "run", *short, *slow, count=2)
    wait_for(tmp_path / "run" / "results.json", "top1")
    time.sleep(3)  # into the attack
    both[1].terminate()
    began = time.monotonic()
    told = ended(both)
    assert [code for code, _, _ in told] == [75, 75], told
    assert time.monotonic() - began < 120


def test_what_goes_wrong_on_another_host_ends_this_one_too(monkeypatch):
    """Two hosts, of which the other one says what ``theirs`` is."""
    theirs = np.zeros(hosts._MESSAGE, np.uint8)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(
        hosts.multihost_utils, "process_allgather", lambda mine: np.stack([mine, theirs])
    )
    assert hosts.agreed(lambda: "well") == "well"
    theirs[:5] = np.frombuffer(b"wrong", np.uint8)
    with pytest.raises(hosts.AgreedError, match=r"^host 1: wrong$"):
        hosts.agreed(lambda: "well")


@pytest.fixture
def flags_of_hosts():
    if "coordinator" not in FLAGS:
        hosts.define_flags()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--process=0"], "belong together"),
        (["--coordinator=here", "--processes=2", "--process=0"], "expected HOST:PORT"),
        (["--coordinator=here:1", "--processes=2", "--process=2"], "count from 0"),
    ],
)
def test_flags_that_do_not_fit(flags, words, flags_of_hosts):
    with flagsaver.flagsaver():
        FLAGS([sys.argv[0], *flags])
        with pytest.raises(UserError, match=words):
            hosts.several()


def test_slurm_is_found(monkeypatch, flags_of_hosts):
    names = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID")
    for name in names:
        monkeypatch.setenv(name, "1")
    with flagsaver.flagsaver():
        FLAGS([sys.argv[0]])
        for tasks, several in (("1", False), ("2", True)):
            monkeypatch.setenv("SLURM_NTASKS", tasks)
            assert hosts.several() is several
