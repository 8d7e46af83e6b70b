"""How noisy the meta-gradient is with each estimator of the inner gradient (Rothfuss et al. 2019, section 6.2).

    python experiments/gradient_variance/run.py exact                          # small MDPs, by enumeration
    python experiments/gradient_variance/run.py train --on tabular --seed 0    # along a training path; resumes
    python experiments/gradient_variance/run.py report                         # tables and figure of what was run

`train` meta-trains with MAML-TRPO (inner gradient: LVC) and stops now and then. There it holds parameters and tasks
and draws 20 meta-batches of episodes, before and after the inner step. On each of them every
estimator's meta-gradient is taken. They share the inner step: discount and lambda are 1, where the first derivatives of
all are the same numbers. The differences lie in what the outer loop sees of the inner gradient alone.

The standard deviation of a meta-gradient is the root of the summed variances of its components over the meta-batches;
the relative one is that over the norm of the mean, from which the part that is noise is taken off (the squared norm
of a mean of M is too large by the summed variances over M). It is given for the whole meta-gradient and for its
curvature part alone, which is the difference to the first-order meta-gradient on the same data.
"""

import argparse
import csv
import importlib
import itertools
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import metarl
from metarl.checkpoint import atomic_write, write_json
from metarl.formulas import losses
from metarl.inner.loop import evaluate
from metarl.inner.loss import Batch
from metarl.inner.state import State
from metarl.outer.objective import objectives, trained
from metarl.outer.trust_region import flatten, value_and_gradient, value_and_kl
from metarl.report import figures
from metarl.rollout.setup import Setup
from metarl.training.train import versions

HERE = Path(__file__).parent
RESULTS = HERE / "results"
META_BATCHES = 20
BOOTSTRAP = 2000
TASKS_SEED, EPISODES_SEED = 86_420, 1_000_003
COMMON: dict[str, Any] = {"gamma": 1.0, "gae_lambda": 1.0, "inner_gradient": "lvc", "cg_iterations": 10}
RUNS: dict[str, dict[str, Any]] = {
    "tabular": {
        "family": ("TabularMDP-v0", {}), "iterations": (0, 10, 20, 40, 80),
        "settings": {"n_tasks": 20, "episodes": 20, "hidden": (32, 32), "inner_lr": 1.0, "max_kl": 0.02},
    },
    "navigation": {
        "family": ("PointNavigation-v0", {}), "iterations": (0, 20, 40, 60),
        "settings": {"n_tasks": 10, "episodes": 20, "inner_lr": 0.5, "lr_in_std": True, "min_std": 0.4, "max_kl": 0.02},
    },
    "half_cheetah": {
        "family": ("HalfCheetahDir-v0", {"horizon": 100}), "iterations": (0, 25, 50, 100),
        "settings": {"n_tasks": 10, "episodes": 20, "inner_lr": 0.1, "min_std": 0.1, "max_kl": 0.02},
    },
}  # fmt: skip
"""`half_cheetah` has the inner step size of ProMP. Tasks are independent: more of them shrink all deviations alike."""
ESTIMATORS: dict[str, dict[str, Any]] = {
    "first order": {"first_order": True},
    "policy gradient": {"inner_gradient": "policy_gradient"},
    "LVC": {"inner_gradient": "lvc"},
    "loaded DiCE 0.5": {"inner_gradient": "loaded_dice", "dice_lambda": 0.5},
    "loaded DiCE 0.9": {"inner_gradient": "loaded_dice", "dice_lambda": 0.9},
    "loaded DiCE 1": {"inner_gradient": "loaded_dice", "dice_lambda": 1.0},
    "DiCE": {"inner_gradient": "dice"},
}
"""Loaded DiCE with lambda 1 is DiCE with the baseline in all orders; "DiCE" has it in the first order only."""


# ---------------------------------------------------------------------------------------------------------------------
# Along a training path


