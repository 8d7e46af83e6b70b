"""How near the inner gradient of E episodes comes to that of many, by the baseline that returns are compared with.

    python experiments/benchmarks/baseline.py --out experiments/benchmarks/results/baseline

For every family: K tasks, the initial policy, a reference gradient from `--reference` episodes a task (returns compared
with the mean over episodes at the same step), and `--batches` batches of 20 other episodes. Cosine of each batch's
inner gradient with the reference, and the share of the returns' variance that the baseline takes away from the episodes
that it was fitted to; means over tasks and batches. The value network (`baseline="value"`) has been fitted in
`--iterations` meta-iterations to other tasks' episodes with the same policy, 20 tasks with 20 episodes each, and never
to those that it is measured on. Writes `baseline.csv`.
"""

import argparse
import csv
import functools
import platform
import time
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import torch
from torch import Tensor

import metarl
from metarl.algorithms.maml_trpo import Config
from metarl.formulas import losses
from metarl.formulas.distributions import log_prob
from metarl.formulas.returns import discounted_returns
from metarl.inner import value_baseline
from metarl.inner.advantages import fitted_values
from metarl.inner.state import init
from metarl.params import expand
from metarl.policies.base import Policy
from metarl.policies.spaces import spaces_of
from metarl.rollout.rollout import Rollout
from metarl.rollout.sampler import Sampler

GAMMA = 0.99
FAMILIES = {
    "PointNavigation-v0": 100, "HalfCheetahDir-v0": 100, "HalfCheetahVel-v0": 100, "AntDir-v0": 50,
    "HumanoidDir-v0": 100,
}  # fmt: skip
Baseline = Callable[[Rollout, Tensor], Tensor]
"""(episodes, returns [K, T, E]) -> what they are compared with."""


def features(rollout: Rollout) -> Tensor:
    """Observation and its square, standardised over each task's valid steps, [K, N, F]."""
    K, T, E, O = rollout.obs.shape
    x = rollout.obs.double().clamp(-10, 10).reshape(K, T * E, O)
    x, weight = torch.cat([x, x**2], -1), rollout.mask.double().reshape(K, T * E, 1)
    mean = (x * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True)
    std = (((x - mean) ** 2 * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True)).sqrt()
    return (x - mean) / torch.where(std > 1e-6, std, torch.inf) * weight


def times(rollout: Rollout) -> Tensor:
    """1, t, t^2, t^3 with t in [-1, 1], [N, 4]."""
    T, E = rollout.mask.shape[1:]
    t = torch.linspace(-1, 1, T, dtype=torch.float64).repeat_interleave(E)
    return torch.stack([t**0, t, t**2, t**3], -1)


def ridge(rollout: Rollout, returns: Tensor, strength: float, folds: int = 0, per_feature: bool = True) -> Tensor:
    """Standardised features; the ridge is `strength` times the number of steps, and times features over steps where
    `per_feature`. With `folds`, an episode's values are of the fit to the episodes outside its own part."""
    K, T, E = rollout.mask.shape
    x, t, w = features(rollout), times(rollout), rollout.mask.double().reshape(K, T * E)
    out = torch.zeros(K, T * E, dtype=torch.float64)
    y = returns.double().reshape(K, T * E)
    episode = torch.arange(E).repeat(T)
    for k in range(K):
        on = w[k] > 0
        X, Y, e = torch.cat([x[k], t], -1)[on], y[k][on], episode[on]
        F = X.shape[1] - 4
        base = strength * (F if per_feature else len(X))
        penalty = torch.cat([torch.full((F,), base), torch.full((4,), 1e-8 * len(X))]).double()
        gram, right = X.T @ X, X.T @ Y
        if not folds:
            out[k, on] = X @ torch.linalg.solve(gram + penalty.diag(), right)
            continue
        fitted = torch.zeros_like(Y)
        for f in range(min(folds, E)):
            mine = e % min(folds, E) == f
            g, r = gram - X[mine].T @ X[mine], right - X[mine].T @ Y[mine]
            fitted[mine] = X[mine] @ torch.linalg.solve(g + penalty.diag(), r)
        out[k, on] = fitted
    return out.reshape(K, T, E)


def before(rollout: Rollout, returns: Tensor) -> Tensor:
    """Unscaled features, a ridge of 1e-5: what metarl did before."""
    K, T, E, O = rollout.obs.shape
    x = rollout.obs.double().clamp(-10, 10).reshape(K, T * E, O)
    t = torch.arange(T, dtype=torch.float64).repeat_interleave(E)[:, None] / 100
    x = torch.cat([x, x**2, *(t.expand(K, T * E, 1) ** n for n in range(4))], -1)
    w = rollout.mask.double().reshape(K, T * E, 1)
    eye = torch.eye(x.shape[-1], dtype=torch.float64)
    c = torch.linalg.solve(x.mT @ (x * w) + 1e-5 * eye, (x * w).mT @ returns.double().reshape(K, T * E, 1))
    return (x @ c).reshape(K, T, E)


def time_mean(rollout: Rollout, returns: Tensor) -> Tensor:
    """The mean over the episodes that are at the same step."""
    mask = rollout.mask.double()
    return ((returns * mask).sum(2, keepdim=True) / mask.sum(2, keepdim=True).clamp_min(1)).expand_as(returns)


