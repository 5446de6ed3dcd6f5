"""Many devices: what they compute together is what one computes alone."""

import itertools
import json
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import tiny
from conftest import ROOT
from test_hosts import free_address

from adv_ssl.recipes import METHODS


def run_python(arguments: list[str], devices: int) -> Any:
    """The JSON that a process with so many devices prints last."""
    return ended([started(arguments, devices)])[0]


def started(arguments: list[str], devices: int) -> subprocess.Popen:
    environment = {
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(processes: list[subprocess.Popen]) -> list[Any]:
    told = [process.communicate(timeout=600) for process in processes]
    assert not any(process.returncode for process in processes), told
    return [json.loads(out.splitlines()[-1]) for out, _ in told]


def runs(devices: int, hosts: int = 1, **what) -> list[dict]:
    """What tests/devices.py prints, with ``devices`` on each of the hosts; the same on all."""
    program, address = ["tests/devices.py", json.dumps(what)], free_address()
    several = [[address, str(hosts), str(host)] * (hosts > 1) for host in range(hosts)]
    first, *others = ended([started(program + host, devices) for host in several])
    assert all(other == first for other in others)
    return first


WIDE = {"model__width": 64, "model__mlp": 64}  # else no array were large enough to be cut
FSDP, REMAT = {"fsdp": True}, {"remat": True}


def test_eight_devices_train_as_one():
    """BYOL's BatchNorm is over the whole batch (B20); with the state everywhere and in parts."""
    what = {"method": "byol", "threat": "l2", "steps": 4, **WIDE}
    (one,) = runs(1, **what)
    whole, parts = runs(8, settings=[{}, FSDP], **what)
    for eight in (whole, parts):
        np.testing.assert_allclose(eight["logged"], one["logged"], rtol=2e-4, atol=1e-5)
    assert np.shape(one["logged"]) == (4, 3)
    assert np.isfinite(one["logged"]).all()
    assert one["share"] == whole["share"] == 1
    assert one["collectives"] == []
    assert whole["collectives"] == ["all-reduce"]
    assert "all-gather" in parts["collectives"]
    assert parts["share"] < 0.35


ELASTIC = """
import json, pathlib, sys, zlib
sys.path[:0] = ["tests"]
import jax, tiny
from adv_ssl import preemption, sharding, stage
from adv_ssl.config import parse
from adv_ssl.data import sources
config = parse(tiny.config("l2", "rotnet", **json.loads(sys.argv[2])).to_dict())
meshes = json.loads(sys.argv[3])
source, assembled, seen = sources.load("digits", "train", ""), sharding.assembled, []

def watched(batch):
    seen.append(zlib.crc32(batch["image"].tobytes()))
    if len(seen) in [2 * i for i in range(1, len(meshes))]:
        preemption._asked.set()
    return assembled(batch)

sharding.assembled = watched
for devices in meshes:
    mesh = sharding.mesh_of(jax.devices()[:devices])
    sharding.mesh = sharding._here = lambda: mesh
    try:
        stage.run("pretrain", config, config.pretrain, source, pathlib.Path(sys.argv[1]), None)
    except preemption.Preempted:
        preemption._asked.clear()
print(json.dumps(seen))
"""


def test_a_run_goes_on_with_other_devices(tmp_path):
    """8, 1, 4 and 8, two steps each, the state cut into parts: as if 1 had done it all."""
    changes = {"pretrain__steps": 8, "log_every": 1, "save_every": 100, "fsdp": True, **WIDE}
    seen = {}
    for name, meshes in (("alone", [1]), ("moving", [8, 1, 4, 8])):
        seen[name] = run_python(
            ["-c", ELASTIC, str(tmp_path / name), json.dumps(changes), json.dumps(meshes)], 8
        )
    assert len(seen["moving"]) == 8
    assert seen["moving"] == seen["alone"]
    alone, moving = (tiny.records(tmp_path / name / "pretrain/metrics.jsonl") for name in seen)
    assert [record["step"] for record in moving] == [*range(1, 9)]
    for ours, theirs in zip(moving, alone, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "threat"), [*itertools.product(METHODS, ["nominal", "l2"]), ("simclr", "l2")]
)
def test_fifty_steps_are_the_same_on_any_devices(method, threat):
    what = {"method": method, "threat": threat, "steps": 50, **WIDE}
    one, again = runs(1, settings=[{}, REMAT], **what)
    found = {"remat": again, "2 devices": runs(2, **what)[0]}
    found |= dict(zip(("8 devices", "8, cut"), runs(8, settings=[{}, FSDP], **what), strict=True))
    found["2 hosts of 4"] = runs(4, hosts=2, **what)[0]
    for name, other in found.items():
        far = np.abs(np.array(other["logged"]) / one["logged"] - 1).max(axis=0)
        print(method, threat, name, far)
        np.testing.assert_allclose(other["logged"], one["logged"], rtol=1e-3, err_msg=name)
