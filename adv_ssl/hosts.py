"""Many hosts, one process each: how they find one another, agree, and end when one is lost.

JAX's own runtime does the work. When another process is lost or missing it ends this one with an
abort, which cannot be caught: so the work is done in a child process, whose end is told in a line.
"""

import functools
import os
import re
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from absl import flags
from jax._src import clusters
from jax._src import distributed as runtime
from jax.experimental import multihost_utils

from adv_ssl import preemption, sharding
from adv_ssl.errors import UserError, in_one_line

T = TypeVar("T")


class AgreedError(UserError):
    """One that all hosts end with."""


_CHILD = "ADV_SSL_HOST"  # in the environment of the process that works
_LOST = re.compile(
    r"Gloo|NCCL|heartbeat|Connection (reset|closed)|coordination|UNAVAILABLE|DEADLINE_EXCEEDED"
)
_MESSAGE = 1000  # bytes of an error that hosts tell one another


def define_flags() -> None:
    """For the command that runs on many hosts; the others refuse these flags."""
    flags.DEFINE_string(
        "coordinator", None, "HOST:PORT of process 0, where a TPU pod, GKE or Slurm do not tell."
    )
    flags.DEFINE_integer("processes", None, "How many there are; with --coordinator.")
    flags.DEFINE_integer("process", None, "Which one this is, from 0; with --coordinator.")
    flags.DEFINE_integer("join_timeout", 300, "Seconds to wait for the other hosts.", lower_bound=1)


def _given() -> tuple[str | None, int | None, int | None]:
    """Coordinator, processes and process."""
    values = flags.FLAGS
    return values.coordinator, values.processes, values.process


def several() -> bool:
    """Whether this process is one of several: by the flags, or as jax finds out.

    Raises:
      UserError: some of the three flags are missing, or do not fit together.
    """
    coordinator, processes, process = _given()
    if coordinator is None and processes is None and process is None:
        kinds = clusters.ClusterEnv._cluster_types
        kind = next((k for k in kinds if not k.opt_in_only_method and k.is_env_present()), None)
        return kind is not None and kind.get_process_count() > 1
    if coordinator is None or processes is None or process is None:
        raise UserError("--coordinator, --processes and --process belong together: give all three.")
    if not re.fullmatch(r".+:\d+", coordinator):
        raise UserError(f"--coordinator={coordinator}: expected HOST:PORT of process 0.")
    if not 0 <= process < processes:
        raise UserError(f"--process={process} of --processes={processes}: they count from 0.")
    return processes > 1


def join() -> None:
    """Makes the devices of all hosts jax's own. To be called before any other use of jax."""
    timeout = flags.FLAGS.join_timeout
    # So that process 0 gives up before the others do, and says how many came.
    library: Any = vars(runtime)["_jax"]
    library.get_distributed_runtime_service = functools.partial(
        library.get_distributed_runtime_service, cluster_register_timeout=timeout
    )
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM from us
    jax.distributed.initialize(
        *_given(),
        local_device_ids=[],  # all of this host's, where Slurm would give each process one
        initialization_timeout=timeout + 15,
        shutdown_timeout_seconds=3600,  # while process 0 draws
    )


def works() -> bool:
    """Whether this is the process that works, rather than the one that watches it."""
    return _CHILD in os.environ


def watch() -> int:
    """Runs the same command in a child process; its exit code, or one that says what befell it.

    75: another host was lost, and what was saved goes on with the same command; 2: not all came.
    """
    child = subprocess.Popen(
        [sys.executable, *sys.orig_argv[1:]],
        env={**os.environ, _CHILD: "1"},
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    last: deque[str] = deque(maxlen=200)
    reader = threading.Thread(target=_read, args=(child, last), daemon=True)
    reader.start()
    code = preemption.end_of(child)
    reader.join(timeout=5)
    said = "".join(last)
    if code == 0 or (code in (1, 2, 75) and "Traceback" not in said):
        return code
    if code == -signal.SIGTERM and preemption.asked():  # it did not listen yet: nothing was begun
        return 75
    joined = re.search(r"reached the barrier: (\d+)/(\d+)", said)
    if joined and "to_register" in said:
        say(
            f"{joined[1]} of {joined[2]} hosts joined within {flags.FLAGS.join_timeout} s: start "
            "the same command on all of them, at about the same time."
        )
        return 2
    if "RegisterTask" in said:
        say(
            f"no answer from process 0 ({flags.FLAGS.coordinator or 'found by jax'}) within "
            f"{flags.FLAGS.join_timeout} s: is it started, and its port open?"
        )
        return 2
    why = next((line for line in last if _LOST.search(line)), "")
    if code == -signal.SIGABRT and why:
        say(told_of_loss(why))
        return 75
    sys.stderr.write(said)
    return code if code > 0 else 128 - code


def told_of_loss(why: object) -> str:
    """What is said where jax told, by an error or a line, that another host is gone."""
    return (
        f"another host was lost ({in_one_line(why)}): start the same command on all hosts to go on "
        "from what was saved."
    )


def together() -> bool:
    """Whether this process has joined others."""
    return runtime.global_state.client is not None


def lost(error: BaseException) -> bool:
    """Whether an error of jax's means that another host is gone."""
    return together() and bool(_LOST.search(str(error)))


def _read(child: "subprocess.Popen[str]", last: "deque[str]") -> None:
    """Passes on what the child says of itself, keeps the end of the rest."""
    assert child.stderr is not None
    with child.stderr as lines:
        for line in lines:
            if line.startswith("adv_ssl: "):
                sys.stderr.write(line)
                sys.stderr.flush()
            else:
                last.append(line)


def say(message: str) -> None:
    """A line of ours on standard error, in one piece: libraries write there from threads too."""
    sys.stderr.write(f"adv_ssl: {message}\n")
    sys.stderr.flush()


def lead() -> bool:
    """Whether this process writes what is written once."""
    return jax.process_index() == 0


def agreed(action: Callable[[], T]) -> T:
    """The result of ``action``, done on every host. AgreedError on all of them if on one."""
    if jax.process_count() == 1:
        return action()
    result, message = None, ""
    try:
        result = action()
    except UserError as error:
        message = str(error)
    padded = message.encode()[:_MESSAGE].ljust(_MESSAGE, b"\0")
    told = multihost_utils.process_allgather(np.frombuffer(padded, np.uint8))
    for host, text in enumerate(told):
        if text.any():
            raise AgreedError(
                f"host {host}: {bytes(text).rstrip(bytes(1)).decode(errors='replace')}"
            )
    return result  # type: ignore[return-value]


def total(counts: tuple[int, ...]) -> tuple[int, ...]:
    """The sums over all hosts of each one's counts."""
    if jax.process_count() == 1:
        return counts
    return tuple(map(int, multihost_utils.process_allgather(np.array(counts)).sum(0)))


@functools.cache
def _any() -> Callable[[jax.Array], jax.Array]:
    return jax.jit(lambda raised: raised.any(), out_shardings=sharding.replicated(sharding.mesh()))


class Vote:
    """Whether any host raised its flag; asked of all hosts equally often.

    With several hosts the answer is that to the question before: it costs no waiting, and all get
    the same one.
    """

    def __init__(self) -> None:
        self._before: jax.Array | None = None

    def __call__(self, raised: bool) -> bool:
        if jax.process_count() == 1:
            return raised
        answer, flag = self._before, np.full(jax.local_device_count(), raised)
        self._before = _any()(sharding.assembled(flag))
        return answer is not None and bool(answer)
