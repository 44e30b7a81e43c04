"""The scripts that start jobs on pods: what they would call, what they call, and the manifest against its schema."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
import yaml
from kubeflow_trainer_api.models import JobsetV1alpha2JobSet

from asyncpatch_jax.training import checkpoints as checkpoints_lib
from asyncpatch_jax.training.checkpoints import Checkpoints
from asyncpatch_jax.training.step import TrainState
from launch.tpu import jobset

FOLDER = Path(jobset.__file__).parent
SCRIPTS = sorted(FOLDER.glob("*.sh"))
MAINS = ("vm", "queued", "gke", "xpk", "slurm", "worker")
# what breaks when a shell reads it once too often
AWKWARD = ["--config=a.py", "--config.workdir=gs://b/run 1", """--config.note=it's "quoted" $HOME `id` \\ & ; *""", ""]
PLACE = {"PROJECT": "a project", "ZONE": "us-east5-b", "NAME": "run1", "TYPE": "v6e-64"}
SYSTEM = ("bash", "basename", "cat", "cp", "dirname", "env", "gzip", "head", "hostname", "mkdir", "sed", "setsid")


@pytest.fixture
def tools(tmp_path):
    """`tools(name, body)` puts a program into the one folder that is searched: this machine's gcloud is not in it."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in (*SYSTEM, "sleep", "tail", "tar", "touch"):
        (folder / name).symlink_to(shutil.which(name))

    def add(name, body):
        path = folder / name
        path.write_text(f"#!/usr/bin/env bash\nset -eu\n{body}\n")
        path.chmod(0o755)
        return path

    return add


@pytest.fixture
def script(tmp_path, tools):
    """Run a script with variables: (exit code, stdout, stderr)."""

    def run(name, *arguments, folder=FOLDER, **variables):
        env = {"HOME": str(tmp_path), "PATH": str(tmp_path / "bin"), "TMPDIR": str(tmp_path), **variables}
        command = ["bash", str(folder / f"{name}.sh"), *arguments]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, cwd=tmp_path)
        return done.returncode, done.stdout, done.stderr

    return run


def recorded(path):
    """Calls as lists of words, of a program that ran RECORD."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def record(path):
    code = "import json, sys; print(json.dumps(sys.argv[1:]))"
    return f'{shlex.quote(sys.executable)} -c {shlex.quote(code)} "$(basename "$0")" "$@" >>{shlex.quote(str(path))}'


def said(text):
    """The commands of a dry run, as a shell reads them."""
    return [shlex.split(line) for line in text.splitlines()]


def test_shellcheck_finds_nothing():
    command = ["shellcheck", "--external-sources", "--source-path=SCRIPTDIR", *SCRIPTS]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", MAINS)
def test_help_says_what_there_is_and_mistakes_are_told(script, name):
    code, out, _ = script(name, "--help")
    assert code == 0
    assert f"{name}.sh" in out
    assert "#" not in out
    code, _, err = script(name, "--no-such-option")
    assert (code, err) == (1, "error: expected --help or --dry-run before the action, got --no-such-option\n")
    code, _, err = script(name, "--dry-run", "fly", **PLACE, CLUSTER="c")
    assert code == 1
    assert "fly" in err
    assert "--help" in err


def test_what_is_missing_is_named(script):
    assert "variable ZONE" in script("vm", "delete", PROJECT="p")[2]
    assert "variable TYPE" in script("queued", "--dry-run", "create", **{**PLACE, "TYPE": ""})[2]
    assert "expected gcloud on the PATH" in script("vm", "delete", **PLACE)[2]
    assert "SLICES" in script("queued", "--dry-run", "create", **PLACE, SLICES="two")[2]
    assert "v4-N" in script("vm", "--dry-run", "create", **{**PLACE, "TYPE": "v9-8"})[2]
    assert (
        "expected --config.workdir=gs://" in script("vm", "--dry-run", "start", "--config.workdir=runs/a", **PLACE)[2]
    )
    assert "expected a command of launch/" in script("vm", "--dry-run", "start", "fly", "--out=gs://b/o", **PLACE)[2]
    assert "--out=gs://" in script("vm", "--dry-run", "start", "text2image", "--out=o", **PLACE)[2]
    there = "--config.data.latents=gs://b/l"
    assert script("vm", "--dry-run", "start", "encode", there, **PLACE)[0] == 0
    assert "--out=gs://" in script("vm", "--dry-run", "start", there, "--config.workdir=runs/a", **PLACE)[2]
    assert "number of the job" in script("slurm", "--dry-run", "stop")[2]


