"""The sinusoid regression of the MAML paper."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from metarl.splits import SPLITS
from metarl.supervised.sets import LossName, Sets, as_tensor, check_split


@dataclass(frozen=True)
class Sinusoid:
    """y = amplitude sin(x - phase), to be inferred from a few points (Finn, Abbeel, Levine 2017,
    https://arxiv.org/abs/1703.03400, section 5.1).

    Task parameters: `amplitude` in [0.1, 5], `phase` in [0, pi], both uniform.
    Splits: train, validation and test all draw from this distribution, with different random numbers.
    Input: x in [-5, 5], uniform, for support and query alike; [1]. With `visible`, x, amplitude and phase: [3].
    Target: y, without noise; [1]. Loss: the squared error.
    Source: the paper says sin with "phase"; its code subtracts the phase from x, as here.
    """

    visible: bool = False
    """Give amplitude and phase as inputs: an oracle, which does not need to adapt."""
    amplitude: tuple[float, float] = (0.1, 5.0)
    phase: tuple[float, float] = (0.0, np.pi)
    x_range: tuple[float, float] = (-5.0, 5.0)
    outputs: int = 1
    loss: LossName = "mse"
    splits: ClassVar[tuple[str, ...]] = SPLITS

    @property
    def id(self) -> str:
        """The name, including every setting that differs from the paper."""
        changed = [f"{name}={getattr(self, name)}" for name in ("visible", "amplitude", "phase", "x_range")
               if getattr(self, name) != getattr(Sinusoid, name)]  # fmt: skip
        return f"Sinusoid({', '.join(changed)})"

    @property
    def x_shape(self) -> tuple[int, ...]:
        """(1,), or (3,) if the task is visible."""
        return (3,) if self.visible else (1,)

    def sample(self, n: int, rng: np.random.Generator, split: str, shots: int, queries: int) -> Sets:
        """Draw `n` sinusoids, each with `shots` support points and `queries` query points."""
        check_split(self, split)
        amplitude, phase = rng.uniform(*self.amplitude, n), rng.uniform(*self.phase, n)
        points = rng.uniform(*self.x_range, (n, shots + queries, 1))
        y = as_tensor(amplitude[:, None, None] * np.sin(points - phase[:, None, None]))
        if self.visible:
            task = np.stack([amplitude, phase], -1)[:, None]
            points = np.concatenate([points, np.broadcast_to(task, (n, shots + queries, 2))], -1)
        x, parameters = as_tensor(points), {"amplitude": amplitude, "phase": phase}
        return Sets(x[:, :shots], y[:, :shots], x[:, shots:], y[:, shots:], parameters)
