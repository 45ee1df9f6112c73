"""The batch script with stand-ins for Slurm's commands and torchrun."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "slurm" / "train.sbatch"
COMMANDS = {
    "scontrol": 'if [ "$1" = show ]; then echo first-machine; else echo "$@" >> said; fi',
    "scancel": 'echo scancel "$@" >> said; kill -TERM "$(cat torchrun.pid)"',
    "srun": 'while [ "${1#--}" != "$1" ]; do shift; done; SLURM_NODEID=0 exec "$@"',
    "torchrun": 'echo torchrun "$@" >> said; echo $$ > torchrun.pid; trap "exit 143" TERM; '
    "for i in $(seq $TENTHS); do sleep 0.1; done; exit $STATUS",
}


@pytest.mark.parametrize("ends", ["well", "with an error", "at the limit"])
def test_a_job_is_queued_again_at_its_limit_only(tmp_path, ends):
    for name, text in COMMANDS.items():
        path = tmp_path / name
        path.write_text(f"#!/bin/bash\n{text}\n")
        path.chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "TENTHS": "600" if ends == "at the limit" else "1",
        "STATUS": "0" if ends == "well" else "2",
        "SLURM_JOB_NODELIST": "first-machine,second-machine",
        "SLURM_JOB_ID": "20007",
        "SLURM_NNODES": "2",
        "SLURM_GPUS_ON_NODE": "4",
    }
    job = subprocess.Popen(["bash", SCRIPT, "recipe.yaml", "name=a b"], cwd=tmp_path, env=environment)
    if ends == "at the limit":
        while not (tmp_path / "torchrun.pid").is_file():
            time.sleep(0.02)
        time.sleep(0.2)  # the trap of the stand-in
        job.send_signal(signal.SIGUSR1)
    status = job.wait(timeout=60)
    started, *rest = (tmp_path / "said").read_text().splitlines()
    assert started == (
        "torchrun --nnodes 2 --node-rank 0 --master-addr first-machine --master-port 20007 --nproc-per-node 4 "
        "-m pcm_rl.cli train --or-resume --config recipe.yaml name=a b"
    )
    if ends == "at the limit":
        assert rest == ["scancel --signal=TERM 20007", "requeue 20007"] and status == 143
    else:
        assert rest == [] and status == int(environment["STATUS"])
