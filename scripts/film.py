r"""The films in README.md: a recorded episode of a run, with its phases on a time line.

    pcm-rl train --config configs/pick_place.yaml name=film
    python scripts/film.py runs/film/recordings/success.safetensors docs/figures/pick_place.webp \
        --title "after 120 steps of training" --stride 2

    pcm-rl train --config configs/libero_object_state.yaml name=film-libero seed=1 steps=8 groups=4 eval_every=0 \
        eval_episodes=20 'env.tasks.task_id=[0]' env.kwargs.horizon=128 env.max_chunks=16 env.num_envs=1 \
        demos.path=null demos.episodes=5 sft.steps=800 sft.target=null update.lr=1e-3 selection.budget=5
    python scripts/film.py runs/film-libero/recordings/success.safetensors docs/figures/libero.webp \
        --title "LIBERO, after 8 steps"

The second run takes some ten minutes on a core.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from safetensors import safe_open

from pcm_rl.reports.animation import annotate, encode_webp

FPS = 12.0
MAX_BYTES = 340_000


def main() -> None:
    """Write the film."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recording", type=Path, help="recordings/*.safetensors of a run folder")
    parser.add_argument("film", type=Path, help="animated WebP to write")
    parser.add_argument("--title", default="")
    parser.add_argument("--stride", type=int, default=1, help="recorded frames a picture")
    options = parser.parse_args()
    with safe_open(options.recording, framework="np") as file:
        frames, phase = (file.get_tensor(name)[:: options.stride] for name in ("frames", "phase"))
    pictures = annotate(frames, phase, title=options.title)
    pictures += pictures[-1:] * round(FPS)  # the end stands still for a second
    options.film.write_bytes(encode_webp(pictures, FPS, max_bytes=MAX_BYTES))
    print(f"{options.film}: {len(pictures)} pictures of {pictures[0].size}, {options.film.stat().st_size} bytes")


if __name__ == "__main__":
    main()