def test_a_dry_run_prints_what_would_be_called(script):
    where = ["--project=a project", "--zone=us-east5-b"]
    vm, queued = ["gcloud", "compute", "tpus", "tpu-vm"], ["gcloud", "compute", "tpus", "queued-resources"]
    cases = {
        ("vm", "create"): [*vm, "create", "run1", *where, "--accelerator-type=v6e-64", "--version=v2-alpha-tpuv6e"],
        ("vm", "delete"): [*vm, "delete", "run1", *where, "--quiet"],
        ("queued", "wait"): [*queued, "describe", "run1", *where, "--format=value(state.state)"],
        ("queued", "delete"): [*queued, "delete", "run1", *where, "--force", "--quiet"],
    }
    for (name, action), words in cases.items():
        code, out, err = script(name, "--dry-run", action, **PLACE)
        assert (code, said(out)) == (0, [words]), err
    one = said(script("queued", "--dry-run", "create", **PLACE)[1])[0]
    assert one[4:] == ["create", "run1", *where, "--accelerator-type=v6e-64", "--runtime-version=v2-alpha-tpuv6e",
                       "--node-id=run1"]  # fmt: skip
    four = said(script("queued", "--dry-run", "create", **PLACE, SLICES="4", SPOT="1", VERSION="other")[1])[0]
    assert four[-4:] == ["--spot", "--runtime-version=other", "--node-count=4", "--node-prefix=run1"]


COMMANDS = [
    ("train_tpm", "--config=a", "--config.workdir=gs://b/run 1"),
    ("text2image", "a folder", "--prompt=it's $HOME", "--out=gs://b/o"),
    ("sample", "--workdir=gs://b/run 1"),
    ("evaluate", "--out=gs://b/o"),
    ("studies.text", "--out=gs://b/o"),
]


@pytest.mark.parametrize("job", COMMANDS, ids=[job[0] for job in COMMANDS])
def test_every_script_takes_any_command(script, tools, job):
    tools("python3", f'exec {sys.executable} "$@"')
    more = {"CLUSTER": "c", "IMAGE": "i", "TOPOLOGY": "v6e:4x4", "NODES": "2", "GPUS": "8"}
    found = {}
    for name in ("vm", "queued", "xpk", "slurm", "gke"):
        code, out, err = script(name, "--dry-run", "start", *job, **{**PLACE, **more})
        assert code == 0, err
        if name == "gke":
            (part,) = yaml.safe_load(out)["spec"]["replicatedJobs"]
            found[name] = part["template"]["spec"]["template"]["spec"]["containers"][0]["args"]
        else:
            (words,) = said(out)
            found[name] = words if name == "slurm" else shlex.split(words[-1].removeprefix("--command="))
    for name, words in found.items():
        assert [word.replace("$$", "$") for word in words[-len(job) :]] == list(job), name
    # and what is run with them on each machine
    for action in ("start", "foreground"):
        code, out, err = script("worker", "--dry-run", action, *job)
        assert code == 0, err
        assert said(out)[0][1:] == ["-m", f"launch.{job[0]}", *job[1:]]


@pytest.mark.parametrize("name", ["vm", "queued"])
def test_arguments_survive_the_way_to_the_machines(script, name):
    code, out, err = script(name, "--dry-run", "start", *AWKWARD, **PLACE)
    assert code == 0, err
    (words,) = said(out)
    assert "--worker=all" in words
    command = words[-1].removeprefix("--command=")
    assert shlex.split(command) == ["bash", "asyncpatch_jax/launch/tpu/worker.sh", "start", *AWKWARD]


