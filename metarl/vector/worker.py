"""A worker process of `metarl.vector.process`: steps its share of the environments.

It does not import torch: a worker is ready once gymnasium is imported, and takes no more memory than that.

Parent and worker share an anonymous block of memory (`Shared`), which holds observations, actions, rewards and flags.
The parent sends one byte per command and gets one byte back; anything longer is in the file `messages`. Before every
call of an environment's method the worker records in the shared memory which environment it is, so that the parent can
tell where a worker hangs or has died. Tracebacks go to the file `log`.
"""

import faulthandler
import mmap
import os
import pickle
import signal
import struct
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np

from metarl import source_files
from metarl.tasks import task_at
from metarl.vector.survival import die_with, end_group
from metarl.vector.transition import Reader, check_env, hint

START, RESET, OBSERVATION_TYPE, ACTION_TYPE, STEP, CLOSE = (bytes([code]) for code in b"SROAsC")
DONE, FAILED = b".", b"!"

WAITING, IMPORTING, MAKE_PHASE, RESET_PHASE, STEP_PHASE = -2, -1, 0, 1, 2
"""What a worker is doing: `Shared.at` holds WAITING, IMPORTING or phase * N + environment."""

_LENGTH = struct.Struct("<Q")
_ITEM = 16  # bytes kept free for a number of an observation or action, whatever its type; unused ones cost nothing


