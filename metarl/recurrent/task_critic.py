"""A value function for training only, which sees the task and the policy's memory.

The return of a policy with a memory depends on its task, which it does not know: its own value head has to average over
all possible tasks, and a task's deviation from that average is noise in the advantages. In simulation the task is
known, and components that are used in training only may see it. A value that depends on memory *and* task leaves the
policy's gradient unbiased; one that depends on the task alone would not (Baisero and Amato 2022,
https://arxiv.org/abs/2105.11674; the idea is that of Pinto et al. 2018, https://arxiv.org/abs/1710.06542).

B trials of L steps; H units of the policy's memory, A its actions, D numbers that describe a task, M units here.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from metarl.formulas import distributions, losses
from metarl.formulas.distributions import Distribution, Gaussian
from metarl.parallel import thread_map
from metarl.params import Params
from metarl.policies.base import xavier
from metarl.policies.gru import GRUPolicy
from metarl.recurrent.sequences import Sequences, summed_up, trial_chunks


@dataclass(frozen=True)
class TaskCritic:
    """V(memory, task), where s describes a policy's step, d the task, and l is the fraction of the trial that remains:

        u = [relu(W_s s + W_d d + b), (A_s s + a_s) * (A_d d + a_d)]      y = relu(W_u [u, l u] + b_u)
        V = w [y, l y] + b_v

    Returns often are products of an action's probability, its reward in this task and the remaining time; hence the
    products. `w_value` [1, 2M] and `b_value` [1] have the same names as those of the policy.
    """

    policy: GRUPolicy
    task_dim: int
    """D."""
    units: int = 128
    """M."""

    @property
    def input_dim(self) -> int:
        """The length of s: the memory, the action distribution and, if the policy's inputs contain products of
        observations and actions, the products of the current observation with that distribution."""
        O, A = self.policy.spaces.obs_dim, self.policy.spaces.act_dim
        return self.policy.hidden + A + self.policy.products * O * A

    def init(self, generator: torch.Generator) -> Params:
        """Xavier-uniform weights, zero biases; the initial value is 0 everywhere."""
        S, D, M = self.input_dim, self.task_dim, self.units
        return {
            "w_sum_step": xavier(generator, (M, S), S, M), "w_sum_task": xavier(generator, (M, D), D, M),
            "b_sum": torch.zeros(M),
            "w_product_step": xavier(generator, (M, S), S, M), "b_product_step": torch.zeros(M),
            "w_product_task": xavier(generator, (M, D), D, M), "b_product_task": torch.zeros(M),
            "w_join": xavier(generator, (M, 4 * M), 4 * M, M), "b_join": torch.zeros(M),
            "w_value": torch.zeros(1, 2 * M), "b_value": torch.zeros(1),
        }  # fmt: skip

    def seen(self, hidden: Tensor, dist: Distribution, obs: Tensor) -> Tensor:
        """hidden [..., H], the actions' distribution [..., A], obs [..., O] -> s [..., S]."""
        doing = dist.mean if isinstance(dist, Gaussian) else distributions.probabilities(dist)
        parts = [hidden, doing]
        if self.policy.products:
            parts.append((obs[..., None] * doing[..., None, :]).flatten(-2))
        return torch.cat(parts, -1)

    def value(self, params: Params, seen: Tensor, task: Tensor, left: Tensor) -> Tensor:
        """seen [L, B, S], task [B, D], left [L] -> [L, B]."""
        assert seen.dim() == 3 and seen.shape[-1] == self.input_dim, (seen.shape, self.input_dim)
        assert task.shape == (seen.shape[1], self.task_dim) and left.shape == seen.shape[:1], (task.shape, left.shape)
        linear, share = torch.nn.functional.linear, left[:, None, None]
        of_task = linear(task, params["w_sum_task"], params["b_sum"])
        sums = torch.relu(linear(seen, params["w_sum_step"]) + of_task)
        factor = linear(task, params["w_product_task"], params["b_product_task"])
        products = linear(seen, params["w_product_step"], params["b_product_step"]) * factor
        both = torch.cat([sums, products], -1)
        joined = torch.relu(linear(torch.cat([both, share * both], -1), params["w_join"], params["b_join"]))
        return linear(torch.cat([joined, share * joined], -1), params["w_value"], params["b_value"])[..., 0]


@dataclass(frozen=True)
class CriticView:
    """The critic's inputs for B trials."""

    critic: TaskCritic
    seen: Tensor  # [L, B, S]
    task: Tensor  # [B, D]
    left: Tensor  # [L], the share of a trial that is not over before each step

    def __getitem__(self, trials: Tensor | slice) -> "CriticView":
        return replace(self, seen=self.seen[:, trials], task=self.task[trials])

    def value(self, params: Params) -> Tensor:
        """Values [L, B], differentiable, computed at once."""
        return self.critic.value(params, self.seen, self.task, self.left)

    @torch.no_grad()
    def values(self, params: Params) -> Tensor:
        """The same without gradients, in chunks of trials."""
        (L, B), device = self.seen.shape[:2], self.seen.device
        return torch.cat(thread_map(lambda chunk: self[chunk].value(params), trial_chunks(L, B, device)), 1)

    def gradient(self, params: Params, target: Tensor, mask: Tensor) -> Params:
        """The gradient of half the mean squared error over the valid steps; target, mask [L, B]."""

        def loss(params: Params, chunk: slice) -> tuple[Tensor, dict[str, Tensor]]:
            value = self[chunk].value(params)
            return losses.squared_error(value[None], target[None, :, chunk], mask[None, :, chunk])[0], {}

        return summed_up(loss, params, mask)[0]


@torch.no_grad()
def view_of(critic: TaskCritic, params: Params, data: Sequences, task: Tensor, length: int) -> CriticView:
    """The inputs of `critic` for the trials `data` with the tasks [B, D], collected with the policy parameters
    `params`. `length` is the maximum number of steps of a trial."""
    policy, O = critic.policy, critic.policy.spaces.obs_dim

    def of_chunk(chunk: slice) -> Tensor:
        x = data.x[:, chunk]
        hidden = policy.unroll(params, x, x.new_zeros(x.shape[1], policy.hidden))
        return critic.seen(hidden, policy.heads(params, hidden)[0], x[..., :O])

    L, B = data.mask.shape
    seen = torch.cat(thread_map(of_chunk, trial_chunks(L, B, data.mask.device)), 1)
    return CriticView(critic, seen, task, 1 - torch.arange(L, device=data.mask.device) / length)
