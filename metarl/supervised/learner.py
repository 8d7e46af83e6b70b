"""FewShotLearner: the counterpart of `metarl.MetaLearner` for support and query sets."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from metarl import checkpoint
from metarl.arguments import file_path, new_file, positive_sizes, whole
from metarl.checkpoint import CheckpointError
from metarl.parallel import resolve_device
from metarl.params import Params
from metarl.policies.stacked_module import second_derivatives_of
from metarl.printing import curve_text
from metarl.report.evaluation import (
    FINAL,
    GIVEN,
    PERIODIC,
    STEP_SIZES,
    Evaluation,
    checked_step_sizes,
    evaluation_seed,
)
from metarl.report.measures import LOSS
from metarl.report.step_sizes import Choice, Kept, choose, choose_once
from metarl.splits import TEST, VALIDATION, sample_split
from metarl.suggestions import config_from, known_arguments
from metarl.supervised import maml
from metarl.supervised.losses import ACCURACIES
from metarl.supervised.maml import Config, State
from metarl.supervised.networks import MLPNetwork, ModuleNetwork, Network
from metarl.supervised.sets import SetFamily, Sets, as_tensor, check_family, check_sets
from metarl.torch_defaults import torch_defaults
from metarl.training import saved
from metarl.training.contract import Kind, Stats
from metarl.training.learn import Options, learn
from metarl.training.saved import portable, restore
from metarl.training.warm_start import start_from

_CHUNK = 100
"""Number of test tasks adapted in one batch."""
_TRIED_ON = 100
"""Number of validation tasks on which step sizes are chosen."""


def _loss_and_speed(stats: Stats) -> str:
    seconds = max(stats["time/sampling"] + stats["time/update"], 1e-9)
    return f"query loss [bold]{stats['loss/query']:.3f}[/]  {1 / seconds:,.0f} iterations/s"


KIND = Kind(
    name="few-shot learner",
    entries={"iterations": int, "family": dict, "config": dict, "seed": int, "network": str},
    resume=lambda path: f"FewShotLearner.load({str(path)!r}, family).learn(..., run_dir={str(path)!r})",
    progress=_loss_and_speed,
    measure="loss",
    timesteps=lambda state: state.iteration,
    predictor=lambda learner: _unadapted(learner),
)


@dataclass(frozen=True, repr=False)
class FewShotPredictor:
    """A network adapted to one task."""

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
        """The network's outputs, x [N, *x_shape] -> [N, A]: values, or logits.

        Raises:
            ValueError: the inputs have the wrong shape.
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
        """Values [N, A]; for "bce", probabilities of 1 [N, A]; for "cross_entropy", class numbers [N]."""
        out = self.outputs(x)
        if self.family.loss == "cross_entropy":
            return out.argmax(-1)
        return torch.sigmoid(torch.as_tensor(out)).numpy() if self.family.loss == "bce" else out


