"""The values returned by `reset` and `step` of one environment: unpacked, checked and converted.

All code that runs single environments reads them here, so that all of it accepts and refuses the same values.
"""

import numbers
from collections.abc import Mapping
from typing import Any, NoReturn

import gymnasium as gym
import numpy as np

from metarl.vector import success

_NUMBERS = "fiub"  # NumPy's kinds of real numbers
_SEQUENCE = (tuple, list)  # as a tuple: several times faster in isinstance than a union


class EpisodeError(RuntimeError):
    """An environment raised. The message has the task, the episode and the step; its own exception is the cause."""


class TransitionError(ValueError):
    """An environment returned something that violates Gymnasium's interface."""


class Reader:
    """Reads the values returned by environments with a given observation space.

    Args:
        name: name of the family or environment, for error messages.
        space: its observation space.
    """

    def __init__(self, name: str, space: gym.Space):
        self.name, self.space, self.shape = name, space, space.shape
        self._ends = _ends(space)

    def first(self, returned: Any) -> np.ndarray:
        """The observation that `reset` returned, a copy.

        Raises:
            TransitionError: the value is not (obs, info), or the observation is not in the space.
        """
        check_pair(self.name, returned)
        return np.array(self._observation("reset", returned[0]))

    def step(self, returned: Any) -> tuple[np.ndarray, float, bool, bool, bool | None]:
        """Observation (not copied), reward, terminated, truncated, success (None: not reported) of one step.

        Raises:
            TransitionError: there are not five values, or one has the wrong type.
        """
        if type(returned) is not tuple or len(returned) != 5:
            check_five(self.name, returned)
        obs, reward, terminated, truncated, info = returned
        obs = self._observation("step", obs)
        if type(reward) is not float:
            reward = self._reward(reward)
        if type(terminated) is not bool:
            terminated = self._flag("terminated", terminated)
        if type(truncated) is not bool:
            truncated = self._flag("truncated", truncated)
        if type(info) is dict and not info:
            return obs, reward, terminated, truncated, None
        return obs, reward, terminated, truncated, self._success(info)

    def _observation(self, method: str, obs: Any) -> np.ndarray:
        try:
            found = obs if type(obs) is np.ndarray else np.asarray(obs)
        except Exception as error:  # lists of different lengths, tensors of a GPU
            raise TransitionError(f"{self.name} returned the observation {_short(obs)} from {method}: return one array "
                                  f"of {self.space} ({error})") from None  # fmt: skip
        if found.dtype.kind not in _NUMBERS:
            raise TransitionError(f"{self.name} returned the observation {_short(obs)} of {type(obs)} from {method}, "
                                  f"which holds no numbers: return one array of {self.space}")  # fmt: skip
        if found.shape != self.shape:
            raise TransitionError(
                f"{self.name}: {method} returned an observation of shape {found.shape}, the family's observation_space "
                f"has {self.shape}: return what lies in {self.space}"
            )
        if self._ends is not None:
            low, high = self._ends
            if not (found.dtype.kind in "iub" or (found == np.round(found)).all()) or not (
                (found >= low).all() and (found <= high).all()
            ):
                raise TransitionError(f"{self.name} returned the observation {_short(obs)} from {method}, which does "
                                      f"not lie in {self.space}")  # fmt: skip
        return found

    def _reward(self, reward: Any) -> float:
        if isinstance(reward, numbers.Real | np.bool_):
            return float(reward)
        found = None if np.ndim(reward) else _one_number(reward)
        if found is None:
            raise TransitionError(f"{self.name} returned the reward {_short(reward)} of {type(reward)}: return one "
                                  "number, float(reward)")  # fmt: skip
        return float(found)

    def _flag(self, which: str, flag: Any) -> bool:
        found = flag if isinstance(flag, np.bool_ | int) else _one_number(flag)
        if found is None:
            raise TransitionError(
                f"{self.name} returned {which} = {_short(flag)} of {type(flag)}: return True or False"
            )
        return bool(found)

    def _success(self, info: Any) -> bool | None:
        return check_info(self.name, info)


