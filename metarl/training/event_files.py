"""TensorBoard's event files of a run that may have been killed and resumed."""

import contextlib
import time
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def tensorboard_writer(path: Path, up_to_iteration: int) -> Any:
    """A stable-baselines3 output that goes on after `up_to_iteration`.

    What an interrupted run logged beyond it is computed again. TensorBoard drops those points when the new file says
    from which step on it counts; stable-baselines3's own class has no argument for that.
    """
    from stable_baselines3.common.logger import TensorBoardOutputFormat
    from torch.utils.tensorboard import SummaryWriter

    class Resumed(TensorBoardOutputFormat):
        def __init__(self) -> None:
            again = any(path.glob("events.out.tfevents.*"))
            with _nameless_host():
                self.writer = SummaryWriter(str(path), purge_step=up_to_iteration + 1 if again else None)
            self._is_closed = False
            with contextlib.suppress(AttributeError):  # its thread's traceback, which `write` reports in one line
                events: Any = self.writer.file_writer
                events.event_writer._async_writer._worker._invoke_excepthook = lambda *_: None

        def write(self, *args: Any, **kwargs: Any) -> None:
            if self._is_closed:
                return
            try:
                super().write(*args, **kwargs)
            except OSError as error:  # of its own thread, some time ago
                self._is_closed = True
                warnings.warn(f"TensorBoard's events cannot be written any more ({error}); metrics.csv has the same "
                              "numbers", UserWarning, stacklevel=2)  # fmt: skip

        def close(self) -> None:
            with contextlib.suppress(OSError):
                super().close()

    return Resumed()


@contextlib.contextmanager
def _nameless_host() -> Iterator[None]:
    """Keep the machine's name out of the name of the file that is made within: runs are shared.

    TensorBoard reads files in the order of their names, which begin with the second; nanoseconds stand in the place of
    the host, so that a run that was killed and resumed within a second is read in order too.
    """
    from tensorboard.summary.writer import event_file_writer as module

    before = module.socket
    module.socket = types.SimpleNamespace(gethostname=lambda: f"{time.time_ns() % 10**9:09d}")
    try:
        yield
    finally:
        module.socket = before
