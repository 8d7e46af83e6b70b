"""Families for the tests of worker processes; importing this needs no torch, as a worker should not."""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiDiscrete

SPACES = {
    "float32": Box(-np.inf, np.inf, (3,), np.float32),
    "float64": Box(-np.inf, np.inf, (2, 2), np.float64),
    "image": Box(0, 255, (4, 5, 3), np.uint8),
    "int": Box(-100, 100, (2,), np.int16),
    "discrete": Discrete(50, start=3),
    "box": Box(-1.0, 2.0, (2,), np.float32),
    "choice": Discrete(4, start=2),
    "several": MultiDiscrete([3, 4]),
}


class Noisy:
    """Observations, rewards and ends from the environment's own generator, the task and all actions so far."""

    horizon = 9

    def __init__(self, observation: str = "float32", action: str = "box", sloppy: bool = False) -> None:
        self.id = f"Noisy-{observation}-{action}-v0"
        self.observation_space, self.action_space = SPACES[observation], SPACES[action]
        self.task_space = Dict({"end": Box(0.0, 1.0, ()), "shift": Box(-1.0, 1.0, (2,))})
        self.sloppy = sloppy  # whether observations are float64 whatever the space says

    def sample(self, n: int, rng: np.random.Generator, split: str = "train") -> dict[str, np.ndarray]:
        return {"end": rng.uniform(0, 0.3, n).astype(np.float32), "shift": rng.uniform(-1, 1, (n, 2)).astype("f4")}

    def make(self, task: dict[str, np.ndarray]) -> gym.Env:
        return NoisyEnv(self, task)


class NoisyEnv(gym.Env):
    def __init__(self, family: Noisy, task: dict[str, np.ndarray]):
        self.family, self.task = family, task
        self.observation_space, self.action_space = family.observation_space, family.action_space

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.kept: list[Any] = []
        return self.observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.kept.append(action)  # an environment may keep its actions as they are
        reward = float(np.sum([np.sum(a * np.float32(0.1)) for a in self.kept])) + self.np_random.normal()
        terminated, truncated = self.np_random.random(2) < self.task["end"]
        return self.observe(), reward, bool(terminated), bool(truncated), {}

    def observe(self) -> Any:
        space, x = self.observation_space, self.np_random.normal(size=self.observation_space.shape)
        if isinstance(space, Discrete):
            return int(space.start + self.np_random.integers(space.n))
        x = x + self.task["shift"].sum() + sum(float(np.sum(a)) for a in self.kept)
        if self.family.sloppy:
            return x
        return np.clip(10 * x, 0, 255).astype(np.uint8) if space.dtype == np.uint8 else x.astype(space.dtype)


class WholeAtFirst(Noisy):
    """The first observation holds ints, although the space has floats; every reward is the given one."""

    def __init__(self, reward: Any = 1) -> None:
        super().__init__("float64")
        self.id, self.reward = "Whole-v0", reward

    def make(self, task: dict[str, np.ndarray]) -> gym.Env:
        return WholeAtFirstEnv(self, task)


class WholeAtFirstEnv(NoisyEnv):
    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        return np.zeros(self.observation_space.shape or (), np.int64), {}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        return np.full(self.observation_space.shape or (), 0.25), self.family.reward, False, False, {}


class Pid(Noisy):
    """The observation is the process that runs the environment, and how many environments of the family it made."""

    made = 0

    def __init__(self) -> None:
        super().__init__("float64")
        self.observation_space = Box(0, np.inf, (3,), np.float64)

    def make(self, task: dict[str, np.ndarray]) -> gym.Env:
        Pid.made += 1
        env = NoisyEnv(self, task)
        env.observe = lambda: np.array([os.getpid(), Pid.made, float("torch" in sys.modules)])  # type: ignore[method-assign]
        return env


class Failing(Noisy):
    """Goes wrong in one method of task 1's second episode: how, `trouble` says."""

    def __init__(self, where: str, trouble: str) -> None:
        super().__init__()
        self.id, self.where, self.trouble, self.made = "Failing-v0", where, trouble, 0
        self.horizon = 50

    def sample(self, n: int, rng: np.random.Generator, split: str = "train") -> dict[str, np.ndarray]:
        return {"end": np.zeros(n, np.float32), "shift": np.arange(2 * n, dtype=np.float32).reshape(n, 2) / 8}

    def make(self, task: dict[str, np.ndarray]) -> gym.Env:
        if self.where == "make" and task["shift"][0] == 0.25:
            self.fail()
        return FailingEnv(self, task)

    def fail(self) -> None:
        if self.trouble == "raise":
            raise ZeroDivisionError("the simulator broke")
        if self.trouble == "sleep":
            subprocess.Popen(["sleep", f"98{os.getppid()}"])  # a simulator of its own that has to go as well
            time.sleep(1000)
        if self.trouble == "exit":
            sys.exit(7)
        os.kill(os.getpid(), {"kill": signal.SIGKILL, "crash": signal.SIGSEGV}[self.trouble])


class FailingEnv(NoisyEnv):
    family: Failing

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        self.bad = self.task["shift"][0] == 0.25 and seed == 103
        if self.bad and self.family.where == "reset":
            self.family.fail()
        return super().reset(seed=seed)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if self.bad and self.family.where == "step" and len(self.kept) == 2:
            self.family.fail()
        return super().step(action)


class Succeeding(Noisy):
    """Reports a success as `infos` in some steps of some tasks only."""

    def make(self, task: dict[str, np.ndarray]) -> gym.Env:
        return SucceedingEnv(self, task)


class SucceedingEnv(NoisyEnv):
    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        out = super().step(action)
        t = len(self.kept)
        return *out[:2], t == 4, False, {"success": np.float64(t == 3)} if t > 1 and self.task["shift"][0] > 0 else {}


class Closing(Noisy):
    """Its environments leave a byte in a file when they are closed."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def make(self, task: dict[str, np.ndarray]) -> gym.Env:
        return ClosingEnv(self, task)

    def closed(self) -> int:
        """How many environments were closed so far."""
        return os.stat(self.path).st_size if os.path.exists(self.path) else 0


class ClosingEnv(NoisyEnv):
    family: Closing

    def close(self) -> None:
        with open(self.family.path, "ab") as file:
            file.write(b".")


class Leaky(Noisy):
    """Starts a process that keeps all open files, and is killed in the first step."""

    def make(self, task: dict[str, np.ndarray]) -> gym.Env:
        return LeakyEnv(self, task)


class LeakyEnv(NoisyEnv):
    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        # In a session of its own it is not ended along with the worker.
        subprocess.Popen(["sleep", f"97{os.getppid()}"], close_fds=False, start_new_session=True)
        os.kill(os.getpid(), signal.SIGKILL)
        return super().step(action)


class Stuck(Noisy):
    """Starts a process, which stays in the worker's group, and then steps slowly or hangs."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.horizon = 100_000

    def make(self, task: dict[str, np.ndarray]) -> gym.Env:
        subprocess.Popen(["sleep", f"96{os.getppid()}"])
        return StuckEnv(self, task)


class StuckEnv(NoisyEnv):
    family: Stuck

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if self.family.how == "lock":
            ctypes.PyDLL(None).sleep(1000)  # PyDLL keeps the interpreter's lock: no other thread runs
        if self.family.how == "pipe":
            os.closerange(3, 256)  # as a simulator that turns itself into a daemon does
            time.sleep(1000)
        time.sleep(0.01)
        return self.observe(), 0.0, False, False, {}


class Unpicklable(Noisy):
    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()