def meta_gradients(learner: metarl.MetaLearner, batch: int) -> Tensor:
    """Every estimator's meta-gradient on meta-batch number `batch` of the fixed tasks, float64 [estimators, n]."""
    config, state, policy = learner.config, learner.state, learner.policy
    tasks = learner.sampler.tasks(config.n_tasks, TASKS_SEED, 0)
    seed = EPISODES_SEED * (1 + state.iteration) + batch
    found = evaluate(
        Setup(config, learner.sampler, policy, seed), state, tasks, config.episodes, config.training_step_sizes()
    )  # fmt: skip
    data = [Batch.of(config, rollout) for rollout in found.rollouts]
    return torch.stack([meta_gradient(replace(config, **changed), policy, data, state)
                        for changed in ESTIMATORS.values()])  # fmt: skip


def meta_gradient(config: Any, policy: Any, data: list[Batch], state: State) -> Tensor:
    parts, meta = objectives(config, policy, data, state), trained(config, state)
    _, kl = value_and_kl(parts, meta)
    assert abs(kl) < 1e-4, f"{config.inner_gradient} does not take the step that the data came of: KL {kl}"
    return flatten(value_and_gradient(parts, meta)[1]).double()


class Noise:
    """Standard deviation and mean of vectors [M, n], and of resamples of them, from their products alone."""

    def __init__(self, samples: Tensor):
        self.gram = samples @ samples.T

    def std(self, weights: Tensor) -> Tensor:
        """Root of the summed variances. weights [..., M]: how often each sample counts, M in all."""
        return self._variance(weights).clamp_min(0).sqrt()

    def mean_norm(self, weights: Tensor) -> Tensor:
        """Norm of the mean without the part that is noise; not a number where nothing else is left."""
        m = len(self.gram)
        square = self._mean_square(weights) - self._variance(weights) / m
        return torch.where(square > 0, square, math.nan).sqrt()

    def _mean_square(self, weights: Tensor) -> Tensor:
        return ((weights @ self.gram) * weights).sum(-1) / len(self.gram) ** 2

    def _variance(self, weights: Tensor) -> Tensor:
        m = len(self.gram)
        return (weights @ self.gram.diagonal() - m * self._mean_square(weights)) / (m - 1)


def rows_of(samples: Tensor) -> list[dict[str, Any]]:
    """samples [M, estimators, n] -> one row for each estimator and part."""
    names, m = list(ESTIMATORS), len(samples)
    once = torch.ones(m, dtype=samples.dtype)
    draws = torch.randint(m, (BOOTSTRAP, m), generator=torch.Generator().manual_seed(0))
    resampled = torch.nn.functional.one_hot(draws, m).sum(1).to(samples.dtype)
    out = []
    for part, offset in (("meta-gradient", 0.0), ("curvature part", samples[:, :1])):
        noises = {name: Noise(x) for name, x in zip(names, (samples - offset).unbind(1), strict=True)}
        unbiased = samples[:, names.index("loaded DiCE 1")]
        for i, name in enumerate(names):
            if part == "curvature part" and i == 0:
                continue
            noise, lvc = noises[name], noises["LVC"]
            ratios = (noise.std(resampled) / lvc.std(resampled)).sort().values
            gap = Noise(samples[:, i] - unbiased).mean_norm(once) / noises["loaded DiCE 1"].mean_norm(once)
            out.append({
                "part": part, "estimator": name, "std": float(noise.std(once)),
                "mean_norm": float(noise.mean_norm(once)),
                "relative_std": float(noise.std(once) / noise.mean_norm(once)),
                "std_over_lvc": float(noise.std(once) / lvc.std(once)),
                "low": float(ratios[int(0.025 * BOOTSTRAP)]), "high": float(ratios[int(0.975 * BOOTSTRAP)]),
                "gap_to_unbiased": float(gap),
            })  # fmt: skip
    return out


