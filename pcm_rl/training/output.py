"""What a run writes into its folder while it goes on: the rows of its tables, and checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from pcm_rl.config import Config
from pcm_rl.reports.follower import Follower
from pcm_rl.reports.loggers import LoggedRun
from pcm_rl.reports.metrics import RunLog
from pcm_rl.training.checkpoint import Snapshot
from pcm_rl.training.generations import add_generation, set_damaged_aside
from pcm_rl.training.run_folder import CONFIG, adopt, begin_run_folder, restore_tables


class Output:
    """The open folder of a run.

    Args:
        config: The run.
        columns: Further columns of ``metrics.csv``.
        say: Called with a line for each damage of the tables that was mended.
        resumed: The checkpoint that the run goes on from, and its step; None makes a new folder.

    Attributes:
        log: Its tables, and the tracker that follows them.

    Raises:
        ConfigError, FileExistsError, ImportError: As :func:`~pcm_rl.training.run_folder.begin_run_folder`.
    """

    def __init__(
        self,
        config: Config,
        columns: Sequence[str],
        say: Callable[[str], None],
        resumed: tuple[Path, int] | None = None,
    ) -> None:
        self._folder, self._keep = config.folder, config.save_keep
        repairs: list[str] = []
        if resumed is None:
            self._id = begin_run_folder(config)
        else:
            set_damaged_aside(self._folder, resumed[0])
            self._id = adopt(self._folder, resumed[0])
            repairs = restore_tables(self._folder, resumed[0])
        self._config_file = (self._folder / CONFIG).read_bytes()
        keep_until = None if resumed is None else resumed[1]
        self.log = RunLog(self._folder, keep_until, columns)
        for line in [*repairs, *self.log.repairs]:
            say(line)
        if config.logger != "none":
            self.log.follow(Follower(config.logger, LoggedRun.of(config, self._id), keep_until, say))

    def save(self, held: Snapshot) -> None:
        """Write a checkpoint, with copies of the configuration and the tables; older ones stay until it is complete."""
        copies = {CONFIG: self._config_file, **self.log.contents()}
        add_generation(self._folder, lambda folder: held.write(folder, self._id, copies), keep=self._keep)
