"""`/dev/shm` of 64 MB, as in a Docker container: workers with observations that fit, and with ones that do not.

sudo python benchmarks/reliability/small_shm.py

Needs root: it mounts a small file system over /dev/shm in a mount namespace of its own (unshare -m), so that nothing
else on the machine sees it. `said` is the last line; a death by SIGBUS is status -7. Writes
benchmarks/results/reliability-small_shm.csv.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from runs import WORK, record

INSIDE = "PCM_RL_SMALL_SHM"
SCRIPT = """
import numpy as np, gymnasium as gym
from pcm_rl.envs import ChunkedEnv, WorkerVectorEnv
class Big(gym.Env):
    observation_space = gym.spaces.Box(0, 255, ({side}, {side}, 3), np.uint8)
    action_space = gym.spaces.Box(-1, 1, (4,), np.float32)
    def reset(self, *, seed=None, options=None):
        return np.full(self.observation_space.shape, 7, np.uint8), {{}}
    def step(self, action):
        return np.full(self.observation_space.shape, 8, np.uint8), 0.0, False, False, {{"success": False}}
if __name__ == "__main__":
    env = WorkerVectorEnv(lambda: ChunkedEnv(Big(), 4), {workers})
    observation, _ = env.reset()
    print("played", observation.shape, flush=True)
    env.close()
"""


def main() -> None:
    if INSIDE not in os.environ:
        mount = "mount -t tmpfs -o size=64m tmpfs /dev/shm && exec "
        command = f"{mount} {sys.executable} {' '.join(sys.argv)}"
        sys.exit(subprocess.call(["unshare", "-m", "sh", "-c", command], env={**os.environ, INSIDE: "1"}))
    WORK.mkdir(parents=True, exist_ok=True)
    for side, workers in ((256, 4), (2048, 4), (2048, 8), (6000, 2)):
        script = WORK / "small_shm.py"
        script.write_text(SCRIPT.format(side=side, workers=workers))
        done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
        lines = (done.stderr.strip() or done.stdout.strip()).splitlines() or [""]
        left = len(list(Path("/dev/shm").iterdir()))
        needed = side * side * 3 * workers
        row = {"workers": workers, "bytes_needed": needed, "fits": needed < 64 * 2**20, "status": done.returncode}
        record("small_shm", {**row, "said": lines[-1], "segments_left": left})


if __name__ == "__main__":
    main()