BASELINES: dict[str, Baseline] = {
    "before": before,
    "time mean": time_mean,
    "cubic of the time": functools.partial(ridge, strength=1e9),
    **{f"ridge {s:g} F": functools.partial(ridge, strength=s) for s in (0.1, 1.0, 3.0, 10.0, 100.0)},
    **{f"{n} folds, ridge {s:g} F": functools.partial(ridge, strength=s, folds=n)
       for n in (5, 20) for s in (1.0, 10.0, 100.0)},
    "metarl": lambda rollout, _: fitted_values(rollout, GAMMA),
}  # fmt: skip


def gradient(policy: Policy, params: dict[str, Tensor], rollout: Rollout, baseline: Tensor, returns: Tensor) -> Tensor:
    """Every task's inner gradient with normalised advantages, [K, P]."""
    mask = rollout.mask.double()
    raw = (returns - baseline) * mask
    raw = (raw - losses.masked_mean(raw, mask)[:, None, None]) * mask
    advantage = raw / losses.masked_mean(raw**2, mask).sqrt()[:, None, None]
    own = {name: value.detach().clone().requires_grad_() for name, value in params.items() if name != "log_std"}
    dist = policy.distribution(params | own, rollout.obs)
    loss = losses.policy_gradient(log_prob(dist, rollout.act), advantage.float(), rollout.mask).sum()
    return torch.cat([g.flatten(1) for g in torch.autograd.grad(loss, list(own.values()))], 1)


def of_episodes(rollout: Rollout, some: slice) -> Rollout:
    """Some of the episodes."""
    cut = {f.name: getattr(rollout, f.name) for f in fields(rollout)}
    cut = {
        n: v[:, :, some]
        for n, v in cut.items()
        if isinstance(v, Tensor) and n in ("obs", "act", "rew", "mask", "log_prob")
    }
    return replace(
        rollout, **cut, dist=type(rollout.dist)(rollout.dist[0][:, :, some], *rollout.dist[1:]), success=None
    )


def value_network(sampler: Sampler, policy: Policy, params: dict[str, Tensor], args: argparse.Namespace) -> Baseline:
    """The baseline "value" after some iterations in which the policy stays as it is."""
    config = Config()
    network = value_baseline.start(policy.spaces, 1, config.value_hidden, torch.Generator().manual_seed(args.seed))
    for i in range(args.iterations):
        tasks = sampler.tasks(20, args.seed, i + 1)
        seen = sampler.collect(tasks, 20, policy, expand(params, 20), args.seed, i + 1, 0)
        network = value_baseline.fitted(network, [[seen]], GAMMA, config.value_lr, config.value_steps, i)
    return lambda rollout, _: value_baseline.values(network, rollout, GAMMA, 0)


def measure(name: str, horizon: int, args: argparse.Namespace) -> list[dict[str, object]]:
    """The rows of one family."""
    family = metarl.make(name, horizon=horizon)
    config = Config(n_tasks=args.tasks)
    policy = config.policy(spaces_of(family))
    state, sampler = init(config, policy, family, args.seed), Sampler(family)
    params = expand(state.params, args.tasks)
    tasks = sampler.tasks(args.tasks, args.seed, 0)
    start = time.perf_counter()
    whole = sampler.collect(tasks, args.reference + 20 * args.batches, policy, params, args.seed, 0, 0)
    print(f"{name}: {whole.steps} steps in {time.perf_counter() - start:.0f} s", flush=True)
    returns = discounted_returns(whole.rew.double(), GAMMA)
    known = of_episodes(whole, slice(0, args.reference))
    g = returns[:, :, : args.reference]
    reference = gradient(policy, params, known, time_mean(known, g), g)
    halves = [gradient(policy, params, of_episodes(known, h), time_mean(of_episodes(known, h), g[:, :, h]), g[:, :, h])
              for h in (slice(0, args.reference // 2), slice(args.reference // 2, args.reference))]  # fmt: skip
    agree = torch.cosine_similarity(*halves, 1).mean().item()
    rows = []
    baselines = BASELINES | {"value network": value_network(sampler, policy, state.params, args)}
    for label, baseline in baselines.items():
        cosines, shares, seconds = [], [], 0.0
        for b in range(args.batches):
            at = slice(args.reference + 20 * b, args.reference + 20 * (b + 1))
            own, mine = of_episodes(whole, at), returns[:, :, at]
            start = time.perf_counter()
            fit = baseline(own, mine)
            seconds += time.perf_counter() - start
            cosines.append(torch.cosine_similarity(gradient(policy, params, own, fit, mine), reference, 1))
            mask = own.mask.double()
            mean = losses.masked_mean(mine, mask)[:, None, None]
            shares.append(
                1 - losses.masked_mean((mine - fit) ** 2, mask) / losses.masked_mean((mine - mean) ** 2, mask)
            )
        cosine = torch.stack(cosines)
        rows.append({
            "family": name, "horizon": horizon, "baseline": label, "cosine": round(cosine.mean().item(), 4),
            "standard_error": round((cosine.std() / cosine.numel() ** 0.5).item(), 4),
            "explained": round(torch.stack(shares).mean().item(), 4), "halves_of_reference": round(agree, 4),
            "milliseconds": round(1000 * seconds / args.batches / args.tasks, 1),
        })  # fmt: skip
        print(rows[-1], flush=True)
    sampler.close()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--families", nargs="+", default=list(FAMILIES))
    parser.add_argument("--tasks", type=int, default=4)
    parser.add_argument("--reference", type=int, default=500)
    parser.add_argument("--batches", type=int, default=5)
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    rows = [row for name in args.families for row in measure(name, FAMILIES[name], args)]
    args.out.mkdir(parents=True, exist_ok=True)
    with (args.out / "baseline.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print(platform.processor() or platform.machine())


if __name__ == "__main__":
    main()
