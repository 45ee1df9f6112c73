r"""The films in README.md: a recorded episode of a run, with its phases on a time line and the chunks that PCM keeps.

    pcm-rl train --config configs/pick_place.yaml name=film
    python scripts/film.py runs/film success docs/figures/pick_place.webp --title "after 120 steps" --stride 2

    pcm-rl train --config configs/libero_object_state.yaml name=film-libero seed=1 steps=8 groups=4 eval_every=0 \
        eval_episodes=20 'env.tasks.task_id=[0]' env.kwargs.horizon=128 env.max_chunks=16 env.num_envs=1 \
        demos.path=null demos.episodes=5 sft.steps=800 sft.target=null update.lr=1e-3 selection.budget=5
    python scripts/film.py runs/film-libero success docs/figures/libero.webp --title "LIBERO, a success"
    python scripts/film.py runs/film-libero failure docs/figures/libero_failure.webp --title "LIBERO, a failure"

The second run takes some ten minutes on a core. Marks below the time line are one draw of B chunks by the keep
probabilities that the run had at its end (equation 10).
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open

from pcm_rl import sample_chunks
from pcm_rl.config import Config, load_config
from pcm_rl.phases import Phase
from pcm_rl.reports.animation import annotate, encode_webp

FPS = 12.0
MAX_BYTES = 340_000


def main() -> None:
    """Write the film."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="its folder")
    parser.add_argument("outcome", choices=["success", "failure"])
    parser.add_argument("film", type=Path, help="animated WebP to write")
    parser.add_argument("--title", default="")
    parser.add_argument("--stride", type=int, default=1, help="recorded frames a picture")
    options = parser.parse_args()
    with safe_open(options.run / "recordings" / f"{options.outcome}.safetensors", framework="np") as file:
        frames, phase = file.get_tensor("frames"), file.get_tensor("phase")
        frame_step = int((file.metadata() or {})["frame_step"])
    config = load_config(options.run / "config.yaml")
    chunk = np.arange(len(phase)) * frame_step // config.env.chunk_length
    kept = drawn(phase, chunk, keep_probabilities(options.run), config)
    stride = options.stride
    pictures = annotate(frames[::stride], phase[::stride], title=options.title, kept=kept[::stride])
    pictures += pictures[-1:] * round(FPS)  # the end stands still for a second
    options.film.write_bytes(encode_webp(pictures, FPS, max_bytes=MAX_BYTES))
    print(f"{options.film}: {len(pictures)} pictures of {pictures[0].size}, {options.film.stat().st_size} bytes")


def keep_probabilities(run: Path) -> dict[int, float]:
    """Of each phase, at the end of a run."""
    with (run / "metrics.csv").open() as file:
        last = list(csv.DictReader(file))[-1]
    return {int(phase): float(last[f"keep_prob/{phase.label}"]) for phase in Phase}


def drawn(
    phase: NDArray[np.integer], chunk: NDArray[np.integer], keep: dict[int, float], config: Config
) -> NDArray[np.bool_]:
    """Frames of the B chunks that are drawn, ``[F]`` bool; a chunk has the phase of its first frame."""
    first = np.unique(chunk, return_index=True)[1]
    weight = torch.tensor([[keep[number] for number in phase[first].tolist()]])
    kept = sample_chunks(weight, config.selection.budget, generator=torch.Generator().manual_seed(0))[0]
    return kept.numpy()[chunk]


if __name__ == "__main__":
    main()