def train(on: str, seed: int, runs: Path) -> None:
    run, directory = RUNS[on], runs / f"{on}-seed{seed}"
    path, rows = RESULTS / f"{on}-seed{seed}.csv", []
    if path.exists():
        rows = read_rows(path)
    (family, kwargs), learner = run["family"], None
    for iteration in run["iterations"]:
        if any(int(row["iteration"]) == iteration for row in rows):
            continue
        if learner is None and (directory / "latest.safetensors").exists():
            learner = metarl.MetaLearner.load(directory, device="cpu")
        elif learner is None:
            learner = metarl.MetaLearner("maml_trpo", metarl.make(family, **kwargs), seed=seed, device="cpu",
                                         **COMMON, **run["settings"])  # fmt: skip
        if learner.state.iteration < iteration:
            learner.learn(iteration - learner.state.iteration, run_dir=directory, progress_bar=False, eval_every=0)
        assert learner.state.iteration == iteration, f"{directory} is past iteration {iteration}: remove it"
        samples = torch.stack([meta_gradients(learner, b) for b in range(META_BATCHES)])
        rows += [{"iteration": iteration, **row} for row in rows_of(samples)]
        write_rows(path, rows)
        print(on, "seed", seed, "iteration", iteration,
              {row["estimator"]: round(row["std_over_lvc"], 2) for row in rows[-len(ESTIMATORS) + 1 :]})  # fmt: skip
        write_json(RESULTS / f"{on}-seed{seed}.json", {
            "on": on, "seed": seed, "family": [family, kwargs], "settings": learner.describe(),
            "meta_batches": META_BATCHES, "threads": torch.get_num_threads(), "versions": versions(),
        })  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------
# Exactly, on small MDPs

EXACT_HORIZONS, EXACT_MDPS = (2, 4, 6, 8), 20
META_HORIZON, META_EPISODES, META_LR = 3, (1, 2), 1.0
EXACT = ("policy gradient", "LVC", "loaded DiCE 0.5", "loaded DiCE 0.9", "loaded DiCE 1", "DiCE")


def exact_module() -> Any:
    """The enumeration is the tests' own."""
    sys.path.insert(0, str(HERE.parents[1] / "tests"))
    return importlib.import_module("exact")