class FewShotLearner:
    """Meta-train on few-shot tasks, evaluate, adapt, save.

    Args:
        family: the source of the tasks: `Sinusoid()`, `digits()`, `glyphs()`, or any object that is a `SetFamily`.
        network: an `nn.Module` from [N, *x_shape] to [N, outputs], used instead of the MLP that the config describes.
            It is copied and not modified.
        seed: together with the config, determines every number of the run.
        device: `"auto"`, `"cpu"` or `"cuda"`.
        config: settings, which are fields of `metarl.supervised.Config`; `metarl.supervised.method` returns those of a
            published method.

    Raises:
        TypeError: `family` is not a family of sets.
        ValueError: an unknown or invalid setting, a family that draws something other than it declares, or a network
            that does not fit it.
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
        self._choices = Kept()  # of step sizes
        self._best_score: float | None = None
        self._run_dir: Path | None = None  # the run that this learner is the state of
        self._latest_is_damaged = False  # in that run, so that this is its previous state
        self._started_from: dict[str, Any] | None = None  # the learner that this one started from, described
        self._family_in_file: dict[str, Any] | None = None

    def __repr__(self) -> str:
        return (f"FewShotLearner({self.family.id!r}, seed={self.seed}, device={str(self.device)!r}): "
                f"{self.state.iteration} iterations")  # fmt: skip

    def __getstate__(self) -> dict[str, Any]:
        """For pickle and deepcopy."""
        return portable(self) | {"_choices": Kept()}

    @torch_defaults
    def __setstate__(self, state: dict[str, Any]) -> None:
        restore(self, state)

    @torch_defaults
    def start_from(self, other: "FewShotLearner") -> "FewShotLearner":
        """Take over what another learner has learned: the network's parameters and, of the inner loop (step sizes,
        masks), what both learn; `learn` then continues from there. Settings, family and seed stay as they are here;
        iterations are counted from 0, and the outer optimiser starts anew.

        Args:
            other: a learner with the same network, on tasks of the same shapes and the same loss. For the best state of
                a run, pass `FewShotLearner.load(run / "best.safetensors", family)`.

        Raises:
            ValueError: this learner has trained already, or the two do not fit.

        Warns:
            UserWarning: the other has learned something about its inner loop that is not learned here.
        """
        if not isinstance(other, FewShotLearner):
            raise ValueError(f"start_from takes a FewShotLearner (FewShotLearner.load gives one), got {other!r}")
        name, own, its = f"few-shot learning on {other.family.id}", _signature(self.family), _signature(other.family)
        for what in ("x_shape", "outputs", "loss"):
            if own[what] != its[what]:
                raise ValueError(f"cannot start from {name}: its {what} is {its[what]!r}, here it is {own[what]!r}")
        activations = self.network.activation, other.network.activation
        start_from(self, other, ("this learner", name), activations)
        return self

    # -----------------------------------------------------------------------------------------------------------------
    # Training

    @known_arguments
    @torch_defaults
    def learn(
        self, iterations: int, *, run_dir: Path | str | None = None, callback: Any = None, progress_bar: bool = False,
        eval_every: int = 0, eval_tasks: int = 100, eval_steps: int | None = None,
        eval_step_sizes: Sequence[float] = (), checkpoint_every: int = 1000,
    ) -> "FewShotLearner":  # fmt: skip
        """Run `iterations` further meta-iterations.

        Args:
            run_dir: directory for metrics and checkpoints (without it, nothing is written). A directory that holds
                another run is refused; this learner's own run is continued.
            callback: called with the statistics of every iteration; returning False stops training. May also be a
                stable-baselines3 callback, or a list of both kinds (docs/stable_baselines3.md says which work).
            progress_bar: show iteration, loss, speed and remaining time.
            eval_every: iterations between evaluations on validation tasks, which select the best state; the last
                iteration is always followed by one; 0 disables them.
            eval_tasks: number of validation tasks per evaluation.
            eval_steps, eval_step_sizes: its inner steps, or one size per step; by default as in training.
            checkpoint_every: write the latest state after this many iterations, and when training ends or is
                interrupted.

        Raises:
            ValueError: invalid numbers, a directory with another run, or a meta-gradient that is not finite.
        """
        eval_step_sizes = positive_sizes("eval_step_sizes", eval_step_sizes)
        sizes = self._step_sizes(eval_steps, eval_step_sizes or None, self.config.inner_steps)
        options = Options(iterations, run_dir, callback, progress_bar, eval_every, eval_tasks, checkpoint_every,
                          {"eval_steps": len(sizes), "eval_step_sizes": list(eval_step_sizes)})  # fmt: skip
        learn(self, KIND, options, partial(self._evaluated, n_tasks=options.eval_tasks, sizes=sizes))
        return self

    def _step(self, state: State) -> tuple[State, Stats]:
        network = self.network.stacked.module if isinstance(self.network, ModuleNetwork) else self.network
        with second_derivatives_of(network):
            return maml.iteration(self.config, self.family, self.network, state, self.seed)

    def _evaluated(self, state: State, n_tasks: int, sizes: Sequence[float]) -> Stats:
        """Statistics of a periodic evaluation."""
        sets = self._draw(n_tasks, evaluation_seed(self.seed, PERIODIC), VALIDATION)
        losses, accuracies = self._evaluate(state, sets, sizes)
        stats = {f"eval/step_{k}": float(x) for k, x in enumerate(losses.mean(0))}
        if accuracies is not None:
            stats |= {f"eval/accuracy_{k}": float(x) for k, x in enumerate(accuracies.mean(0))}
        last, higher_is_better = _judged(losses, accuracies)
        return stats | {"eval/score": last if higher_is_better else -last}

    # -----------------------------------------------------------------------------------------------------------------
    # Evaluation and adaptation

    @known_arguments
    @torch_defaults
    def evaluate(
        self, n_tasks: int = 600, *, steps: int | None = None, step_sizes: Sequence[float] | None = None,
        shots: int | None = None, queries: int | None = None, sets: Sets | None = None, seed: int | None = None,
        split: str | None = None,
    ) -> Evaluation:  # fmt: skip
        """The adaptation curve on test tasks: loss (and accuracy) on query sets after 0, 1, ..., `steps` inner steps.

        Args:
            n_tasks: number of tasks to draw.
            steps: inner steps; by default as many as in training.
            step_sizes: one size per step (`steps` is then not needed). By default those used in training; the sizes of
                further steps are chosen on validation tasks.
            shots, queries: examples per set; by default as in training.
            sets: evaluate on these instead of drawing tasks.
            seed: seed of the tasks; by default derived from the run's seed.
            split: the split to draw from, by default `"test"`.

        Raises:
            ValueError: the family has no such split, or both `sets` and `split` are given.
        """
        sizes = self._step_sizes(steps, step_sizes, self.config.inner_steps)
        seed = evaluation_seed(self.seed, FINAL) if seed is None else whole("seed", seed, 0)
        n_tasks = whole("n_tasks", n_tasks, 1)
        shots = self.config.shots if shots is None else whole("shots", shots, 1)
        queries = self.config.queries if queries is None else whole("queries", queries, 1)
        if sets is not None and split is not None:
            raise ValueError(f"split={split!r} has no effect with sets=, because nothing is drawn: leave one out")
        split = GIVEN if sets is not None else split or TEST
        if sets is None:
            sets = self._draw(n_tasks, seed, split, shots, queries)
        check_sets(self.family, sets)
        sizes, choice = self._chosen_sizes(sizes, step_sizes, shots, queries)
        losses, accuracies = self._evaluate(self.state, sets, sizes)
        return Evaluation(losses, sizes, {"shots": shots, "queries": queries}, sets.parameters, seed, None, accuracies,
                          choice, split, LOSS)  # fmt: skip

    @known_arguments
    @torch_defaults
    def adapt(
        self, support_x: Any, support_y: Any, *, steps: int | None = None, step_sizes: Sequence[float] | None = None
    ) -> FewShotPredictor:  # fmt: skip
        """Adapt to one task; the meta-parameters are not changed.

        Args:
            support_x: [N, *x_shape], arrays or tensors.
            support_y: [N, A] values, or [N] class numbers starting at 0.
            steps: inner steps; by default as many as in training (at least 1).
            step_sizes: one size per step. By default those used in training; the sizes of further steps are chosen on
                validation tasks with the training's number of examples, as in `evaluate`.

        Raises:
            ValueError: the data do not have the family's shapes or types.
        """
        sizes = self._step_sizes(steps, step_sizes, max(1, self.config.inner_steps))
        x, y = as_tensor(support_x)[None], as_tensor(support_y)[None]
        sets = Sets(x, y, x, y)
        check_sets(self.family, sets)
        sizes, _ = self._chosen_sizes(sizes, step_sizes, self.config.shots, self.config.queries)
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

    def _chosen_sizes(
        self, usual: tuple[float, ...], given: Sequence[float] | None, shots: int, queries: int
    ) -> tuple[tuple[float, ...], Choice | None]:
        """`usual`, with the sizes of steps beyond those of training chosen on validation tasks, unless `given`."""
        known = self.config.inner_steps
        if given is not None or len(usual) <= known:
            return usual, None

        def make() -> Choice:
            sets = self._draw(_TRIED_ON, evaluation_seed(self.seed, STEP_SIZES), VALIDATION, shots, queries)
            rates = self.family.loss in ACCURACIES

            def play(sizes: tuple[float, ...]) -> tuple[float, int]:
                return _judged(*self._evaluate(self.state, sets, sizes))[0], 0

            return choose(play, usual, known, sets.n_tasks, LOSS.rate if rates else LOSS.name, higher_is_better=rates)

        choice, self._choices = choose_once(self._choices, self.state, (shots, queries, len(usual)), make)
        return choice.sizes, choice

    def _step_sizes(self, steps: int | None, sizes: Sequence[float] | None, otherwise: int) -> tuple[float, ...]:
        """The sizes of `steps` inner steps, `otherwise` if neither is given."""
        return checked_step_sizes(steps, sizes, lambda n: (self.config.inner_lr,) * n, otherwise)

    # -----------------------------------------------------------------------------------------------------------------
    # Saving and loading

    def describe(self) -> dict[str, Any]:
        """Family, settings and seed as JSON-serialisable data: everything needed to recreate this learner."""
        return {
            "family": _signature(self.family),
            "config": saved.settings_as_data(self.config),
            "seed": self.seed,
            "network": type(self.network).__name__,
        }

    @torch_defaults
    def save(self, path: Path | str) -> None:
        """Write a checkpoint: one file, replaced atomically."""
        checkpoint.save(new_file("path", path), *self._packed(self.state, self._best_score))

    def _packed(self, state: State, best: float | None) -> tuple[Params, dict[str, Any]]:
        return saved.packed(KIND, self.describe(), state, best)

    @classmethod
    @torch_defaults
    def load(
        cls, path: Path | str, family: SetFamily, *, network: nn.Module | None = None,
        device: str | torch.device = "auto",
    ) -> "FewShotLearner":  # fmt: skip
        """The learner as it was saved; further training continues bit for bit.

        Args:
            path: a checkpoint, or a run directory (its latest state or, before its first checkpoint, the initial
                state).
            family: a family equal to the one it was trained on.
            network: the module that the learner was created with, if any.

        Raises:
            CheckpointError: the file is damaged, or was saved with another family or network.
        """

        device = resolve_device(device)

        def make(file: Path, meta: dict[str, Any]) -> FewShotLearner:
            if (network is None) == (meta["network"] == ModuleNetwork.__name__):
                remedy = "pass that module as network=" if network is None else "leave network= out"
                raise CheckpointError(f"{file} was saved by a learner with a network of type {meta['network']}: "
                                      f"{remedy}")  # fmt: skip
            found = json.loads(json.dumps(_signature(family)))
            if found != meta["family"]:
                raise CheckpointError(f"{file} was trained on the family {meta['family']}, this one is {found}")
            return cls(family, network=network, seed=meta["seed"], device=device,
                       **saved.saved_settings(meta["config"]))  # fmt: skip

        return saved.load(KIND, file_path("path", path), make)


def make_config(values: Mapping[str, Any]) -> Config:
    """`Config` from a mapping. Raises ValueError for an unknown key, naming the nearest known one."""
    return config_from(Config, values, "few-shot learning")


def _judged(losses: np.ndarray, accuracies: np.ndarray | None) -> tuple[float, bool]:
    """The score of an adaptation after its last step (the mean accuracy or, without one, the mean loss), and whether
    higher is better."""
    return (float(losses[:, -1].mean()), False) if accuracies is None else (float(accuracies[:, -1].mean()), True)


def _unadapted(learner: FewShotLearner) -> FewShotPredictor:
    """The network before any adaptation."""
    return FewShotPredictor(learner.family, learner.network, learner.state.params, np.zeros(0))


def _signature(family: SetFamily) -> dict[str, Any]:
    return {"id": family.id, "x_shape": list(family.x_shape), "outputs": family.outputs, "loss": family.loss}
