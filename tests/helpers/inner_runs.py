"""An adaptation with MAML-TRPO in three inner steps."""

from dataclasses import replace

import torch
from probes import Drift, setup

from metarl.algorithms import maml_trpo
from metarl.inner import loop
from metarl.rollout.setup import Setup

RUN = maml_trpo.Config(n_tasks=3, episodes=4, hidden=(4,), inner_lr=0.2, inner_steps=3, output_gain=0.3, gamma=0.9)


def adaptation(config: maml_trpo.Config = RUN, n: int = 3, sizes: tuple[float, ...] = (0.2, 0.1, 0.2), family=None):
    sampler, policy, state = setup(family or Drift(), config)
    g = torch.Generator().manual_seed(2)
    learned = {name: value + 0.3 * torch.randn(value.shape, generator=g) for name, value in state.learned.items()}
    tasks = {name: value[:n] for name, value in sampler.tasks(3, 1, 0, "test").items()}
    state = replace(state, learned=learned)
    return policy, state, loop.evaluate(Setup(config, sampler, policy, 5), state, tasks, config.episodes, sizes)