def test_a_job_from_install_to_delete_on_two_machines(script, tools, tmp_path):
    calls = tmp_path / "calls"
    # each machine is a folder; what is sent there happens there
    tools("python3", record(calls))
    tools(
        "git",
        'for word in "$@"; do [[ $word != --output=* ]] || tar -czf "${word#*=}" -C '
        + f"{FOLDER.parent.parent} launch/tpu launch/train.py; done",
    )
    tools("gcloud", f"""
        {record(tmp_path / "gcloud")}
        for worker in 0 1; do
          mkdir -p {tmp_path}/worker$worker
          cd {tmp_path}/worker$worker
          for word in "$@"; do
            [[ $word != --command=* ]] || bash -c "${{word#*=}}"
            if [[ $4 == scp && $word == run1:* ]]; then cp "$5" "${{word#*:}}"; fi
          done
        done""")  # fmt: skip
    code, _, err = script("vm", "install", **PLACE)
    assert code == 0, err
    installs = [call for call in recorded(calls) if call[:3] == ["python3", "-m", "uv"]]
    assert [call[3] for call in installs] == ["venv", "pip"] * 2
    assert installs[-1][-2:] == ["-e", ".[tpu,train,text]"]

    for worker in (0, 1):
        python = tmp_path / f"worker{worker}/asyncpatch_jax/venv/bin/python"
        python.parent.mkdir(parents=True)
        saves = f"trap 'echo saved; exit 0' TERM; {record(calls)}; while true; do sleep 0.05; done"
        python.write_text(f"#!/usr/bin/env bash\n{saves}\n")
        python.chmod(0o755)
    calls.unlink()
    code, out, err = script("vm", "start", *AWKWARD, **PLACE)
    assert code == 0, err
    assert out.count("started process") == 2
    until(lambda: len(recorded(calls)) == 2)
    assert recorded(calls) == [["python", "-m", "launch.train", *AWKWARD]] * 2
    code, _, err = script("vm", "start", *AWKWARD, **PLACE)
    assert code == 1
    assert "runs here already" in err
    code, out, err = script("vm", "stop", **PLACE)
    assert (code, out.count("stopped")) == (0, 2), err
    assert all((tmp_path / f"worker{n}/asyncpatch_jax/job.log").read_text() == "saved\n" for n in (0, 1))
    assert "no job runs" in script("vm", "stop", **PLACE)[1]
    assert script("vm", "delete", **PLACE)[0] == 0
    assert [call[4] for call in recorded(tmp_path / "gcloud")] == ["scp", "ssh", "ssh", "ssh", "ssh", "ssh", "delete"]


