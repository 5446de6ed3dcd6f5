"""kill -9 at random moments, saves included: the same parameters in the end."""

import os
import random
import signal
import subprocess
import sys
import time

import chex
import pytest
import tiny
from conftest import ROOT

KILLS = {"start-up": 4, "training": 13, "saving": 13}


def start(workdir, cache):
    command = [
        *(sys.executable, "-m", "adv_ssl.main", "--config=configs/byol_l2.py:digits"),
        f"--workdir={workdir}",
        *tiny.flags(pretrain__steps=2000, finetune__steps=2000, save_every=20, log_every=20),
    ]
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
    }
    with workdir.with_suffix(".log").open("a") as log:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)


def newest(workdir):
    """The state of the log: it moves as the run does."""
    return [path.stat().st_size for path in sorted(workdir.glob("*/metrics.jsonl"))]


def wait_for(process, happened, seconds=120):
    deadline = time.monotonic() + seconds
    while not happened() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.mark.slow
def test_thirty_kills_leave_no_trace(tmp_path):
    cache = tmp_path / "cache"
    whole = start(tmp_path / "whole", cache)
    assert whole.wait(timeout=600) == 0, (tmp_path / "whole.log").read_text()

    rng = random.Random(0)
    workdir = tmp_path / "killed"
    kinds = [kind for kind, count in KILLS.items() for _ in range(count)]
    rng.shuffle(kinds)
    for kind in kinds:
        process = start(workdir, cache)
        if kind == "start-up":
            time.sleep(rng.uniform(0.1, 8))
        else:
            before = newest(workdir)
            wait_for(process, lambda before=before: newest(workdir) != before)
            time.sleep(rng.uniform(0, 1))
        if kind == "saving":
            wait_for(process, lambda: list(workdir.glob("*/checkpoints/*.orbax-checkpoint-tmp")))
            time.sleep(rng.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "the run was too short for so many kills"

    last = start(workdir, cache)
    assert last.wait(timeout=600) == 0, (tmp_path / "killed.log").read_text()
    for stage in ("pretrain", "finetune"):
        chex.assert_trees_all_equal(
            tiny.params(tmp_path / "whole" / stage), tiny.params(workdir / stage)
        )
        steps = [r["step"] for r in tiny.records(workdir / stage / "metrics.jsonl")]
        assert len(steps) == len(set(steps))
    first, second = (
        [(r["value"], r["n"]) for r in tiny.results(d)] for d in (tmp_path / "whole", workdir)
    )
    assert first == second
