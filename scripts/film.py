"""The film in README.md: a recorded episode of a run, with its phases on a time line.

pcm-rl train --config configs/pick_place.yaml name=film
python scripts/film.py runs/film/recordings/success.safetensors docs/figures/pick_place.webp
"""

from __future__ import annotations

import argparse
from pathlib import Path

from safetensors import safe_open

from pcm_rl.reports.animation import annotate, encode_webp

STRIDE = 2  # recorded frames a picture
FPS = 12.0
MAX_BYTES = 700_000


def main() -> None:
    """Write the film."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recording", type=Path, help="recordings/*.safetensors of a run folder")
    parser.add_argument("film", type=Path, help="animated WebP to write")
    parser.add_argument("--title", default="after 120 steps of training")
    options = parser.parse_args()
    with safe_open(options.recording, framework="np") as file:
        frames, phase = file.get_tensor("frames")[::STRIDE], file.get_tensor("phase")[::STRIDE]
    pictures = annotate(frames, phase, title=options.title)
    pictures += pictures[-1:] * round(FPS)  # the end stands still for a second
    options.film.write_bytes(encode_webp(pictures, FPS, max_bytes=MAX_BYTES))
    print(f"{options.film}: {len(pictures)} pictures of {pictures[0].size}, {options.film.stat().st_size} bytes")


if __name__ == "__main__":
    main()
