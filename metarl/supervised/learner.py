"""FewShotLearner: `metarl.MetaLearner` for support and query sets."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from metarl import checkpoint
from metarl.arguments import check_takes_one, file_path, new_file, whole, yes_or_no
from metarl.checkpoint import CheckpointError, reading
from metarl.parallel import resolve_device
from metarl.params import Params
from metarl.policies.stacked_module import second_derivatives_of
from metarl.printing import curve_text
from metarl.report.evaluation import FINAL, GIVEN, PERIODIC, checked_step_sizes, evaluation_seed
from metarl.splits import TEST, VALIDATION, sample_split
from metarl.suggestions import known_arguments, setting_hint
from metarl.supervised import maml
from metarl.supervised.evaluation import FewShotEvaluation
from metarl.supervised.maml import Config, State
from metarl.supervised.networks import MLPNetwork, ModuleNetwork, Network
from metarl.supervised.sets import SetFamily, Sets, as_tensor, check_family, check_sets
from metarl.torch_defaults import torch_defaults
from metarl.training.directory import CONFIG, LATEST, PREVIOUS, RunDirectory, check_same_settings, read_config, versions
from metarl.training.saved import comparable_score, of_run, portable, restore, saved_settings, without_checkpoint
from metarl.training.train import Stats, in_one_piece, train

_KINDS = {"iterations": int, "family": dict, "config": dict, "seed": int, "network": str}
"""What config.json says at least."""
_CHUNK = 100
"""Test tasks that are adapted side by side."""


@dataclass(frozen=True, repr=False)
class FewShotPredictor:
    """A network that was adapted to one task."""

    family: SetFamily
    network: Network
    params: Params  # without a task axis
    support_losses: np.ndarray
    """[S + 1]: the loss on the support set after 0, 1, ..., S inner steps."""

    def __repr__(self) -> str:
        losses = curve_text(self.support_losses)
        return f"FewShotPredictor({self.family.id}, {type(self.network).__name__}; support losses: {losses})"

    @torch_defaults
    def outputs(self, x: Any) -> np.ndarray:
        """What the network gives, x [N, *x_shape] -> [N, A]: values, or logits.

        Raises:
            ValueError: inputs of another shape.
        """
        device = next(iter(self.params.values())).device
        inputs = as_tensor(x).to(device)
        if inputs.dim() == 0 or inputs.shape[1:] != self.family.x_shape:
            raise ValueError(f"inputs must have the shape [N, {', '.join(map(str, self.family.x_shape))}], "
                             f"got {tuple(inputs.shape)}")  # fmt: skip
        with torch.no_grad():
            params = {name: value[None] for name, value in self.params.items()}
            return self.network.outputs(params, inputs[None])[0].cpu().numpy()

    @torch_defaults
    def predict(self, x: Any) -> np.ndarray:
        """Values [N, A]; for "bce" the probabilities of a yes [N, A]; for "cross_entropy" class numbers [N]."""
        out = self.outputs(x)
        if self.family.loss == "cross_entropy":
            return out.argmax(-1)
        return torch.sigmoid(torch.as_tensor(out)).numpy() if self.family.loss == "bce" else out


class FewShotLearner:
    """Meta-train on few-shot tasks, evaluate, adapt, save.

    Args:
        family: where the tasks come from: `Sinusoid()`, `digits()`, `glyphs()`, or any object that is a `SetFamily`.
        network: an `nn.Module` from [N, *x_shape] to [N, outputs] to adapt instead of the MLP that the config
            describes. It is copied, and stays as it is.
        seed: with the config, determines every number of the run.
        device: `"auto"`, `"cpu"` or `"cuda"`.
        config: settings, fields of `metarl.supervised.Config`; those of a published method come from
            `metarl.supervised.method`.

    Raises:
        TypeError: what was given as a family is none.
        ValueError: an unknown setting, nonsense, a family that does not draw what it says, a network that does not fit.
    """

    @torch_defaults
    def __init__(
        self, family: SetFamily, *, network: nn.Module | None = None, seed: int = 0,
        device: str | torch.device = "auto", **config: Any,
    ):  # fmt: skip
        seed = whole("seed", seed, 0)
        check_family(family)
        self.family, self.config, self.seed = family, make_config(config), seed
        self.device = resolve_device(device)
        shape = tuple(family.x_shape)
        self.network: Network
        if network is None:
            self.network = MLPNetwork(shape, family.outputs, self.config.hidden, self.config.activation)
        else:
            self.network = ModuleNetwork(network, shape, family.outputs)
        self.state = checkpoint.in_own_memory(maml.init(self.config, self.network, self.seed, self.device))
        self._best_score: float | None = None
        self._run_dir: Path | None = None  # the run that this learner is the state of
        self._latest_is_damaged = False  # in that run, so that this is its previous state

    def __repr__(self) -> str:
        return (f"FewShotLearner({self.family.id!r}, seed={self.seed}, device={str(self.device)!r}): "
                f"{self.state.iteration} iterations")  # fmt: skip

    def __getstate__(self) -> dict[str, Any]:
        """For pickle and deepcopy."""
        return portable(self)

    @torch_defaults
    def __setstate__(self, state: dict[str, Any]) -> None:
        restore(self, state)

    # -----------------------------------------------------------------------------------------------------------------
    # Training

    @known_arguments
    @torch_defaults
    def learn(
        self, iterations: int, *, run_dir: Path | str | None = None,
        callback: Callable[[Stats], bool | None] | None = None, progress_bar: bool = False, eval_every: int = 0,
        eval_tasks: int = 100, eval_steps: int | None = None, checkpoint_every: int = 1000,
    ) -> "FewShotLearner":  # fmt: skip
        """Run `iterations` further meta-iterations.

        Args:
            run_dir: where metrics and checkpoints go (nothing is written without it). A directory that holds
                another run is refused; one that holds this learner's own is continued.
            callback: called with every iteration's statistics; returning False stops the training.
            progress_bar: show iteration, loss, speed and time left.
            eval_every: iterations between evaluations on validation tasks; one follows the last; 0 disables them.
            eval_tasks, eval_steps: validation tasks and inner steps of such an evaluation; by default as many steps as
                in training.
            checkpoint_every: write the latest state after this many iterations, and when training ends or breaks off.

        Raises:
            ValueError: numbers that make no sense, a directory with another run, or a meta-gradient that is not finite.
        """
        iterations, eval_tasks = whole("iterations", iterations), whole("eval_tasks", eval_tasks, 1)
        checkpoint_every, eval_every = whole("checkpoint_every", checkpoint_every), whole("eval_every", eval_every)
        progress_bar = yes_or_no("progress_bar", progress_bar)
        if callback is not None and not callable(callback):
            raise ValueError(f"callback is a function of an iteration's statistics, got {callback!r}")
        if callback is not None:
            check_takes_one("callback", callback, "the statistics of an iteration")
        if iterations < 0 or checkpoint_every < 1 or eval_every < 0:
            raise ValueError("need iterations >= 0, checkpoint_every >= 1 and eval_every >= 0, got "
                             f"{iterations}, {checkpoint_every} and {eval_every}")  # fmt: skip
        sizes = self._step_sizes(eval_steps, None, self.config.inner_steps)
        run = None if run_dir is None else RunDirectory(file_path("run_dir", run_dir))
        logger = None

        def evaluate(state: State) -> Stats:
            found = self._evaluate(
                state, self._draw(eval_tasks, evaluation_seed(self.seed, PERIODIC), VALIDATION), sizes
            )
            stats = {f"eval/step_{k}": float(x) for k, x in enumerate(found[0].mean(0))}
            if found[1] is not None:
                stats |= {f"eval/accuracy_{k}": float(x) for k, x in enumerate(found[1].mean(0))}
                return stats | {"eval/score": float(found[1][:, -1].mean())}
            return stats | {"eval/score": -float(found[0][:, -1].mean())}

        def keep(state: State, best: float | None) -> None:
            self.state, self._best_score = state, best
            if run is not None:
                run.check()

        def save(name: str, state: State, best: float | None) -> None:
            assert run is not None
            run.write(name, *self._packed(state, best))

        try:
            if run is not None:
                run.acquire()
                self._open_run(run, iterations)
                logger = run.open_logger(self.state.iteration)
            train(
                self.state, self._step,
                iterations, self.state.iteration, keep=keep, evaluate=evaluate if eval_every else None,
                eval_every=max(1, eval_every), save=None if run is None else save, logger=logger,
                checkpoint_every=checkpoint_every, best=self._best_score, callback=callback,
                progress_bar=progress_bar, describe=_loss_and_speed, measure="loss",
            )  # fmt: skip
        finally:
            if logger is not None:
                with in_one_piece():
                    logger.close()
            if run is not None:
                run.release()
        return self

    def _step(self, state: State) -> tuple[State, Stats]:
        with second_derivatives_of(self.network.stacked.module if isinstance(self.network, ModuleNetwork) else None):
            return maml.iteration(self.config, self.family, self.network, state, self.seed)

    def _open_run(self, run: RunDirectory, iterations: int) -> RunDirectory:
        settings = {"iterations": self.state.iteration + iterations, **self.describe(), "device": str(self.device),
                    "versions": versions()}  # fmt: skip
        path = run.path / CONFIG
        there = any((run.path / name).exists() for name in (CONFIG, LATEST, PREVIOUS))
        if self._run_dir == run.path.resolve() and there:
            check_same_settings(path, _recorded(path), json.loads(json.dumps(self.describe())))
            run.reopen(settings, self._latest_is_damaged)
            self._latest_is_damaged = False
            return run
        if not run.is_free:
            remedy = f"FewShotLearner.load({str(run.path)!r}, family).learn(...)"
            raise ValueError(f"{run.path} is not empty. Continue its run with {remedy}, or choose another directory")
        run.create(settings)
        self._run_dir = run.path.resolve()
        return run

    # -----------------------------------------------------------------------------------------------------------------
    # Evaluation and adaptation

    @known_arguments
    @torch_defaults
    def evaluate(
        self, n_tasks: int = 600, *, steps: int | None = None, step_sizes: Sequence[float] | None = None,
        shots: int | None = None, queries: int | None = None, sets: Sets | None = None, seed: int | None = None,
        split: str | None = None,
    ) -> FewShotEvaluation:  # fmt: skip
        """The curve on test tasks: loss (and accuracy) on query sets after 0, 1, ..., `steps` inner steps.

        Args:
            n_tasks: how many tasks to draw.
            steps: inner steps, by default as many as in training.
            step_sizes: one size for every step (then `steps` is not needed); by default the training's for all.
            shots, queries: examples in the sets, by default as in training.
            sets: evaluate on these instead of drawing any.
            seed: of the tasks; by default one that follows from the run's seed.
            split: which of the family's splits to draw from, by default `"test"`.

        Raises:
            ValueError: a split that the family does not have, or both `sets` and `split`.
        """
        sizes = self._step_sizes(steps, step_sizes, self.config.inner_steps)
        seed = evaluation_seed(self.seed, FINAL) if seed is None else whole("seed", seed, 0)
        n_tasks = whole("n_tasks", n_tasks, 1)
        shots = self.config.shots if shots is None else whole("shots", shots, 1)
        queries = self.config.queries if queries is None else whole("queries", queries, 1)
        if sets is not None and split is not None:
            raise ValueError(f"split={split!r} says what to draw, and sets= that nothing is drawn: leave one out")
        split = GIVEN if sets is not None else split or TEST
        if sets is None:
            sets = self._draw(n_tasks, seed, split, shots, queries)
        check_sets(self.family, sets)
        losses, accuracies = self._evaluate(self.state, sets, sizes)
        return FewShotEvaluation(losses, accuracies, sizes, shots, queries, seed, sets.parameters, split)

    @known_arguments
    @torch_defaults
    def adapt(
        self, support_x: Any, support_y: Any, *, steps: int | None = None, step_sizes: Sequence[float] | None = None
    ) -> FewShotPredictor:  # fmt: skip
        """Adapt to one task; the meta-parameters stay as they are.

        Args:
            support_x: [N, *x_shape], arrays or tensors.
            support_y: [N, A] values, or [N] class numbers from 0 on.
            steps: inner steps, by default as many as in training (at least 1).
            step_sizes: one size for every step; by default the training's for all.

        Raises:
            ValueError: data that is not what the family's is like.
        """
        sizes = self._step_sizes(steps, step_sizes, max(1, self.config.inner_steps))
        x, y = as_tensor(support_x)[None], as_tensor(support_y)[None]
        sets = Sets(x, y, x, y)
        check_sets(self.family, sets)
        found = maml.evaluate(self.config, self.family, self.network, self.state, sets.to(self.device), sizes)
        params = {name: value[0] for name, value in found.params.items()}
        return FewShotPredictor(self.family, self.network, params, found.losses[0].cpu().numpy())

    def _draw(self, n: int, seed: int, split: str, shots: int | None = None, queries: int | None = None) -> Sets:
        sizes = shots or self.config.shots, queries or self.config.queries
        return sample_split(self.family, n, np.random.default_rng([seed, 0]), split, *sizes)

    def _evaluate(self, state: State, sets: Sets, sizes: Sequence[float]) -> tuple[np.ndarray, np.ndarray | None]:
        """Losses and accuracies [K, S + 1]."""
        parts = [
            maml.evaluate(self.config, self.family, self.network, state, sets[i : i + _CHUNK].to(self.device), sizes)
            for i in range(0, sets.n_tasks, _CHUNK)
        ]
        losses = torch.cat([part.losses for part in parts]).cpu().double().numpy()
        rates = [part.accuracies for part in parts if part.accuracies is not None]
        return losses, torch.cat(rates).cpu().double().numpy() if rates else None

    def _step_sizes(self, steps: int | None, sizes: Sequence[float] | None, otherwise: int) -> tuple[float, ...]:
        """The sizes of `steps` inner steps, `otherwise` if neither is given."""
        return checked_step_sizes(steps, sizes, lambda n: (self.config.inner_lr,) * n, otherwise)

    # -----------------------------------------------------------------------------------------------------------------
    # Saving and loading

    def describe(self) -> dict[str, Any]:
        """Family, settings and seed as JSON-able data: what it takes to make this learner again."""
        config = dataclasses.asdict(self.config)
        return {
            "family": _signature(self.family),
            "config": {name: list(value) if isinstance(value, tuple) else value for name, value in config.items()},
            "seed": self.seed,
            "network": type(self.network).__name__,
        }

    @torch_defaults
    def save(self, path: Path | str) -> None:
        """Write a checkpoint: one file, replaced atomically."""
        checkpoint.save(new_file("path", path), *self._packed(self.state, self._best_score))

    def _packed(self, state: State, best: float | None) -> tuple[Params, dict[str, Any]]:
        tensors, rest = checkpoint.pack_state(state)
        return tensors, {
            "kind": "few-shot learner",
            **self.describe(),
            "state": rest,
            "best_score": best,
            "chosen_on": VALIDATION,
        }

    @classmethod
    @torch_defaults
    def load(
        cls, path: Path | str, family: SetFamily, *, network: nn.Module | None = None,
        device: str | torch.device = "auto",
    ) -> "FewShotLearner":  # fmt: skip
        """The learner as it was saved; training goes on bit for bit.

        Args:
            path: a checkpoint, or a run's directory (its latest state; before its first checkpoint, what its settings
                begin with).
            family: one like the learner's.
            network: needed if the learner had a module of its own.

        Raises:
            CheckpointError: a damaged file, or a checkpoint of another family or network.
        """

        def from_file(file: Path) -> FewShotLearner:
            tensors, meta = checkpoint.load(file)
            if meta.get("kind") != "few-shot learner":
                raise CheckpointError(f"{file} holds a {meta.get('kind')}, not a few-shot learner")
            with reading(file, tensors):
                return cls._made(file, tensors, meta, family, network, device)

        path = file_path("path", path)
        if path.is_dir() and without_checkpoint(path):
            config = path / CONFIG
            start = {**read_config(path, _KINDS), "state": None, "best_score": None}
            with reading(config, {}):
                learner = cls._made(config, {}, start, family, network, device)
            learner._run_dir = path.resolve()
            return learner
        if path.is_dir():
            return of_run(path, from_file)
        learner = from_file(path)
        learner._run_dir = path.parent.resolve()
        return learner

    @classmethod
    def _made(
        cls, path: Path, tensors: Params, meta: dict[str, Any], family: SetFamily, network: nn.Module | None,
        device: str | torch.device,
    ) -> "FewShotLearner":  # fmt: skip
        if (network is None) == (meta["network"] == ModuleNetwork.__name__):
            remedy = "pass that module as network=" if network is None else "leave network= out"
            raise CheckpointError(f"{path} was saved by a learner with a network of type {meta['network']}: {remedy}")
        found = json.loads(json.dumps(_signature(family)))
        if found != meta["family"]:
            raise CheckpointError(f"{path} was trained on the family {meta['family']}, this one is {found}")
        config = saved_settings(meta["config"])
        learner = cls(family, network=network, seed=meta["seed"], device=device, **config)
        if meta["state"] is not None:
            learner.state = checkpoint.unpack_state(State, tensors, meta["state"], learner.state, learner.device)
        learner._best_score = comparable_score(meta)
        return learner


def _recorded(path: Path) -> dict[str, Any]:
    """config.json as it is, or nothing where it is damaged: the checkpoint has all that it takes."""
    try:
        found = checkpoint.read_json(path)
    except CheckpointError:
        found = None
    return found if isinstance(found, dict) and isinstance(found.get("config"), dict) else {}


def make_config(values: Mapping[str, Any]) -> Config:
    """`Config` from a mapping. Raises ValueError for an unknown key, naming the nearest known one."""
    known = [field.name for field in dataclasses.fields(Config)]
    for name in values:
        if name not in known:
            raise ValueError(f"few-shot learning has no setting {name!r}{setting_hint(name, known)}")
    return Config(**values)


def _signature(family: SetFamily) -> dict[str, Any]:
    return {"id": family.id, "x_shape": list(family.x_shape), "outputs": family.outputs, "loss": family.loss}


def _loss_and_speed(stats: Stats) -> str:
    seconds = max(stats["time/sampling"] + stats["time/update"], 1e-9)
    return f"query loss [bold]{stats['loss/query']:.3f}[/]  {1 / seconds:,.0f} iterations/s"
