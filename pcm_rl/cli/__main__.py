"""``python -m pcm_rl.cli``, as ``torchrun`` starts it."""

import sys

from pcm_rl.cli import main

sys.exit(main())
