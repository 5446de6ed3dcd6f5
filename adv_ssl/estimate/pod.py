"""Compiles the step that training runs for a TPU pod, on a machine that has none.

The compiler is libtpu. It is started in a process of its own: its environment must be set before
jax is, and what uses it must not be a run's process.

    python -m adv_ssl.estimate.pod FOLDER < {"topology", "stage", "config"} > Compiled as JSON
"""

import dataclasses
import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
from typing import Any

from adv_ssl.errors import UserError
from adv_ssl.estimate.chips import Topology
from adv_ssl.estimate.hlo import Traffic

# No TPU is looked for; several may compile at once.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",  # must be one; the topology is another matter
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
}
_SCHEDULES = "--xla_jf_dump_llo_text=true --xla_jf_dump_llo_pass_label_regex=.*final_bundles.*"


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiler says of a step on one chip of a pod."""

    fits: bool
    memory: int  # bytes a chip needs at its fullest
    cycles: int = 0  # of a chip's operations and kernels, without waiting for other chips
    unknown: int = 0  # custom kernels that it gives no schedule of
    moved: int = 0  # bytes to and from the chip's memory
    traffic: tuple[Traffic, ...] = ()  # between the chips


def compiled(raw: dict[str, Any], stage: str, topology: Topology) -> Compiled:
    """Compiles the step of a stage of a plain configuration: a minute, or some.

    Raises:
      UserError: no libtpu, or it does not know the topology.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            f"--topology={topology.name}: the TPU's compiler is missing: "
            "pip install -e '.[estimate]'"
        )
    job = json.dumps({"topology": topology.name, "stage": stage, "config": raw})
    with tempfile.TemporaryDirectory() as folder:
        child = subprocess.run(
            [sys.executable, "-m", __name__, folder],
            input=job, env=os.environ | environment(folder), capture_output=True, text=True,
        )  # fmt: skip
    if child.returncode == 2:
        raise UserError(child.stderr.strip().splitlines()[-1])
    if child.returncode:
        raise RuntimeError(f"the compiler ended with {child.returncode}:\n{child.stderr[-4000:]}")
    answer = json.loads(child.stdout.splitlines()[-1])
    return Compiled(**answer | {"traffic": tuple(Traffic(*row) for row in answer["traffic"])})


def environment(folder: str) -> dict[str, str]:
    """``ENVIRONMENT``, and where the compiler writes its schedules."""
    return ENVIRONMENT | {"LIBTPU_INIT_ARGS": f"--xla_jf_dump_to={folder} {_SCHEDULES}"}


def _compile(job: dict[str, Any], folder: str) -> Compiled:
    import jax
    from jax.experimental import topologies

    from adv_ssl import config, sharding
    from adv_ssl.estimate import hlo, program

    try:
        devices = topologies.get_topology_desc(job["topology"], "tpu").devices
    except (jax.errors.JaxRuntimeError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--topology={job['topology']}: libtpu refuses it: {reason}") from None
    run = program.runs(config.parse(job["config"]))[job["stage"]]
    made = program.make(run, sharding.mesh_of(devices))
    try:
        done = made.step.lower(*made.arguments).compile()
    except jax.errors.JaxRuntimeError as error:
        needed = re.search(r"(?:Used |\()([\d.]+)([KMGT])", str(error))
        if "RESOURCE_EXHAUSTED" not in str(error) or not needed:
            raise
        return Compiled(False, round(float(needed[1]) * 1024 ** (1 + "KMGT".index(needed[2]))))
    text = done.as_text()
    running = hlo.instructions(text)
    texts = (path.read_text() for path in pathlib.Path(folder).glob("*schedule-analysis_final*"))
    in_kernels, unknown = hlo.kernels(running, hlo.schedules(texts))
    return Compiled(
        fits=True,
        memory=done.memory_analysis().peak_memory_in_bytes,
        cycles=sum(i.cycles for i in running) + in_kernels,
        unknown=unknown,
        moved=sum(i.moved for i in running),
        traffic=tuple(hlo.traffic(text)),
    )


if __name__ == "__main__":
    try:
        print(json.dumps(dataclasses.asdict(_compile(json.load(sys.stdin), sys.argv[1]))))
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