def check_env(name: str, env: Any) -> gym.Env:
    """The environment returned by `make` of the family `name`.

    Raises:
        TransitionError: it is not an environment.
    """
    if not isinstance(env, gym.Env):
        raise TransitionError(f"make of {name} returned {_short(env)} of {type(env)}, which is no gymnasium.Env: write "
                              "a class that inherits from gymnasium.Env around it")  # fmt: skip
    return env


def check_info(name: str, info: Any) -> bool | None:
    """Whether the `info` of a step of the environment `name` reports a success; None if it reports nothing.

    Raises:
        TransitionError: it is not a dict, or the report is not a single boolean.
    """
    if not isinstance(info, Mapping):
        raise TransitionError(f"{name} returned the info {_short(info)} from step: return a dict, {{}} where there is "
                              "nothing to say")  # fmt: skip
    try:
        return success.of_step(info)
    except ValueError as error:
        raise TransitionError(f"{name}: {error}") from None


def check_pair(name: str, returned: Any) -> None:
    """Raise TransitionError unless `reset` of the environment `name` returned (obs, info)."""
    pair = isinstance(returned, _SEQUENCE) and len(returned) == 2
    if pair and returned[1] is None:
        raise TransitionError(f"{name} returned the info None from reset: return a dict, {{}} where there is nothing "
                              "to say")  # fmt: skip
    if not pair or not isinstance(returned[1], Mapping):
        raise TransitionError(
            f"{name} returned {_short(returned)} from reset, which must return two values, (obs, info), where "
            "info is a dict: return obs, {}"
        )


def check_five(name: str, returned: Any) -> None:
    """Raise TransitionError unless `step` of the environment `name` returned five values."""
    if not isinstance(returned, _SEQUENCE) or len(returned) != 5:
        what = f"{len(returned)} values" if isinstance(returned, _SEQUENCE) else _short(returned)
        raise TransitionError(
            f"{name} returned {what} from step, which must return five: (obs, reward, terminated, truncated, "
            "info). One written for Gym before 0.26 returns four: split done into terminated and truncated"
        )


def reraise(error: Exception, name: str, where: str, task_refused: bool = False) -> NoReturn:
    """Raise `error`, from the environment `name`, with its location added.

    An error found by `Reader` stays a TransitionError and, with `task_refused`, a ValueError stays a ValueError (`make`
    raises it for tasks that it cannot build); everything else becomes the cause of an EpisodeError.
    """
    if isinstance(error, TransitionError):
        raise TransitionError(f"{error} (in {where})") from None
    if task_refused and isinstance(error, ValueError):
        raise ValueError(f"{error} (in {where})") from error
    raise EpisodeError(f"{name} raised {type(error).__name__}: {error} (in {where}){hint(error)}") from error


def hint(error: Exception) -> str:
    """A remedy if `error` was raised by a wrapper around an environment with Gym's old interface; otherwise empty."""
    if isinstance(error, ValueError) and "values to unpack (expected" in str(error):
        return (". Gymnasium's step returns five values, (obs, reward, terminated, truncated, info), its reset two, "
                "(obs, info)")  # fmt: skip
    return ""


def _ends(space: gym.Space) -> tuple[Any, Any] | None:
    """The lowest and highest value of every choice; None for other spaces."""
    if isinstance(space, gym.spaces.Discrete):
        return int(space.start), int(space.start + space.n - 1)
    if isinstance(space, gym.spaces.MultiDiscrete):
        return space.start, space.start + space.nvec - 1
    return (0, 1) if isinstance(space, gym.spaces.MultiBinary) else None


def _one_number(value: Any) -> float | None:
    """The single real number in `value`, which may be an array or tensor with one entry; None for anything else."""
    if value is None or isinstance(value, str | bytes):
        return None
    try:
        found = np.asarray(value)
    except Exception:
        return None
    one = found.size == 1 and found.dtype.kind in _NUMBERS
    return float(found.item()) if one else None


def _short(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 120 else text[:117] + "..."
