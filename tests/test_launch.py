"""launch/: every path through the scripts, with gcloud, srun and python that are made up."""

import contextlib
import os
import re
import shlex
import shutil
import signal
import string
import subprocess
import time

import pytest
import yaml
from conftest import ROOT

LAUNCH = ROOT / "launch"
ARGS = ["--config=configs/mae_l2.py", "--workdir=/mnt/gcs/it's mine"]
POD = {
    "NAME": "pod",
    "PROJECT": "project",
    "ZONE": "us-west4-a",
    "ACCELERATOR": "v5litepod-16",
    "RUNTIME": "v2-alpha-tpuv5-lite",
    "SPOT": "1",
    "REPO": "https://example.com/adv_ssl.git",
    "REVISION": "abc123",
    "BUCKET": "bucket",
}

# Ends with the next code in $FAKE/codes, or in $FAKE/codes.I of process I.
PYTHON = r"""
echo "$(printf '%q ' "$@")" >> "$FAKE/starts"
codes=$FAKE/codes; [[ $* =~ --process=([0-9]) ]] && codes+=.${BASH_REMATCH[1]}
code=$(head -n 1 "$codes"); sed -i 1d "$codes"
if [[ $code == hang ]]; then
  trap 'exit 75' TERM; echo $$ > "$FAKE/pid"; mv "$FAKE/pid" "$FAKE/up"; echo "step 1"
  while :; do sleep 0.02; done
fi
if [[ $code == slow ]]; then sleep 1.5; code=0; fi
exit "$code"
"""

# Describes a pod that waits once and is then in the state that $FAKE/state says; its worker's home
# is $FAKE/home, and a second one ends with the code in $FAKE/second. A line of $FAKE/breaks breaks
# a connection to the training, with the pod in that state after it.
GCLOUD = r"""
verb=$4; command=${!#}; command=${command#--command=}
[[ $verb == ssh ]] && [[ $command =~ worker.sh\ ([a-z]+) ]] && verb=${BASH_REMATCH[1]}
echo "$verb" >> "$FAKE/calls"
echo "$(printf '%q ' "$@")" >> "$FAKE/lines"
connected() { (cd "$FAKE/home" && HOME=$PWD bash -c "$command"); }
case $verb in
  create) echo ACTIVE > "$FAKE/state"
          [[ ! -e $FAKE/refused ]] || exit 1
          [[ ! -e $FAKE/dawdles ]] || { touch "$FAKE/up"; sleep 0.5; }
          touch "$FAKE/exists" "$FAKE/waits" ;;
  delete) [[ ! -e $FAKE/undeletable ]] || exit 1
          [[ -e $FAKE/exists ]] || { echo "ERROR: NOT_FOUND: no such resource" >&2; exit 1; }
          rm "$FAKE/exists" ;;
  describe) [[ -e $FAKE/exists ]] || { echo "ERROR: NOT_FOUND: no such resource" >&2; exit 1; }
            if [[ -e $FAKE/waits ]]; then rm "$FAKE/waits"; echo WAITING_FOR_RESOURCES
            else cat "$FAKE/state"; fi ;;
  install) [[ ! -e $FAKE/uninstallable ]] || exit 1 ;;
  run) if [[ -s $FAKE/breaks ]]; then
         head -n 1 "$FAKE/breaks" > "$FAKE/state"; sed -i 1d "$FAKE/breaks"
         connected > /dev/null &
         until [[ -s $FAKE/starts ]]; do sleep 0.02; done
         exit 255
       fi
       connected; code=$?
       [[ -e $FAKE/second ]] || exit "$code"
       sed 's/^/w-1 exit code /' "$FAKE/second"; exit $((code || $(<"$FAKE/second"))) ;;
  *) connected ;;
esac
"""

TAIL = f'exec {shutil.which("tail")} -s 0.05 "$@"'  # looks more often whether its process lives

SLURM = {
    "srun": """
worst=0
for ((task = 0; task < ${SLURM_JOB_NUM_NODES:-1}; task++)); do
  "${@:3}"; code=$?; ((code <= worst)) || worst=$code
done
exit "$worst"
""",  # a task on each node; the highest code of all
    "scancel": """
echo "scancel $*" >> "$FAKE/calls"; training=$(<"$FAKE/up")
kill -TERM "$(cut -d ' ' -f 4 "/proc/$training/stat")" "$training"
""",  # to all processes of the step
    "squeue": 'cat "$FAKE/state"',
    "scontrol": 'echo "scontrol $*" >> "$FAKE/calls"',
}


def wait_until(happened, process):
    deadline = time.monotonic() + 20
    while not happened():
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


