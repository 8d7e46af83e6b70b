"""MAML with a TRPO outer step: robust, but the slowest per iteration.

Finn, Abbeel, Levine 2017, https://arxiv.org/abs/1703.03400, section 4.2.

One iteration, top to bottom:
    tasks                     K tasks from the training split
    data_0 .. data_{S-1}      roll out, step each task's parameters on its own data, repeat
    data_S                    roll out the adapted policies
    outer step                TRPO on the adapted policies' surrogate, differentiating through the S inner steps
"""

import math
import time
from dataclasses import dataclass
from typing import Any

from metarl.arguments import check_not_negative, check_positive, check_whole
from metarl.inner.loop import advance, evaluate, experience, surveyed
from metarl.inner.settings import GradientSettings
from metarl.inner.state import State, init, learned_statistics
from metarl.outer.objective import fisher_objectives, objectives, trained
from metarl.outer.trust_region import TrustRegion, trpo_step
from metarl.parallel import threads_over_tasks
from metarl.rollout.finite import SMALLER_STEPS, NotFiniteError
from metarl.rollout.setup import Setup

__all__ = ["Config", "State", "evaluate", "init", "iteration"]


@dataclass(frozen=True)
class Config(GradientSettings):
    """Settings of MAML-TRPO."""

    max_kl: float = 0.01
    """Upper bound on the KL divergence of a meta-update, averaged over states and tasks."""
    damping: float = 1e-5
    """Multiple of the identity added to the Fisher matrix."""
    cg_iterations: int = 5
    """Maximum number of conjugate-gradient iterations (Fisher-vector products) per meta-update. TRPO's published code
    uses 10. On 2D navigation and the half cheetah 5 learn more in less time; on random MDPs 10 learn more
    (experiments/benchmarks)."""
    max_backtracks: int = 15
    """Maximum number of candidates tried by the line search."""
    backtrack: float = 0.8
    """Factor by which each candidate's step is shorter than the one before."""
    graph_tasks: int | None = None
    """Number of tasks whose computation graphs are kept between Fisher-vector products (None: all). A lower number
    saves memory at the cost of time; results are the same."""
    fisher_stride: int = 1
    """Use every n-th time step only in Fisher-vector products. Consecutive states are largely redundant: 3 saves two
    fifths of the meta-update's time and changes its direction slightly. Gradient and line search use all time steps."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole(self, cg_iterations=1, max_backtracks=1, graph_tasks=0, fisher_stride=1)
        check_positive(self, "max_kl")
        if not 0 < self.backtrack < 1:
            raise ValueError(f"backtrack must lie in (0, 1), got {self.backtrack}")
        check_not_negative(self, "damping")
        whole = {"inner_gradient": ("dice", "loaded_dice"), "learned_discount": (True,), "learned_lambda": (True,)}
        for name, values in whole.items():
            if self.fisher_stride > 1 and getattr(self, name) in values:
                raise ValueError(f"fisher_stride={self.fisher_stride} skips time steps, but "
                                 f"{name}={getattr(self, name)!r} needs whole episodes: leave it at 1")  # fmt: skip


@threads_over_tasks
def iteration(setup: Setup[Config], state: State) -> tuple[State, dict[str, Any]]:
    """One meta-iteration, a function of `setup` and `state` only -> the next state and statistics (docs/logging.md)."""
    config, policy = setup.config, setup.policy
    start, state = time.perf_counter(), surveyed(setup, state)
    found = experience(setup, state)
    parts, fisher = objectives(config, policy, found.data, state), None
    if config.fisher_stride > 1:
        fisher = fisher_objectives(config, policy, found, state, config.fisher_stride)
    kept = None if config.graph_tasks is None else config.graph_tasks * len(fisher or parts) // config.n_tasks
    region = TrustRegion(config.max_kl, config.damping, config.cg_iterations, config.max_backtracks, config.backtrack)
    meta, outer = trpo_step(trained(config, state), parts, region, kept, fisher)
    if not math.isfinite(outer["gradient_norm"] + outer["loss_before"]):
        raise NotFiniteError(
            f"the meta-gradient of iteration {state.iteration + 1} has the norm "
            f"{outer['gradient_norm']} at a loss of {outer['loss_before']}: {SMALLER_STEPS}"
        )
    new = advance(config, state, found, meta)
    stats = found.statistics(config) | learned_statistics(new)
    stats |= {f"outer/{name}": value for name, value in outer.items()}
    stats |= {"time/rollout": found.seconds, "time/update": time.perf_counter() - start - found.seconds}
    return new, stats