class Shared:
    """The memory that parent and workers share, as NumPy views of a file without a name.

    Environment i belongs to worker i % W: episodes of one task tend to end together, so contiguous shares would leave
    some workers idle.
    """

    def __init__(self, file: int, n: int, workers: int, obs_shape: tuple[int, ...], action_shape: tuple[int, ...]):
        self.n, self.workers, self.obs_shape, self.action_shape = n, workers, obs_shape, action_shape
        sizes = {"at": 8 * workers, "obs_type": 16 * workers, "reward": 8 * n, "terminated": n, "truncated": n,
                 "success": n, "action": n * _ITEM * int(np.prod(action_shape)),
                 "obs": n * _ITEM * int(np.prod(obs_shape))}  # fmt: skip
        self._offset, end = {}, 0
        for name, size in sizes.items():
            self._offset[name] = end
            end += -(-size // 64) * 64
        if os.fstat(file).st_size < end:
            os.ftruncate(file, end)
        self._memory = mmap.mmap(file, end)
        at = self._offset["at"]
        self.at = memoryview(self._memory)[at : at + 8 * workers].cast("q")  # assigned faster than an array's entry
        self.obs_type = self._array("obs_type", (workers,), "S16")
        self.reward = self._array("reward", (n,), np.float64)
        self.terminated, self.truncated = (self._array(name, (n,), np.bool_) for name in ("terminated", "truncated"))
        self.success = self._array("success", (n,), np.int8)  # -1: not reported in this step

    def observations(self, dtype: Any) -> np.ndarray:
        """[N, *obs_shape] of `dtype`."""
        return self._array("obs", (self.n, *self.obs_shape), dtype)

    def actions(self, dtype: Any) -> np.ndarray:
        """[N, *action_shape] of `dtype`."""
        return self._array("action", (self.n, *self.action_shape), dtype)

    def _array(self, name: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        return np.ndarray(shape, dtype, self._memory, self._offset[name])


def post(file: int, message: bytes) -> None:
    """Replace the message in `file`."""
    data = memoryview(_LENGTH.pack(len(message)) + message)
    done = 0
    while done < len(data):
        done += os.pwrite(file, data[done:], done)


def fetch(file: int) -> bytes:
    """The message in `file`."""
    (length,) = _LENGTH.unpack(os.pread(file, _LENGTH.size, 0))
    parts, done = [], 0
    while done < length:
        parts.append(os.pread(file, length - done, _LENGTH.size + done))
        done += len(parts[-1])
    return b"".join(parts)


def stack_observations(space: Any, observations: list[Any]) -> np.ndarray:
    """First observations [N, ...], with a type that can hold later ones and those of `space` as well.

    An environment whose reset returns integers, such as `np.array([0, 0])`, may return fractions afterwards.
    """
    found = np.stack([np.asarray(x) for x in observations])
    return found.astype(np.result_type(found, space.dtype or found.dtype), copy=False)


class _Worker:
    def __init__(self, index: int, file: int, family: Any, sizes: tuple[Any, ...], horizon: int):
        self.index, self.family, self.horizon = index, family, horizon
        self.reader = Reader(family.id, family.observation_space)
        self.shared = Shared(file, *sizes)
        own = slice(index, None, self.shared.workers)
        self.numbers = range(self.shared.n)[own]
        self.own = own
        self.reward, self.success = self.shared.reward[own], self.shared.success[own]
        self.terminated, self.truncated = self.shared.terminated[own], self.shared.truncated[own]
        self.obs: np.ndarray  # this worker's share of the observations and actions, once their types are known
        self.actions: np.ndarray
        self.envs: list[gym.Env] = []
        self.live: list[tuple[int, int, Callable[[Any], Any]]] = []  # place in the share, code for `at`, its step

    def reset(self, tasks: Any, episodes: int, seeds: list[int | None], mask: np.ndarray | None) -> None:
        if mask is not None:
            self.reset_some(tasks, episodes, seeds, mask)
            return
        if tasks is not None:
            self.close()
            for i in self.numbers:
                self.envs.append(self.made(tasks, episodes, i))
        first = [self.first_obs(j, seeds) for j in range(len(self.envs))]
        self.first = stack_observations(self.family.observation_space, first)
        self.shared.obs_type[self.index] = self.first.dtype.str.encode()
        self.terminated[:] = self.truncated[:] = False
        self.elapsed = np.zeros(len(self.envs), int)
        self.find_live()

    def reset_some(self, tasks: Any, episodes: int, seeds: list[int | None], mask: np.ndarray) -> None:
        for j in np.flatnonzero(mask[self.own]).tolist():
            if tasks is not None:
                self.envs[j].close()
                self.envs[j] = self.made(tasks, episodes, self.numbers[j])
            self.obs[j] = self.first_obs(j, seeds)
            self.terminated[j] = self.truncated[j] = False
            self.elapsed[j] = 0
        self.find_live()

    def made(self, tasks: Any, episodes: int, i: int) -> gym.Env:
        self.shared.at[self.index] = MAKE_PHASE * self.shared.n + i
        return check_env(self.family.id, self.family.make(task_at(tasks, i // episodes)))

    def first_obs(self, j: int, seeds: list[int | None]) -> np.ndarray:
        i = self.numbers[j]
        self.shared.at[self.index] = RESET_PHASE * self.shared.n + i
        return self.reader.first(self.envs[j].reset(seed=seeds[i]))

    def find_live(self) -> None:
        over, first = self.terminated | self.truncated, STEP_PHASE * self.shared.n
        self.live = [(j, first + i, self.envs[j].step) for j, i in enumerate(self.numbers) if not over[j]]

    def write_first(self, dtype: str) -> None:
        self.obs = self.shared.observations(dtype)[self.own]
        self.obs[:] = self.first

    def step(self) -> None:
        at, index, obs, reward, success = self.shared.at, self.index, self.obs, self.reward, self.success
        actions = self.actions.copy()  # an environment may keep what it is given
        self.elapsed += 1
        cut_off = (self.elapsed >= self.horizon).tolist()
        reward[:], success[:] = 0.0, -1
        ended, read = False, self.reader.step
        for j, code, env_step in self.live:
            at[index] = code
            obs[j], reward[j], terminated, truncated, flag = read(env_step(actions[j]))
            if flag is not None:
                success[j] = flag
            if terminated:
                self.terminated[j] = ended = True
            elif truncated or cut_off[j]:
                self.truncated[j] = ended = True
        if ended:
            self.find_live()

    def close(self) -> None:
        envs, self.envs, self.live = self.envs, [], []
        for env in envs:
            env.close()


def _serve(index: int, command: int, reply: int, memory: int, messages: int, log: int) -> None:
    worker: _Worker | None = None
    try:
        while kind := os.read(command, 1):  # nothing: the parent is gone
            if kind == STEP:
                assert worker is not None
                worker.step()
            elif kind == START:
                path, files, sizes, horizon, family = pickle.loads(fetch(messages))
                sys.path[:] = path
                source_files.register(files)
                worker = _Worker(index, memory, pickle.loads(family), sizes, horizon)
            elif kind == CLOSE:
                break
            elif kind == RESET:
                assert worker is not None
                worker.reset(*pickle.loads(fetch(messages)))
            elif kind == OBSERVATION_TYPE:
                assert worker is not None
                worker.write_first(fetch(messages).decode())
            elif kind == ACTION_TYPE:
                assert worker is not None
                worker.actions = worker.shared.actions(fetch(messages).decode())[worker.own]
            os.write(reply, DONE)
    except BrokenPipeError:  # the parent is gone
        pass
    except BaseException as error:  # sys.exit in an environment too
        more = hint(error) if isinstance(error, Exception) else ""
        os.write(log, (traceback.format_exc().rstrip() + more).encode())
        os.write(reply, FAILED)
        os.read(command, 1)  # the parent wants to look before this process ends
        return
    if worker is not None:
        worker.close()


def _follow(parent: int) -> None:
    """End this process, and what its environments started, when the parent is gone."""
    while os.getppid() == parent:
        time.sleep(0.5)
    end_group()


def main(
    parent: int, index: int, command: int, reply: int, memory: int, messages: int, log: int, dies: bool = False
) -> None:
    """What a worker process runs: its own number and that of its parent, pipes and files; whether the kernel is to end
    it with the thread that started it (`metarl.vector.survival`)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    if dies:
        die_with(parent)
    for file in (command, reply, memory, messages, log):
        os.set_inheritable(file, False)
    faulthandler.enable(log)
    faulthandler.register(signal.SIGUSR1, log, all_threads=False)  # the parent asks a hanging worker where it is
    threading.Thread(target=_follow, args=(parent,), daemon=True).start()
    _serve(index, command, reply, memory, messages, log)
