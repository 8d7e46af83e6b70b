"""Any Gymnasium environments in worker processes, many in each, with everything exchanged in shared memory."""

import contextlib
import os
import pickle
import select
import signal
import subprocess
import sys
import tempfile
import time
import weakref
from typing import Any

import cloudpickle
import numpy as np
from gymnasium.vector import VectorEnv

from metarl import source_files
from metarl.tasks import TaskFamily
from metarl.vector import worker
from metarl.vector.contract import CPU, Assignment, read_reset, seed_list, set_spaces
from metarl.vector.survival import Guardian, started_by_main_thread
from metarl.vector.transition import EpisodeError

TIMEOUT = 300.0
"""Time limit in seconds for importing the family, or for one call of an environment's make, reset or step."""

_GRACE = 5.0  # seconds for environments to close
_REAPING = 5.0  # seconds for a process to go that has been killed, or has closed its pipe
_DOING = {worker.MAKE_PHASE: "make", worker.RESET_PHASE: "reset", worker.STEP_PHASE: "step"}


class WorkerError(EpisodeError):
    """A worker process raised, hung or died. The message has the task, the episode, the step and the traceback."""


class ProcessVectorEnv(VectorEnv):
    """Equal to `LoopVectorEnv` bit for bit, with the environments distributed over worker processes.

    The processes start at the first reset and live until `close`, or the end of this object or of the interpreter; new
    tasks do not restart them. After an error they are ended, and the next `reset` with tasks starts new ones. They
    never run the main module again, so scripts do not need `if __name__ == "__main__"`.

    Args:
        workers: the number of processes; no more are started than there are environments.
        timeout: time limit in seconds for importing the family, or for one call of an environment's method.

    Raises:
        ValueError: invalid arguments, spaces that are not arrays, or a family that cannot be sent to another process.
        OSError: the system is not POSIX.
        WorkerError: in reset or step, if a worker fails.
    """

    device, tensors = CPU, False
    _pool: "_Pool | None" = None  # of the class too: Gymnasium closes also what was refused and never started

    def __init__(self, family: TaskFamily, n_tasks: int, episodes: int, workers: int, timeout: float = TIMEOUT):
        if workers < 1 or not timeout > 0:
            raise ValueError(f"need workers >= 1 and timeout > 0, got {workers} and {timeout}")
        if os.name != "posix":
            raise OSError(f"worker processes need a POSIX system, this one is {sys.platform}; use workers=0")
        self.family, self.n_tasks, self.episodes, self.name = family, n_tasks, episodes, family.id
        set_spaces(self, family, n_tasks * episodes)
        self.workers, self.timeout = min(workers, self.num_envs), timeout
        self._sizes = (self.num_envs, self.workers, _array_shape(family, "observation"), _array_shape(family, "action"))
        self._pickled = _pickle_family(family)
        self._tasks = Assignment(n_tasks, episodes)
        self._elapsed = np.zeros(self.num_envs, int)  # steps since its last reset

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        if self.closed:
            raise ValueError("this vector environment is closed")
        tasks, mask = read_reset(options, self.n_tasks, self.num_envs, begun=self._pool is not None)
        seeds = seed_list(seed, self.num_envs)
        self._elapsed[... if mask is None else mask] = 0
        try:
            if tasks is not None and mask is None and self._tasks.keeps(tasks):
                tasks = None  # the workers have these environments
            if tasks is not None:
                self._tasks.give(tasks, mask)
                self._pool = self._pool or self._start()
            assert self._pool is not None
            self._exchange(worker.RESET, pickle.dumps((tasks, self.episodes, seeds, mask)))
            if mask is None:
                # NumPy's rule for the common type, as in np.stack of all of them
                obs_type = np.result_type(*(np.dtype(x.decode()) for x in self._pool.shared.obs_type))
                self._exchange(worker.OBSERVATION_TYPE, obs_type.str.encode())
                self._pool.obs = self._pool.shared.observations(obs_type)
        except BaseException:  # Ctrl-C too: workers that have not answered yet would answer the next question
            self._stop()
            raise
        return self._pool.obs.copy(), {}

    def step(self, actions: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        if self._pool is None:
            raise ValueError('call reset with options={"tasks": tasks} first')
        actions, shared = np.asarray(actions), self._pool.shared
        wanted = (self.num_envs, *shared.action_shape)
        if actions.shape != wanted or actions.dtype.hasobject:
            raise ValueError(f"expected actions of shape {wanted}, got {actions.dtype} of shape {actions.shape}")
        try:
            if self._pool.actions is None or self._pool.actions.dtype != actions.dtype:
                self._exchange(worker.ACTION_TYPE, actions.dtype.str.encode())
                self._pool.actions = shared.actions(actions.dtype)
            self._pool.actions[...] = actions
            self._elapsed += 1
            self._exchange(worker.STEP)
        except BaseException:
            self._stop()
            raise
        reported = shared.success >= 0
        infos = {"success": shared.success > 0} if reported.any() else {}
        return self._pool.obs.copy(), shared.reward.copy(), shared.terminated.copy(), shared.truncated.copy(), infos

    def describe(self, k: int, e: int, n: int | None = None) -> str:
        return self._tasks.describe(k, e, n)

    def close_extras(self, **kwargs: Any) -> None:
        """End the workers; their environments are closed."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    # -----------------------------------------------------------------------------------------------------------------
    # The workers

    def _start(self) -> "_Pool":
        self._pool = _Pool(self._sizes)
        self._finalizer = weakref.finalize(self, self._pool.close)  # at the end of the interpreter too
        path = [str(entry) for entry in sys.path]
        start = path, source_files.registered(), self._sizes, self.family.horizon, self._pickled
        self._exchange(worker.START, pickle.dumps(start))
        return self._pool

    def _stop(self) -> None:
        self._tasks.forget()
        if self._pool is not None:
            self._pool.kill()
            self._finalizer.detach()
            self._pool = None

    def _exchange(self, command: bytes, message: bytes | None = None) -> None:
        """Send every worker the command and wait until all have done it."""
        assert self._pool is not None
        try:
            self._pool.exchange(command, message, self.timeout)
        except _Failure as failure:
            raise WorkerError(self._explain(failure)) from None

    def _explain(self, failure: "_Failure") -> str:
        at, log = failure.at, failure.log.strip()
        if at == worker.WAITING:
            what = "the wait for its next command, outside any environment"
        elif at == worker.IMPORTING:
            what = "the import of the family"
            log += ("" if "ModuleNotFoundError" not in log and "AttributeError" not in log else
                    "\nWorkers find the family by importing its module: it must be found on sys.path. "
                    "workers=0 does without processes.")  # fmt: skip
        else:
            phase, i = divmod(at, self.num_envs)
            step = f" {self._elapsed[i] - 1}" if phase == worker.STEP_PHASE else ""
            what = f"{_DOING[phase]}{step} of {self.describe(*divmod(i, self.episodes))}"
        return (
            f"{self.family.id}: a worker process {failure.how} in {what}. Its traceback:\n\n{log or '(it left none)'}"
        )


class _Failure(Exception):
    def __init__(self, how: str, at: int, log: str):
        self.how, self.at, self.log = how, at, log


class _Pool:
    """Worker processes, the memory shared with them and the pipes to and from them."""

    def __init__(self, sizes: tuple[int, int, tuple[int, ...], tuple[int, ...]]):
        self.owner = os.getpid()
        self.processes: list[subprocess.Popen] = []
        self.commands: list[int] = []
        self.replies: dict[int, int] = {}  # file -> worker
        self.obs: np.ndarray
        self.actions: np.ndarray | None = None
        self.shared_files = [memory, self.messages] = [_nameless_file(), _nameless_file()]
        self.logs = [_nameless_file() for _ in range(sizes[1])]
        self.shared = worker.Shared(memory, *sizes)
        self.poll = select.poll()
        self.guardian: Guardian | None = None
        try:
            for index in range(sizes[1]):
                self._start(index)
            self.guardian = Guardian([process.pid for process in self.processes])
        except BaseException:
            self.kill()
            raise

    def _start(self, index: int) -> None:
        command, self_command = os.pipe()
        self_reply, reply = os.pipe()
        self.commands.append(self_command)
        self.replies[self_reply] = index
        self.poll.register(self_reply, select.POLLIN)
        files = (command, reply, *self.shared_files, self.logs[index])
        path, dies = [str(entry) for entry in sys.path], started_by_main_thread()
        code = (f"import sys; sys.path[:] = {path!r}; "
                f"from metarl.vector.worker import main; main{(self.owner, index, *files, dies)}")  # fmt: skip
        optimize = ["-" + "O" * sys.flags.optimize] if sys.flags.optimize else []
        one_thread = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "OPENBLAS")}
        try:
            # A session of its own keeps a terminal's Ctrl-C away and gathers what the environments start.
            self.processes.append(subprocess.Popen(
                [sys.executable, *optimize, "-c", code], stdin=subprocess.DEVNULL, pass_fds=files,
                env=os.environ | one_thread, start_new_session=True,
            ))  # fmt: skip
        finally:
            os.close(command)
            os.close(reply)

    def exchange(self, command: bytes, message: bytes | None, timeout: float) -> None:
        """Send `command` to all and wait for the answers. Raises _Failure for the first worker that fails."""
        if message is not None:
            worker.post(self.messages, message)
        for index in range(len(self.commands)):
            self.shared.at[index] = worker.IMPORTING if command == worker.START else worker.WAITING
        for file in self.commands:
            with contextlib.suppress(BrokenPipeError):  # reading its answer will show that it is gone
                os.write(file, command)
        waiting = set(self.replies)
        seen: list[int] = []
        while waiting:
            ready = self.poll.poll(min(1000.0, 250.0 * timeout))
            for file, _ in ready:
                answer = os.read(file, 1)
                if answer != worker.DONE:
                    raise self._failure(self.replies[file], "raised" if answer else "")
                waiting.discard(file)
            if not ready:
                at = self.shared.at.tolist()
                if at != seen:  # somebody has moved on
                    seen, since = at, time.monotonic()
                elif time.monotonic() - since > timeout:
                    raise self._failure(self.replies[min(waiting)], f"has not answered for {timeout:g} seconds")

    def _failure(self, index: int, how: str) -> _Failure:
        process, log = self.processes[index], self.logs[index]
        if not how:
            how = _end_of(process)
        elif how != "raised":
            process.send_signal(signal.SIGUSR1)  # it writes its traceback
            end = time.monotonic() + 2.0
            while not os.fstat(log).st_size and time.monotonic() < end:
                time.sleep(0.05)
            time.sleep(0.05)
        return _Failure(how, self.shared.at[index], os.pread(log, os.fstat(log).st_size, 0).decode(errors="replace"))

    def close(self) -> None:
        """Let the workers close their environments; kill those that take too long."""
        if self.owner == os.getpid():  # a forked copy of this process must leave them alone
            for file in self.commands:
                with contextlib.suppress(BrokenPipeError):
                    os.write(file, worker.CLOSE)
            end = time.monotonic() + _GRACE
            for process in self.processes:
                try:
                    process.wait(max(0.0, end - time.monotonic()))
                except subprocess.TimeoutExpired:
                    break
        self.kill()

    def kill(self) -> None:
        """End the workers and whatever their environments started, at once."""
        if self.owner == os.getpid():
            for process in self.processes:
                with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS denies what is a zombie
                    os.killpg(process.pid, signal.SIGKILL)
            for process in self.processes:
                with contextlib.suppress(subprocess.TimeoutExpired):  # one that the kernel holds ends when it lets go
                    process.wait(_REAPING)
            if self.guardian is not None:
                self.guardian.dismiss()
        elif self.guardian is not None:
            self.guardian.leave()
        self.guardian = None
        for file in (*self.commands, *self.replies, *self.logs, *self.shared_files):
            os.close(file)
        self.processes, self.commands, self.replies, self.logs, self.shared_files = [], [], {}, [], []


def _end_of(process: subprocess.Popen) -> str:
    """How a worker whose pipe is closed has ended. Workers that continue without a pipe are not waited for."""
    try:
        status = process.wait(_REAPING)
    except subprocess.TimeoutExpired:
        return "has closed its pipe to the parent and goes on"
    return f"was ended by {signal.Signals(-status).name}" if status < 0 else f"exited with status {status}"


def _nameless_file() -> int:
    """A file that disappears with its last user, in memory if the system supports it."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("metarl")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _array_shape(family: TaskFamily, which: str) -> tuple[int, ...]:
    space = getattr(family, f"{which}_space")
    if space.shape is None or space.dtype is None:
        raise ValueError(f"{family.id} has the {which} space {space}; worker processes exchange arrays only: "
                         "use workers=0")  # fmt: skip
    return tuple(space.shape)


def _pickle_family(family: TaskFamily) -> bytes:
    # cloudpickle takes what the main script, a notebook or a function defined along; the rest is imported.
    try:
        with source_files.by_name():
            return cloudpickle.dumps(family)
    except Exception as error:
        raise ValueError(
            f"{family.id} cannot be sent to worker processes: {type(error).__name__}: {error}. Keep plain data in the "
            "family and open everything else in make(task), or use workers=0"
        ) from error