def problem(horizon: int, seed: int) -> tuple[Any, Tensor, Tensor]:
    """A random MDP of two states and two actions, the logits of a policy [2, 2], and its values [T, 2]."""
    family = metarl.make("TabularMDP-v0", states=2, actions=2, horizon=horizon)
    mdp = exact_module().MDP.of(family, family.sample(1, np.random.default_rng(seed)))
    logits = torch.randn(2, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return mdp, logits, mdp.recursion(logits)[0][:-1]


def exact_hessians() -> list[dict[str, Any]]:
    """Bias and standard deviation of the Hessian estimated from one episode, summed over all trajectories."""
    rows = []
    for horizon, seed in itertools.product(EXACT_HORIZONS, range(EXACT_MDPS)):
        mdp, logits, _ = problem(horizon, seed)
        want = torch.func.hessian(mdp.value)(logits).flatten()
        p = mdp.probabilities(logits)
        for name in EXACT:
            found = -hessians(name, mdp, logits)
            mean = p @ found
            spread = (p @ ((found - mean) ** 2).sum(-1)).sqrt()
            bias = (mean - want).norm() / want.norm()
            rows.append({"horizon": horizon, "mdp": seed, "estimator": name, "bias": float(bias),
                         "std": float(spread / want.norm())})  # fmt: skip
    return rows


def exact_meta_gradients() -> list[dict[str, Any]]:
    """Distance of the expected meta-gradient to that of formulations I and II, and its standard deviation over the
    pre-adaptation episodes, in units of the norm of formulation I's."""
    exact, rows = exact_module(), []
    for episodes, seed in itertools.product(META_EPISODES, range(EXACT_MDPS)):
        mdp, logits, values = problem(META_HORIZON, seed)
        one = torch.func.grad(lambda x: mdp.formulation_i(x, META_LR, episodes, values))(logits)  # noqa: B023
        two = torch.func.grad(lambda x: mdp.formulation_ii(x, META_LR))(logits)  # noqa: B023
        for name in ("first order", *EXACT, "E-MAML"):

            def inner(log_prob: Tensor, data: Any, name: str = name, values: Tensor = values) -> Tensor:
                baseline = values[torch.arange(META_HORIZON)[None, :, None], data.obs.argmax(-1)]
                return estimated("policy gradient" if name in ("first order", "E-MAML") else name, log_prob,
                                 data.rew, baseline, data.mask)  # fmt: skip

            found, weight = exact.meta_gradients(
                mdp, logits, META_LR, episodes, inner, name == "E-MAML", name != "first order"
            )
            mean = torch.einsum("m,msa->sa", weight, found)
            spread = (weight @ ((found - mean) ** 2).sum((1, 2))).sqrt()
            rows.append({"episodes": episodes, "mdp": seed, "estimator": name,
                         "off_formulation_i": float((mean - one).norm() / one.norm()),
                         "off_formulation_ii": float((mean - two).norm() / one.norm()),
                         "std": float(spread / one.norm())})  # fmt: skip
    return rows


def hessians(estimator: str, mdp: Any, logits: Tensor) -> Tensor:
    """Of the loss of every trajectory by itself, [N, n * n]; the baseline is the exact value of the state."""
    states, actions, _ = mdp.paths
    values = mdp.recursion(logits)[0][torch.arange(mdp.horizon), states][..., None]  # [N, T, 1]
    x = logits.expand(len(states), *logits.shape).clone().requires_grad_()
    log_prob = torch.log_softmax(x, -1)[torch.arange(len(x))[:, None], states, actions][..., None]
    loss = estimated(estimator, log_prob, mdp.step_rewards[..., None], values, torch.ones_like(values))
    (gradient,) = torch.autograd.grad(loss.sum(), x, create_graph=True)
    rows = [torch.autograd.grad(g.sum(), x, retain_graph=True)[0].flatten(1) for g in gradient.flatten(1).unbind(1)]
    return torch.cat(rows, 1)


def estimated(estimator: str, log_prob: Tensor, reward: Tensor, baseline: Tensor, mask: Tensor) -> Tensor:
    """The loss [K] of an estimator; discount 1."""
    advantage = reward.flip(1).cumsum(1).flip(1) - baseline
    if estimator == "policy gradient":
        return losses.policy_gradient(log_prob, advantage, mask)
    if estimator == "LVC":
        return losses.surrogate(log_prob, log_prob.detach(), advantage, mask)
    if estimator == "DiCE":
        return losses.dice(log_prob, reward, baseline, mask, 1.0)
    return losses.loaded_dice(log_prob, advantage, mask, float(estimator.split()[-1]))


# ---------------------------------------------------------------------------------------------------------------------
# Tables and figure


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Numbers where they are numbers."""

    def value(text: str) -> Any:
        try:
            return float(text)
        except ValueError:
            return text

    with path.open(newline="") as file:
        return [{k: value(v) for k, v in row.items()} for row in csv.DictReader(file)]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    lines = [",".join(rows[0])]
    lines += [",".join(f"{v:.6g}" if isinstance(v, float) else str(v) for v in row.values()) for row in rows]
    RESULTS.mkdir(exist_ok=True)
    atomic_write(path, ("\n".join(lines) + "\n").encode())


def report() -> None:
    """From the committed files alone."""
    lines = exact_table() + exact_meta_table() if (RESULTS / "exact_meta.csv").exists() else []
    runs = {on: [read_rows(path) for path in sorted(RESULTS.glob(f"{on}-seed*.csv"))] for on in RUNS}
    runs = {on: seeds for on, seeds in runs.items() if seeds}
    for on, seeds in runs.items():
        for part in ("meta-gradient", "curvature part"):
            lines += path_table(on, part, seeds)
    table = "\n".join(lines)
    print(table)
    atomic_write(RESULTS / "table.md", (table + "\n").encode())
    draw(runs)


def exact_table() -> list[str]:
    rows = read_rows(RESULTS / "exact.csv")
    head = " | ".join(f"T = {t}" for t in EXACT_HORIZONS)
    lines = []
    for what in ("bias", "std"):
        lines += [f"| {what} of the Hessian over its norm, median of {EXACT_MDPS} MDPs | {head} |",
                  "|---|" + "---|" * len(EXACT_HORIZONS)]  # fmt: skip
        for name in EXACT:
            cells = [np.median([r[what] for r in rows if r["estimator"] == name and r["horizon"] == t])
                     for t in EXACT_HORIZONS]  # fmt: skip
            lines.append(f"| {name} | " + " | ".join("0" if c < 1e-9 else f"{c:.2f}" for c in cells) + " |")
        lines.append("")
    return lines


def exact_meta_table() -> list[str]:
    rows = read_rows(RESULTS / "exact_meta.csv")
    columns = [("off_formulation_i", "off formulation I"), ("off_formulation_ii", "off II"), ("std", "std")]
    head = [f"{text}, E = {e}" for e in META_EPISODES for _, text in columns]
    lines = [f"| expected meta-gradient, T = {META_HORIZON}, medians of {EXACT_MDPS} MDPs | " + " | ".join(head) + " |",
             "|---|" + "---|" * len(head)]  # fmt: skip
    for name in dict.fromkeys(row["estimator"] for row in rows):
        cells = [np.median([r[key] for r in rows if r["estimator"] == name and r["episodes"] == e])
                 for e in META_EPISODES for key, _ in columns]  # fmt: skip
        lines.append(f"| {name} | " + " | ".join("0" if c < 1e-9 else f"{c:.2f}" for c in cells) + " |")
    return [*lines, ""]


def path_table(on: str, part: str, seeds: list[list[dict[str, Any]]]) -> list[str]:
    iterations = sorted({row["iteration"] for rows in seeds for row in rows})
    lines = [f"| {on}, {part}, {len(seeds)} seed{'s' * (len(seeds) > 1)}: relative std (std over LVC's) at iteration | "
             + " | ".join(f"{i:.0f}" for i in iterations) + " |", "|---|" + "---|" * len(iterations)]  # fmt: skip
    for name in ESTIMATORS:
        cells = []
        for i in iterations:
            own = [r for rows in seeds for r in rows
                   if r["iteration"] == i and r["estimator"] == name and r["part"] == part]  # fmt: skip
            if own:
                relative = np.median([r["relative_std"] if r["relative_std"] == r["relative_std"] else math.inf
                                      for r in own])  # fmt: skip
                ratio = np.exp(np.mean(np.log([r["std_over_lvc"] for r in own])))
                cells.append(f"{relative:.2f} ({ratio:.2f})" if relative < math.inf else f"— ({ratio:.2f})")
        if cells:
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def draw(runs: dict[str, list[list[dict[str, Any]]]]) -> None:
    """Standard deviations over that of LVC through training: whole above, curvature part below each other."""
    if not runs:
        return
    figure, axes = figures.new_figure(len(runs), width=4.0)
    for ax, (on, seeds) in zip(axes, runs.items(), strict=True):
        for i, name in enumerate(ESTIMATORS):
            for part, style in (("meta-gradient", "-"), ("curvature part", ":")):
                points = [(r["iteration"], math.log(r["std_over_lvc"])) for rows in seeds for r in rows
                          if r["estimator"] == name and r["part"] == part]  # fmt: skip
                if not points or name == "LVC":
                    continue
                x = sorted({iteration for iteration, _ in points})
                y = [math.exp(np.mean([value for iteration, value in points if iteration == i])) for i in x]
                ax.plot(x, y, style, color=f"C{i}", marker="o", markersize=3,
                        label=name if part == "meta-gradient" else None)  # fmt: skip
        ax.axhline(1.0, color="0.5", linewidth=0.8)
        ax.axhline(1.6, color="0.5", linewidth=0.8, linestyle="--")
        ax.set(xlabel="meta-iteration", title=on.replace("_", " "), yscale="log")
    axes[0].set_ylabel("standard deviation over that of LVC")
    axes[0].legend(frameon=False, fontsize=7)
    figures.save_figure(figure, RESULTS / "gradient_variance.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("exact", "train", "report"))
    parser.add_argument("--on", choices=tuple(RUNS), default="tabular")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=Path, default=Path("runs/gradient_variance"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.command == "exact":
        write_rows(RESULTS / "exact.csv", exact_hessians())
        write_rows(RESULTS / "exact_meta.csv", exact_meta_gradients())
    elif args.command == "train":
        train(args.on, args.seed, args.runs)
    else:
        report()


if __name__ == "__main__":
    main()
