"""The launch scripts: sound, and saying what they would run."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

LAUNCH = Path(__file__).parents[1] / "launch"
SCRIPTS = sorted(path.name for path in LAUNCH.iterdir() if path.suffix in (".sh", ".sbatch"))


def dry(script: str, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(LAUNCH / script), *words],
        env={**os.environ, "DRY_RUN": "1", **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_local_gives_every_process_its_place() -> None:
    words = ("train", "a b.py", "--seed", "1")
    lines = dry(
        "local.sh", "3", *words, PORT="7777", JAXMLCL="python -m jaxmlcl"
    ).stdout.splitlines()
    assert lines == [
        "python -m jaxmlcl train a b.py --seed 1 --distributed.coordinator 127.0.0.1:7777 "
        f"--distributed.num-processes 3 --distributed.process-id {index}"
        for index in range(3)
    ]


def test_slurm_leaves_the_place_to_slurm() -> None:
    done = dry("slurm.sbatch", "train", "config.py", "--workdir", "run")
    expected = "srun --kill-on-bad-exit=0 --label jaxmlcl train config.py --workdir run\n"
    assert done.stdout == expected
    directives = (LAUNCH / "slurm.sbatch").read_text()
    assert "#SBATCH --requeue" in directives
    assert "#SBATCH --signal=TERM@120" in directives


def test_tpu_vm_quotes_what_goes_to_the_hosts() -> None:
    done = dry("tpu_vm.sh", "train", "my config.py", TPU="pod", ZONE="zone", SETUP="0")
    (line,) = done.stdout.splitlines()
    assert line.startswith("gcloud compute tpus tpu-vm ssh pod --zone zone --worker all --command ")
    assert "jaxmlcl" in line
    assert len(dry("tpu_vm.sh", "train", "x", TPU="pod", ZONE="zone").stdout.splitlines()) == 3


@pytest.mark.parametrize("script", SCRIPTS)
def test_without_arguments_they_say_how_they_are_used(script: str) -> None:
    done = dry(script)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: ")
    assert len((LAUNCH / script).read_text().splitlines()) <= 60


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_shell_can_read_them(script: str) -> None:
    assert subprocess.run(["bash", "-n", str(LAUNCH / script)], timeout=60).returncode == 0
    if (checker := shutil.which("shellcheck")) is not None:
        assert subprocess.run([checker, str(LAUNCH / script)], timeout=60).returncode == 0


def test_the_job_set_is_one() -> None:
    job = yaml.safe_load((LAUNCH / "jobset.yaml").read_text())
    assert job["kind"] == "JobSet"
    pod = job["spec"]["replicatedJobs"][0]["template"]["spec"]
    container = pod["template"]["spec"]["containers"][0]
    words = container["command"]
    chips = container["resources"]["limits"]["google.com/tpu"] * pod["completions"]
    assert words[words.index("--distributed.devices") + 1] == str(chips)