def until(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize(("last", "code"), [("ACTIVE", 0), ("FAILED", 1), ("SUSPENDED", 1)])
def test_waiting_ends_with_the_slices_or_with_the_reason(script, tools, tmp_path, last, code):
    states = tmp_path / "states"
    states.write_text(f"WAITING_FOR_RESOURCES\nPROVISIONING\n{last}\n")
    tools("gcloud", f"head -n 1 {states}; sed -i 1d {states}")
    found, out, err = script("queued", "wait", **PLACE, POLL="0")
    assert found == code
    assert out.splitlines() == ["run1: WAITING_FOR_RESOURCES", "run1: PROVISIONING", f"run1: {last}"]
    assert code == 0 or f"got {last}" in err


@pytest.mark.parametrize(
    ("program", "asked", "code"), [("exit 0", False, 0), ("exit 3", False, 3), ("wait", True, 75), ("killed", True, 75)]
)
def test_a_container_that_was_stopped_asks_to_be_started_again(tools, tmp_path, program, asked, code):
    ready = tmp_path / "ready"
    trap = "trap 'exit 0' TERM; " if program == "wait" else ""
    body = program if not asked else f"{trap}touch {ready}; while true; do sleep 0.05; done"
    home = tmp_path / "app"
    shutil.copytree(FOLDER, home / "launch/tpu")
    (home / "launch/train.py").touch()
    tools("python3", body)
    env = {"PATH": str(tmp_path / "bin")}
    process = subprocess.Popen(["bash", home / "launch/tpu/worker.sh", "foreground", "--config=a"], env=env)
    if asked:
        until(ready.exists)
        process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == code


def test_a_slurm_job_that_was_stopped_is_queued_again(script, tools, tmp_path):
    tools("sbatch", record(tmp_path / "calls"))
    code, _, err = script("slurm", "start", *AWKWARD, NODES="2", GPUS="8", PARTITION="gpu")
    assert code == 0, err
    ((_, *words),) = recorded(tmp_path / "calls")
    batch = words.index(str(FOLDER / "slurm_job.sh"))
    assert words[batch + 1 :] == AWKWARD
    # JAX gives each process of a SLURM job the one device of its local number
    assert {"--nodes=2", "--gpus-per-node=8", "--ntasks-per-node=8", "--partition=gpu"} <= set(words[:batch])

    ready, requeued = tmp_path / "ready", tmp_path / "requeued"
    tools("srun", f"trap 'exit 0' TERM; {record(tmp_path / 'srun')}; touch {ready}; while true; do sleep 0.05; done")
    tools("scontrol", record(requeued))
    env = {"PATH": str(tmp_path / "bin"), "SLURM_JOB_ID": "17"}
    process = subprocess.Popen(["bash", *words[batch:]], env=env, cwd=FOLDER.parent.parent)
    until(ready.exists)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 75
    assert recorded(tmp_path / "srun") == [["srun", "python3", "-m", "launch.train", *AWKWARD]]
    assert recorded(requeued) == [["scontrol", "requeue", "17"]]


def parsed(text):
    """A manifest that the JobSet API's own model takes, with no field that it does not know."""
    content = yaml.safe_load(text)
    known = json.loads(JobsetV1alpha2JobSet.from_dict(content).to_json())
    assert known == content
    return content


def test_a_field_that_the_api_does_not_know_is_found():
    text = jobset.manifest("run1", "image", "v6e:4x4", ["--config=a"])
    parsed(text)
    with pytest.raises(AssertionError):
        parsed(text.replace("nodeSelector", "nodeSelecter"))
    with pytest.raises(ValueError, match="valid"):
        parsed(text.replace("completions: 4", "completions: four"))


@pytest.mark.parametrize("spot", [False, True])
def test_the_manifest_is_a_jobset_of_one_pod_per_host(spot):
    arguments = [*AWKWARD, "--config.note=$(HOME) ü 😀\n: #"]
    text = jobset.manifest("run1", "a/b:c", "v5p:4x4x8", arguments, slices=2, spot=spot)
    content = parsed(text)
    assert content["metadata"]["name"] == "run1"
    (job,) = content["spec"]["replicatedJobs"]
    job, replicas = job["template"]["spec"], job["replicas"]
    assert (replicas, job["parallelism"], job["completions"]) == (2, 32, 32)
    pod = job["template"]["spec"]
    selector = {"cloud.google.com/gke-tpu-accelerator": "tpu-v5p-slice", "cloud.google.com/gke-tpu-topology": "4x4x8"}
    assert pod["nodeSelector"] == selector | ({"cloud.google.com/gke-spot": "true"} if spot else {})
    (container,) = pod["containers"]
    assert container["resources"] == {kind: {"google.com/tpu": "4"} for kind in ("requests", "limits")}
    assert [word.replace("$$", "$") for word in container["args"]] == arguments
    # its exit code and the rule that restarts for it are one
    assert job["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"] == [75]
    assert (Path(jobset.__file__).parents[2] / container["command"][1]).is_file()


def test_the_manifest_is_what_kubectl_gets(script, tools, tmp_path):
    tools("kubectl", f"{record(tmp_path / 'calls')}; cat >{tmp_path}/stdin")
    tools("python3", f'exec {sys.executable} "$@"')
    variables = {"NAME": "run1", "IMAGE": "a/b:c", "TOPOLOGY": "v6e:2x4", "CHIPS_PER_HOST": "8", "NAMESPACE": "mine"}
    code, out, err = script("gke", "start", *AWKWARD, **variables)
    assert code == 0, err
    assert recorded(tmp_path / "calls") == [["kubectl", "--namespace=mine", "apply", "--filename=-"]]
    sent = (tmp_path / "stdin").read_text()
    assert sent == jobset.manifest("run1", "a/b:c", "v6e:2x4", AWKWARD, chips_per_host=8)
    (tmp_path / "bin/kubectl").unlink()
    code, out, err = script("gke", "--dry-run", "start", *AWKWARD, **variables)
    assert (code, err) == (0, "")
    assert out == sent + "# kubectl --namespace=mine apply --filename=-\n"
    code, _, err = script("gke", "--dry-run", "start", *AWKWARD, **{**variables, "TOPOLOGY": "v6e:3x3"})
    assert code == 1
    assert "expected of v6e a topology out of 1x1" in err


def test_xpk_gets_one_word_for_the_command(script):
    code, out, err = script("xpk", "--dry-run", "start", *AWKWARD, **PLACE, CLUSTER="c", IMAGE="i", SLICES="2")
    assert code == 0, err
    (words,) = said(out)
    assert words[:3] == ["xpk", "workload", "create"]
    command = shlex.split(words[-1].removeprefix("--command="))
    assert command == ["bash", "launch/tpu/worker.sh", "foreground", *AWKWARD]


# cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus: nodes of a slice, and google.com/tpu of each
@pytest.mark.parametrize(
    ("topology", "hosts", "chips"),
    [
        ("v4:2x2x1", 1, 4), ("v4:2x2x4", 4, 4), ("v4:4x4x4", 16, 4), ("v5e:1x1", 1, 1), ("v5e:2x2", 1, 4),
        ("v5e:4x8", 8, 4), ("v5e:16x16", 64, 4), ("v5p:2x2x2", 2, 4), ("v5p:4x4x8", 32, 4), ("v5p:8x8x16", 256, 4),
        ("v6e:2x4", 2, 4), ("v6e:8x8", 16, 4), ("v6e:16x16", 64, 4),
    ],
)  # fmt: skip
def test_hosts_of_a_topology(topology, hosts, chips):
    found = jobset.slice_of(topology)
    assert (found.hosts, found.chips) == (hosts, chips)


def test_topologies_that_do_not_exist():
    assert jobset.slice_of("v6e:2x4", chips_per_host=8).hosts == 1
    for topology in ("v6e:8", "v7:8x8", "v6e:4x4x4", "v6e:3x3", "v5p:4x8x4", "v5p:4x4x6", "v4:0x4x4", "8x8"):
        with pytest.raises(ValueError, match="expected"):
            jobset.slice_of(topology)
    with pytest.raises(ValueError, match="4 chips per host"):
        jobset.slice_of("v6e:4x4", chips_per_host=8)
    for wrong in ({"name": "Run"}, {"name": "a" * 41}, {"slices": 0}, {"slices": 2, "topology": "v6e:2x2"}):
        with pytest.raises(ValueError, match="expected"):
            jobset.manifest(**{"name": "a", "image": "i", "topology": "v6e:4x4", "arguments": ["--config=a"], **wrong})


def test_checkpoints_of_a_bucket_are_not_a_local_folder(monkeypatch):
    seen = []
    monkeypatch.setattr(checkpoints_lib, "Lock", lambda path: seen.append(str(path)))
    checkpoints = Checkpoints("gs://bucket/run/checkpoints")
    assert seen == ["gs://bucket/run/checkpoints/lock"]
    assert str(checkpoints.folder) == "gs://bucket/run/checkpoints"
    weights = {"w": jax.ShapeDtypeStruct((2**50,), jnp.float32)}
    checkpoints.check_room(TrainState(jnp.zeros(()), weights, (), weights))  # more than any disk has


def test_the_scripts_can_be_called_by_their_names():
    assert all(os.access(FOLDER / f"{name}.sh", os.X_OK) for name in (*MAINS, "slurm_job"))