class Fake:
    """A folder with made-up commands and what they wrote down."""

    def __init__(self, folder):
        self.folder = folder
        self.environment = {
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            "HOME": str(folder),
            "FAKE": str(folder),
            "POLL": "0",
        }
        (folder / "codes").touch()
        for name, body in {"python": PYTHON, "gcloud": GCLOUD, "tail": TAIL, **SLURM}.items():
            self.put(folder / "bin" / name, body)
        clone = folder / "home" / "adv_ssl"
        self.put(clone / ".venv" / "bin" / "python", PYTHON)
        self.put(clone / "launch" / "worker.sh", (LAUNCH / "worker.sh").read_text())

    @staticmethod
    def put(path, body):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/usr/bin/env bash\n{body}")
        path.chmod(0o755)

    def write(self, name, *lines):
        (self.folder / name).write_text("".join(f"{line}\n" for line in lines))

    def lines(self, name):
        path = self.folder / name
        return path.read_text().splitlines() if path.exists() else []

    def exists(self, name):
        return (self.folder / name).exists()

    def start(self, script, *args, **environment):
        return subprocess.Popen(
            ["bash", LAUNCH / script, *args],
            cwd=self.folder,
            env=self.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, script, *args, **environment):
        """The exit code, and what was said."""
        process = self.start(script, *args, **environment)
        out, err = process.communicate(timeout=30)
        return process.returncode, out + err

    def interrupt(self, script, *args, send=os.kill, what=signal.SIGTERM, **environment):
        """As run, with a signal as soon as the training is up."""
        process = self.start(script, *args, **environment)
        wait_until(lambda: self.exists("up"), process)
        send(process.pid, what)
        out, err = process.communicate(timeout=30)
        return process.returncode, out + err


@pytest.fixture
def fake(tmp_path):
    made_up = Fake(tmp_path)
    yield made_up
    for training in made_up.lines("up"):  # one that hangs, where a test failed
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(training), signal.SIGKILL)


UP = ["describe", "create", "describe", "describe", "install", "run"]


def test_dry_run_prints_every_command_and_executes_none(fake):
    before = sorted(fake.folder.rglob("*"))
    code, out = fake.run("tpu_pod.sh", "--dry-run", "all", *ARGS, **POD)
    assert code == 0
    assert sorted(fake.folder.rglob("*")) == before
    lines = [line for line in out.splitlines() if not line.startswith("tpu_pod.sh: ")]
    commands = [shlex.split(line) for line in lines]
    assert [words[words[0] == "gcloud" and 4] for words in commands] == [
        *("describe", "create", "describe", "ssh", "mkdir", "ssh", "delete")
    ]
    assert commands[1][4:] == [
        *("create", "pod", "--project=project", "--zone=us-west4-a", "--node-id=pod"),
        *("--accelerator-type=v5litepod-16", "--runtime-version=v2-alpha-tpuv5-lite", "--spot"),
    ]
    installing, running = (
        words[-1].removeprefix("--command=") for words in commands if "ssh" in words
    )
    assert "git checkout --quiet abc123 && bash launch/worker.sh install tpu bucket" in installing
    assert shlex.split(running)[3:] == ARGS
    assert "--worker=all" in commands[-2]
    assert commands[-1][-2:] == ["--force", "--quiet"]


def test_what_a_dry_run_prints_is_what_is_executed(fake):
    fake.write("codes", 0)
    _, out = fake.run("tpu_pod.sh", "--dry-run", "all", *ARGS, **POD)
    printed = [shlex.split(line)[1:] for line in out.splitlines() if line.startswith("gcloud")]
    fake.run("tpu_pod.sh", "all", *ARGS, **POD)
    executed = [shlex.split(line) for line in fake.lines("lines")]
    del executed[2]  # the look at the pod that said to wait
    assert executed == printed


def test_on_demand_is_without_spot(fake):
    _, out = fake.run("tpu_pod.sh", "--dry-run", "create", **POD | {"SPOT": "0"})
    assert "--node-id=pod" in out
    assert "--spot" not in out


def test_75_is_started_again_on_a_new_pod(fake):
    fake.write("codes", 75, 0)
    code, out = fake.run("tpu_pod.sh", "all", *ARGS, **POD)
    assert code == 0, out
    assert fake.lines("calls") == [*UP, "delete", *UP, "delete"]
    assert not fake.exists("exists")
    first, second = fake.lines("starts")
    assert first == second
    assert shlex.split(first) == ["-m", "adv_ssl.main", *ARGS]
    logs = [path.read_text() for path in sorted(fake.folder.glob("logs/pod/*/*.log"))]
    assert logs[-1] == "exit code 0\n"


