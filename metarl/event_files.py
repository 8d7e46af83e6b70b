"""TensorBoard's event files of a run that may have been killed and resumed."""

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
            self.writer = SummaryWriter(str(path), purge_step=up_to_iteration + 1 if again else None)
            self._is_closed = False

    return Resumed()
