"""Fisher products from one in n time steps: what a meta-update costs, and what its direction is still worth.

    python experiments/benchmarks/fisher_stride.py --out experiments/benchmarks/results/fisher_stride
    python experiments/benchmarks/fisher_stride.py --family HalfCheetahDir-v0 --horizon 200 --tasks 40 \
        --warm-up 5 --lr 1 --out experiments/benchmarks/results/fisher_stride_cheetah

At several points of one training run: the meta-update on the same data with every stride, timed in turn. `gain` is
what the direction promises, g.x / sqrt(x F x) with the gradient g and the Fisher matrix F of all steps, over the same
with a stride of 1: the share of the linear improvement that is left at the same KL divergence. The plain gradient
stands beside it, for scale. Run it on an idle machine.
"""

import argparse
import json
import statistics
import time
from collections import defaultdict
from pathlib import Path

import torch
from reporting import Rows, machine, show
from torch import Tensor

import metarl
from metarl.inner import loop
from metarl.outer import objective as outer
from metarl.outer import trust_region
from metarl.parallel import threads_over_tasks
from metarl.rollout.setup import Setup

STRIDES = (1, 2, 3, 4, 5, 10)


def direction(learner: metarl.MetaLearner, found: loop.Experience, stride: int) -> tuple[Tensor, Tensor, float]:
    """The meta-update's step, the gradient, and the seconds of the whole: gradient, Fisher products, line search."""
    config, state = learner.config, learner.state
    start = time.perf_counter()
    objectives = outer.objectives(config, learner.policy, found.data, state)
    fisher = None if stride == 1 else outer.fisher_objectives(config, learner.policy, found, state, stride)
    meta = outer.trained(config, state)
    new, _ = trust_region.trpo_step(
        meta, objectives, trust_region.TrustRegion(config.max_kl, config.damping, config.cg_iterations), fisher=fisher
    )
    seconds = time.perf_counter() - start
    gradient = trust_region.value_and_gradient(objectives, meta)[1]
    return trust_region.flatten(new) - trust_region.flatten(meta), trust_region.flatten(gradient), seconds


@threads_over_tasks
def compare(learner: metarl.MetaLearner) -> dict[str, tuple[float, float]]:
    """Stride -> the share of the gain that is left, and seconds."""
    found = loop.experience(Setup(learner.config, learner.sampler, learner.policy, learner.seed), learner.state)
    meta = outer.trained(learner.config, learner.state)
    whole = outer.objectives(learner.config, learner.policy, found.data, learner.state)
    linear = [trust_region._linearise(objective, meta) for objective in whole]

    def gain(x: Tensor) -> float:
        product = torch.stack([part.product(x) for part in linear]).sum(0)
        return float(-(gradient @ x) / torch.sqrt(x @ product))

    results = {}
    for stride in STRIDES:
        step, gradient, seconds = direction(learner, found, stride)
        results[str(stride)] = gain(step), seconds
    results["gradient"] = gain(-gradient), 0.0
    best = results["1"][0]
    return {name: (value / best, seconds) for name, (value, seconds) in results.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", default="PointNavigation-v0")
    parser.add_argument("--horizon", type=int, default=100)
    parser.add_argument("--tasks", type=int, default=20)
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--lr", type=float, default=0.5, help="the inner step size")
    parser.add_argument("--repeats", type=int, default=5, help="points of the training run")
    parser.add_argument("--warm-up", type=int, default=4, help="iterations before each point")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    settings = {
        "n_tasks": args.tasks,
        "episodes": args.episodes,
        "inner_lr": args.lr,
        "max_kl": 0.02,
        "cg_iterations": 10,
    }
    learner = metarl.MetaLearner("maml_trpo", metarl.make(args.family, horizon=args.horizon), seed=0, device="cpu",
                                 lr_in_std=True, min_std=0.1, **settings)  # fmt: skip
    found = defaultdict(list)
    for _ in range(args.repeats):
        learner.learn(args.warm_up)
        for name, values in compare(learner).items():
            found[name].append(values)
    rows: Rows = []
    for name, values in found.items():
        gains, seconds = zip(*values, strict=True)
        took = statistics.median(seconds)
        rows.append({"stride": name, "gain": statistics.mean(gains), "least gain": min(gains),
                     "seconds of an update": took or None, "of all steps": took / rows[0]["seconds of an update"]
                     if rows and took else None})  # fmt: skip
    show(f"{args.family}: the meta-update from one in `stride` time steps", rows)
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        text = {"settings": {**settings, "family": args.family, "horizon": args.horizon, "points": args.repeats},
                "machine": machine("cpu"), "rows": rows}  # fmt: skip
        (args.out / "fisher_stride.json").write_text(json.dumps(text, indent=2) + "\n")


if __name__ == "__main__":
    main()