@pytest.mark.parametrize("code", [1, 2])
def test_a_mistake_is_not_started_again_and_the_pod_is_deleted(fake, code):
    fake.write("codes", code, 0)
    assert fake.run("tpu_pod.sh", "all", *ARGS, **POD)[0] == code
    assert fake.lines("calls") == [*UP, "delete"]
    assert not fake.exists("exists")


@pytest.mark.parametrize(
    ("first", "second", "expected"), [(0, 0, 0), (75, 2, 2), (1, 75, 1), (0, 75, 75), (75, 137, 75)]
)
def test_all_workers_codes_count_and_each_has_its_log(fake, first, second, expected):
    fake.write("exists")
    fake.write("codes", first)
    fake.write("second", second)
    assert fake.run("tpu_pod.sh", "run", *ARGS, **POD)[0] == expected
    logs = {path.name: path.read_text() for path in fake.folder.glob("logs/pod/*/*.log")}
    assert logs.pop("w-1.log") == f"exit code {second}\n"
    assert list(logs.values()) == [f"exit code {first}\n"]


@pytest.mark.parametrize(("what", "expected"), [(signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_ctrl_c_saves_and_deletes(fake, what, expected):
    fake.write("codes", "hang")
    code, out = fake.interrupt("tpu_pod.sh", "all", *ARGS, send=os.killpg, what=what, **POD)
    assert code == expected, out
    assert fake.lines("calls") == [*UP, "stop", "delete"], out
    assert not fake.exists("exists")
    assert fake.lines("home/adv_ssl.log") == [
        "step 1",
        "exit code 75",
    ]  # it was told, and had the time


def test_ctrl_c_while_the_pod_is_asked_for_leaves_none_behind(fake):
    fake.write("dawdles")
    send = {"send": os.killpg, "what": signal.SIGINT}
    assert fake.interrupt("tpu_pod.sh", "all", *ARGS, **send, **POD)[0] == 130
    assert fake.lines("calls") == ["describe", "create", "delete"]
    assert not fake.exists("exists")


def test_a_preempted_pod_is_made_anew(fake):
    fake.write("breaks", "SUSPENDED")
    fake.write("codes", 137, 0)
    assert fake.run("tpu_pod.sh", "all", *ARGS, **POD)[0] == 0
    assert fake.lines("calls") == [*UP, "describe", "delete", *UP, "delete"]


def test_a_broken_connection_finds_the_same_training(fake):
    fake.write("breaks", "ACTIVE")
    fake.write("codes", "slow")
    assert fake.run("tpu_pod.sh", "all", *ARGS, **POD)[0] == 0
    assert fake.lines("calls") == [*UP, "describe", "run", "delete"]
    assert len(fake.lines("starts")) == 1


def test_ctrl_c_of_run_leaves_the_training_which_run_finds_again(fake):
    fake.write("exists")
    fake.write("state", "ACTIVE")
    fake.write("codes", "hang")
    send = {"send": os.killpg, "what": signal.SIGINT}
    code, out = fake.interrupt("tpu_pod.sh", "run", *ARGS, **send, **POD)
    assert code == 130
    assert "goes on" in out
    shutil.rmtree(fake.folder / "logs")
    again = fake.start("tpu_pod.sh", "run", *ARGS, **POD)
    wait_until(lambda: list(fake.folder.glob("logs/pod/*/*.log")), again)
    os.kill(int(fake.lines("up")[0]), signal.SIGTERM)
    again.communicate(timeout=10)
    assert again.returncode == 75
    assert fake.lines("calls") == ["run", "run"]
    assert len(fake.lines("starts")) == 1


def test_a_pod_of_the_same_name_is_taken_over(fake):
    fake.write("exists")
    fake.write("state", "ACTIVE")
    fake.write("codes", 0)
    assert fake.run("tpu_pod.sh", "all", *ARGS, **POD)[0] == 0
    assert fake.lines("calls") == ["describe", "describe", "install", "run", "delete"]


@pytest.mark.parametrize("what", ["refused", "uninstallable"])
def test_what_cannot_be_created_or_installed_is_not_tried_for_ever(fake, what):
    fake.write(what)
    code, out = fake.run("tpu_pod.sh", "all", *ARGS, **POD)
    assert code == 1
    assert "COST" not in out
    assert fake.lines("calls").count("create") == 1
    assert not fake.exists("exists")


def test_three_pods_that_get_nowhere_are_enough(fake):
    fake.write("codes", *[75] * 9)
    code, out = fake.run("tpu_pod.sh", "all", *ARGS, **POD)
    assert code == 1
    assert "giving up" in out
    assert fake.lines("calls") == [*UP, "delete"] * 3


def test_a_pod_that_cannot_be_deleted_is_not_passed_over(fake):
    fake.write("codes", 0)
    fake.write("undeletable")
    code, out = fake.run("tpu_pod.sh", "all", *ARGS, **POD)
    assert code == 1
    assert fake.lines("calls").count("delete") == 3
    assert "pod MAY STILL COST MONEY. Delete it: gcloud compute tpus queued-resources delete" in out


def test_a_pod_may_be_kept(fake):
    fake.write("codes", 2)
    code, out = fake.run("tpu_pod.sh", "all", *ARGS, KEEP="1", **POD)
    assert code == 2
    assert "pod is kept and costs money" in out
    assert fake.exists("exists")


@pytest.mark.parametrize("name", POD)
def test_a_missing_variable_is_named_before_anything_is_done(fake, name):
    environment = {key: value for key, value in POD.items() if key != name}
    code, out = fake.run("tpu_pod.sh", "all", *ARGS, **environment)
    assert code == 2
    assert out.startswith(f"tpu_pod.sh: {name} is not set")
    assert not fake.exists("calls")


@pytest.mark.parametrize("words", [[], ["destroy"], ["all"], ["run"]])
def test_other_mistakes_of_tpu_pod(fake, words):
    code, out = fake.run("tpu_pod.sh", *words, **POD)
    assert code == 2
    assert len(out.splitlines()) == 1
    assert not fake.exists("calls")


def test_local_starts_again_at_75_alone(fake):
    fake.write("codes", 75, 75, 0)
    assert fake.run("local.sh", *ARGS)[0] == 0
    assert [shlex.split(line) for line in fake.lines("starts")] == [
        ["-m", "adv_ssl.main", *ARGS]
    ] * 3


@pytest.mark.parametrize("code", [0, 1, 2, 137])
def test_local_does_not_start_again(fake, code):
    fake.write("codes", code, 0)
    assert fake.run("local.sh", *ARGS)[0] == code
    assert len(fake.lines("starts")) == 1


def test_local_gives_up_what_gets_nowhere(fake):
    fake.write("codes", *[75] * 9)
    code, out = fake.run("local.sh", *ARGS)
    assert code == 1
    assert "giving up" in out
    assert len(fake.lines("starts")) == 3


@pytest.mark.parametrize("what", [signal.SIGTERM, signal.SIGINT])
def test_local_hands_signals_on_and_ends(fake, what):
    fake.write("codes", "hang", 0)
    assert fake.interrupt("local.sh", *ARGS, what=what)[0] == 75
    assert len(fake.lines("starts")) == 1


@pytest.mark.parametrize(
    ("codes", "expected"), [((0, 0), 0), ((75, 2), 2), ((1, 75), 1), ((137, 0), 137)]
)
def test_local_starts_processes_that_find_one_another(fake, codes, expected):
    for process, code in enumerate(codes):
        fake.write(f"codes.{process}", code)
    assert fake.run("local.sh", *ARGS, PROCESSES="2", DEVICES="2")[0] == expected
    first, second = sorted(shlex.split(line)[-3:] for line in fake.lines("starts"))
    assert re.fullmatch(r"--coordinator=127.0.0.1:2\d{4}", first[0])
    assert first[1:] == ["--processes=2", "--process=0"]
    assert second == [*first[:2], "--process=1"]


def test_local_does_not_ignore_what_one_process_does_not_read(fake):
    code, said = fake.run("local.sh", *ARGS, DEVICES="2")
    assert (code, "for several PROCESSES" in said) == (2, True)


def test_local_starts_all_processes_again_when_one_died(fake):
    fake.write("codes.0", 75, 0)
    fake.write("codes.1", 137, 0)
    assert fake.run("local.sh", *ARGS, PROCESSES="2")[0] == 0
    assert len(fake.lines("starts")) == 4


def test_local_refuses_no_processes(fake):
    assert fake.run("local.sh", *ARGS, PROCESSES="0")[0] == 2
    assert not fake.exists("starts")


REQUEUED = ["scontrol requeue 7"]


@pytest.mark.parametrize(
    ("codes", "state", "restarts", "expected", "calls"),
    [
        ([0], "RUNNING", 0, 0, []),
        ([1], "RUNNING", 0, 1, []),
        ([2], "RUNNING", 0, 2, []),
        ([75], "RUNNING", 0, 75, REQUEUED),
        ([75, 2], "RUNNING", 0, 2, []),  # a mistake on one host, which its peers lost
        ([1, 75], "RUNNING", 0, 1, []),
        ([75, 137], "RUNNING", 2, 137, REQUEUED),  # a task was killed; its peers left with 75
        ([137, 2], "RUNNING", 0, 2, []),
        ([137], "RUNNING", 0, 137, []),  # the only one: out of memory, and again each time
        ([75], "CANCELLED", 0, 75, []),
        ([75], "RUNNING", 3, 1, []),  # nothing but quick ends
    ],
)
def test_slurm_queues_again(fake, codes, state, restarts, expected, calls):
    fake.write("codes", *codes)
    fake.write("state", state)
    slurm = {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": str(len(codes))}
    slurm |= {"SLURM_RESTART_COUNT": str(restarts), "PYTHON": "python"}
    assert fake.run("slurm.sbatch", *ARGS, **slurm)[0] == expected
    assert fake.lines("calls") == calls
    assert shlex.split(fake.lines("starts")[0])[-2:] == ARGS


def test_slurm_signals_the_step_and_not_srun(fake):
    fake.write("codes", "hang")
    fake.write("state", "RUNNING")
    code, out = fake.interrupt("slurm.sbatch", *ARGS, SLURM_JOB_ID="7", PYTHON="python")
    assert code == 75, out
    assert fake.lines("calls") == ["scancel --signal=TERM 7", *REQUEUED]


def gke():
    """gke.yaml with the values that its head gives as an example."""
    text = (LAUNCH / "gke.yaml").read_text()
    head = text.split("envsubst")[0].replace("#", " ").replace("\\\n", " ")
    values = dict(word.split("=", 1) for word in shlex.split(head.split("export")[1]))
    assert set(re.findall(r"\$\{(\w+)\}", text)) == set(values)
    return yaml.safe_load(string.Template(text).substitute(values))


def test_gke_restarts_all_but_mistakes():
    spec = gke()["spec"]
    (job,) = (slice_["template"]["spec"] for slice_ in spec["replicatedJobs"])
    pod = job["template"]["spec"]
    counted, failed = job["podFailurePolicy"]["rules"]
    assert counted["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    assert failed["action"] == "FailJob"
    assert failed["onExitCodes"]["values"] == [1, 2]
    assert failed["onExitCodes"]["containerName"] == pod["containers"][0]["name"]
    (rule,) = spec["failurePolicy"]["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
    assert (job["backoffLimit"], pod["restartPolicy"]) == (0, "Never")
    limits = pod["containers"][0]["resources"]["limits"]
    rows, columns = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")
    assert job["completions"] * limits["google.com/tpu"] == int(rows) * int(columns)
    assert job["parallelism"] == job["completions"]


@pytest.mark.parametrize("nodes", [1, 2])
def test_skypilot(fake, nodes):
    task = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
    recovery = task["resources"]["job_recovery"]
    assert recovery == {"max_restarts_on_errors": 0, "recover_on_exit_codes": [75]}
    assert task["resources"]["use_spot"] is True
    assert task["envs"] == {"ARGS": None, "BUCKET": None}  # SkyPilot asks for what is null
    fake.write("codes", 0)
    fake.write("codes.1", 0)
    environment = {
        "SKYPILOT_NUM_NODES": str(nodes),
        "SKYPILOT_NODE_IPS": "10.0.0.5\n10.0.0.6",
        "SKYPILOT_NODE_RANK": "1",
        "ARGS": " ".join(ARGS[:1]),
    }
    folder = fake.folder / "home" / "adv_ssl"
    subprocess.run(
        ["bash", "-ec", task["run"]], cwd=folder, env=fake.environment | environment, check=True
    )
    many = ["--coordinator=10.0.0.5:8476", "--processes=2", "--process=1"]
    assert shlex.split(fake.lines("starts")[0])[3:] == (many if nodes == 2 else [])


def test_files_are_sound_and_hold_no_hyper_parameter():
    files = sorted(LAUNCH.iterdir())
    page = (ROOT / "docs" / "scale.md").read_text()
    for path in files:
        if path.suffix == ".ipynb":  # test_colab.py's
            continue
        text = path.read_text()
        assert not re.search(r"--config\.|epsilon|learning_rate|batch_size|epochs", text), path
        assert f"launch/{path.name}" in page
        if path.suffix in (".sh", ".sbatch"):
            subprocess.run(["bash", "-n", path], check=True)
    assert set(re.findall(r"launch/([\w.]+\w)", page)) == {path.name for path in files}
