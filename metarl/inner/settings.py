"""Groups of settings shared by several algorithms. An algorithm's `Config` takes the groups it needs and adds its own.

Every field has a default and a documented meaning; invalid values are rejected with the value in the message.
"""

import copy
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

from torch import Tensor, nn

from metarl.arguments import (
    check_choice,
    check_fraction,
    check_not_negative,
    check_positive,
    check_types,
    check_whole,
)
from metarl.formulas import losses
from metarl.inner import value_baseline
from metarl.inner.advantages import FITS, Estimate, estimate, over, over_number
from metarl.inner.learned import LEARNED_LR, LearnedLr
from metarl.inner.loss import LossInput, policy_loss
from metarl.policies.cnn import CNNPolicy
from metarl.policies.mlp import MLPPolicy
from metarl.policies.module import ModulePolicy
from metarl.policies.spaces import Spaces
from metarl.policies.stacked_module import PREFIX
from metarl.rollout.rollout import Rollout

LOSS_PER = ("step", "episode")
BASELINES = ("linear", "value", "time", "none")
INNER_GRADIENTS = ("policy_gradient", "lvc", "dice", "loaded_dice")
INNER_OPTIMIZERS = ("sgd", "momentum", "adam", "natural")
ADAPTS = ("all", "head", "context")
NETWORKS = ("auto", "mlp", "cnn")


@dataclass(frozen=True)
class SamplingSettings:
    """How much experience is collected, and how rewards are credited to actions."""

    n_tasks: int = 20
    """K: tasks per meta-iteration."""
    episodes: int = 20
    """E: episodes per task, collected before the first inner step and again after each one."""
    gamma: float = 0.99
    """Discount."""
    gae_lambda: float = 1.0
    """Lambda of generalised advantage estimation; 1 gives the discounted return minus the baseline."""
    baseline: Literal["linear", "value", "time", "none"] = "linear"
    """The baseline subtracted from returns. "linear": a ridge regression on observation and time, fitted to each task's
    own episodes. "value": a value network shared by all tasks, one per stage of adaptation, trained across iterations;
    use it where a per-task fit overfits (few episodes, high-dimensional observations). "time": the mean over the task's
    episodes at the same time step. "none": no baseline; normalisation still subtracts the task's mean advantage."""
    value_hidden: tuple[int, ...] = (32, 32)
    """Units in the hidden layers of the value network."""
    value_lr: float = 3e-3
    """Adam's step size for the value network."""
    value_steps: int = 20
    """Adam steps for the value network per iteration, each on a minibatch of up to 4096 time steps."""
    reward_baseline: float | None = None
    """Subtract this number from every reward instead of subtracting a baseline from returns; advantages are then not
    normalised. A fitted baseline removes what the rewards say about the task as a whole, and with one episode per task
    it removes everything."""
    loss_per: Literal["step", "episode"] = "step"
    """What the inner and outer losses average over. "step": the task's valid steps, so that a step size means the same
    for long and short episodes. Where episodes end early the number of steps depends on the actions, which biases the
    gradient: typically by 10% with one episode and by 0.5% with 20. "episode": the sum over each episode's steps
    divided by the horizon, which is unbiased. Both are the same if no episode ends early."""
    normalize_obs: bool = False
    """Normalise observations to mean 0 and standard deviation 1 (clipped at 10) using running statistics of earlier
    training data; for vectors whose entries have different scales. The first iteration collects one extra rollout of
    the untrained policy to initialise the statistics."""

    def __post_init__(self) -> None:
        check_whole(self, n_tasks=1, episodes=1, value_steps=1)
        check_choice(self, loss_per=LOSS_PER, baseline=BASELINES)
        check_positive(self, "value_lr")
        if any(units < 1 for units in self.value_hidden):
            raise ValueError(f"value_hidden needs at least one unit in every layer, got {self.value_hidden}")
        check_fraction(self, "gamma", "gae_lambda")
        if self.reward_baseline is not None and not math.isfinite(self.reward_baseline):
            raise ValueError(f"reward_baseline must be finite, got {self.reward_baseline}")
        if self.reward_baseline is not None and self.baseline != "linear":
            raise ValueError(f"reward_baseline={self.reward_baseline} takes the place of a baseline: leave "
                             f"baseline={self.baseline!r} out")  # fmt: skip
        if self.baseline == "time" and self.episodes == 1:
            raise ValueError("baseline='time' is a mean over a task's episodes, and of the only one it leaves nothing: "
                             "set episodes to at least 2")  # fmt: skip


@dataclass(frozen=True)
class InnerSettings:
    """The inner loop: which gradient is used, what adapts, and how far."""

    inner_steps: int = 1
    """Inner gradient steps during training; 0 trains one policy on all tasks jointly."""
    inner_lr: float = 0.5
    """Step size of the inner loop. With a Gaussian policy its effect is proportional to 1 / init_std^2."""
    lr_schedule: tuple[float, ...] = ()
    """Factors on `inner_lr`, one per inner step; the last one applies to all later steps. Empty: all 1."""
    lr_in_std: bool = False
    """Measure inner step sizes in units of the meta-policy's current standard deviation (geometric mean over action
    dimensions). The policy gradient grows as the standard deviation shrinks during training; this keeps the step size
    from growing with it."""
    learned_lr: LearnedLr = "none"
    """Which factors on the inner step sizes the outer loop learns, all starting at 1: none, a single one ("scalar"),
    one per tensor and inner step ("per_layer_and_step", MAML++), or one per parameter ("per_parameter", Meta-SGD)."""
    learned_mask: bool = False
    """Learn which parameters adapt: each has a binary mask, initially open (sparse MAML, von Oswald et al. 2021)."""
    learned_std: bool = True
    """Let the outer loop train a Gaussian policy's pre-adaptation standard deviation. False keeps it at `init_std`: the
    outer loop tends to shrink it in order to act well, which also shrinks what the first episodes reveal about the
    task. Most useful together with `learned_noise`."""
    learned_noise: bool = False
    """Learn a change of a Gaussian policy's standard deviation after each inner step, so that the first episodes can
    explore and the adapted policy can act with less noise."""
    learned_discount: bool = False
    """Learn the discount of the inner loop's advantages by meta-gradient (Xu et al. 2018), starting at `gamma`."""
    learned_lambda: bool = False
    """Likewise for the lambda of the inner loop's advantages, starting at `gae_lambda`."""
    inner_gradient: Literal["policy_gradient", "lvc", "dice", "loaded_dice"] = "policy_gradient"
    """The inner gradient estimator, which determines what the outer loop differentiates. "policy_gradient": the
    gradient of log pi * A, as in MAML. "lvc": that of the importance-weighted return (low-variance curvature, Rothfuss
    et al. 2019, section 5): the same step, but its derivative accounts for the fact that other parameters would have
    sampled other episodes. "dice" (Foerster et al. 2018) is unbiased at every order but has a higher variance; it uses
    raw rewards, so `gae_lambda` then affects the outer loop only. "loaded_dice" (Farquhar et al. 2019) uses advantages
    and lies between the two."""
    dice_lambda: float = 1.0
    """Lambda of "loaded_dice": 0 has the same derivative as LVC, 1 is unbiased."""
    inner_optimizer: Literal["sgd", "momentum", "adam", "natural"] = "sgd"
    """The optimiser of the inner step. "momentum" and "adam" carry statistics from one inner step to the next, and are
    differentiated through; "natural" multiplies the gradient by the inverse Fisher matrix of each task's policy, which
    is practical for policies with a few hundred parameters."""
    inner_momentum: float = 0.9
    """Momentum coefficient of "momentum"."""
    inner_adam_eps: float = 1e-5
    """Added by "adam" to the root of the second moment: gradients far below it take proportional steps, those above it
    take steps of a fixed size. The meta-gradient through a parameter whose gradient is zero grows as 1 / this value."""
    natural_damping: float = 0.1
    """Multiple of the identity added to the Fisher matrix by "natural"."""
    adapts: Literal["all", "head", "context"] = "all"
    """What the inner loop adapts: the whole policy, its last layer (ANIL), or only the context vector (CAVIA)."""
    adapt_std: bool = False
    """Also adapt a Gaussian policy's standard deviation in the inner loop. A smaller one amplifies the noise of the
    next step's gradient: on 2D navigation this made adaptation over several steps unstable."""
    first_order: bool = False
    """Do not differentiate through the inner gradient (first-order MAML)."""
    first_order_until: int = 0
    """Use first-order meta-gradients for this many initial iterations (derivative-order annealing of MAML++)."""
    multi_step_until: int = 0
    """Weight the losses after all inner steps equally at first, shifting within this many iterations to the last one
    alone (multi-step loss of MAML++)."""
    exploration: float = 0.0
    """Weight of E-MAML's term, which credits the pre-adaptation policy with the returns its episodes led to. With
    weight 1 and the inner gradient "policy_gradient", the meta-gradient is that of the expected return after adaptation
    (formulation I of Rothfuss et al. 2019). The term is noisy; a smaller weight reduces that. It compares tasks, so it
    needs at least two. See docs/algorithms/gradients.md."""

    def __post_init__(self) -> None:
        check_choice(self, inner_gradient=INNER_GRADIENTS, inner_optimizer=INNER_OPTIMIZERS, adapts=ADAPTS)
        check_choice(self, learned_lr=LEARNED_LR)
        check_whole(self, inner_steps=0, first_order_until=0, multi_step_until=0)
        check_positive(self, "inner_lr", "inner_adam_eps")
        check_fraction(self, "dice_lambda", "inner_momentum")
        check_not_negative(self, "natural_damping", "exploration")
        if any(not 0 < factor < math.inf for factor in self.lr_schedule):
            raise ValueError(f"lr_schedule must have positive factors, got {self.lr_schedule}")

    @property
    def unit(self) -> str:
        """The unit of adaptation: an inner step, which has a size."""
        return "inner step"

    @property
    def sized_steps(self) -> int:
        """How many inner steps have their sizes fixed by the settings; those of later steps are chosen on
        validation."""
        return max(self.inner_steps, len(self.lr_schedule))

    def training_step_sizes(self, steps: int | None = None) -> tuple[float, ...]:
        """The sizes of the first `steps` inner steps (default: as many as in training), without learned factors."""
        factors = self.lr_schedule or (1.0,)
        n = self.inner_steps if steps is None else steps
        return tuple(self.inner_lr * factors[min(i, len(factors) - 1)] for i in range(n))

    def moving(self, names: Collection[str]) -> tuple[str, ...]:
        """The parameters among `names` that the inner step moves.

        Raises:
            ValueError: `adapts` has no meaning for a policy with these parameters.
        """
        own = [name for name in names if name != "log_std" or self.adapt_std]
        if self.adapts == "all":
            return tuple(own)
        if self.adapts == "context":
            if "context" not in names:
                raise ValueError("adapts='context' needs a policy with a context vector: set context to its size")
            return tuple(name for name in own if name in ("context", "log_std"))
        head = head_of(names)
        return tuple(name for name in own if name in head or name == "log_std")


def head_of(names: Collection[str]) -> set[str]:
    """The weights and biases among `names` of the last layer: the highest w0, w1, ..., or a module's last submodule."""
    layers = [name for name in names if name[:1] == "w" and name[1:].isdigit()]
    if layers:
        last = max(int(name[1:]) for name in layers)
        return {f"w{last}", f"b{last}"}
    own = [name for name in names if name.startswith(PREFIX)]
    last_module = own[-1].rpartition(".")[0]
    return {name for name in own if name.rpartition(".")[0] == last_module}


@dataclass(frozen=True)
class PolicySettings:
    """The policy's network. Actions are in policy units: 1 is half the range of a bounded action."""

    network: Literal["auto", "mlp", "cnn"] = "auto"
    """The policy's network: "cnn" puts convolutions before the hidden layers and needs image observations (a Box of
    uint8 in [0, 255], height x width x channels); "auto" chooses "cnn" for images and "mlp" otherwise."""
    channels: tuple[int, ...] = ()
    """Output channels of the convolutions (3 x 3, stride 2) of a "cnn". Empty: 16 channels each, in as many layers as
    reduce the image to at most 4 x 4."""
    hidden: tuple[int, ...] = (64, 64)
    """Units in the hidden layers of the policy."""
    activation: str = "tanh"
    """Activation of the hidden layers: tanh, relu or elu."""
    context: int = 0
    """Size of a context vector that is fed to the first layer along with the observation, initially zero. If all
    parameters adapt, it is a bias transformation (Finn et al. 2017b, https://arxiv.org/abs/1709.04905, section 4.3)."""
    init_std: float = 1.0
    """Initial standard deviation of a Gaussian policy."""
    min_std: float = 1e-3
    """Lower bound of that standard deviation. Gradients pass straight through it, so a policy at the bound can leave
    it."""
    input_gain: float = 1.0
    """Factor on the initial weights of the policy's first layer; use a value above 1 if observations are small."""
    output_gain: float = 0.01
    """Factor on the initial weights of the policy's last layer."""

    def __post_init__(self) -> None:
        check_choice(self, network=NETWORKS)
        check_whole(self, context=0)
        check_positive(self, "init_std", "min_std", "input_gain", "output_gain")
        for name in ("channels", "context"):
            wrong = "mlp" if name == "channels" else "cnn"
            if getattr(self, name) and self.network == wrong:
                raise ValueError(f"{name}={getattr(self, name)} has no meaning for network={wrong!r}")

    def policy(self, spaces: Spaces, module: nn.Module | None = None) -> MLPPolicy | CNNPolicy | ModulePolicy:
        """The policy that these settings describe, built around the user's own module if there is one."""
        if module is not None:
            if self.context:
                raise ValueError(f"context={self.context} is an input of the package's own network; with policy= "
                                 "leave it at 0")  # fmt: skip
            return ModulePolicy(spaces, copy.deepcopy(module).to("cpu"), self.init_std, self.min_std)
        rest = (
            tuple(self.hidden), self.activation, self.init_std, self.min_std, self.input_gain, self.output_gain
        )  # fmt: skip
        if self.network == "cnn" or (self.network == "auto" and spaces.image is not None):
            if self.context:
                raise ValueError(f"context={self.context} needs network='mlp'")
            return CNNPolicy(spaces, tuple(self.channels), *rest)
        if self.channels:
            raise ValueError(f"channels={self.channels} needs image observations, got {spaces.observation}")
        return MLPPolicy(spaces, *rest, self.context)


@dataclass(frozen=True)
class AdamSettings:
    """The outer loop's Adam optimiser."""

    outer_lr: float = 1e-3
    """Adam's step size for the policy."""
    learned_outer_lr: float = 1e-2
    """Adam's step size for what is learned about the inner loop (step-size factors, masks, discount, lambda)."""
    anneal_over: int = 0
    """Anneal both step sizes to `anneal_to` times their initial value over this many iterations, by a cosine schedule
    (MAML++); 0 keeps them constant."""
    anneal_to: float = 0.01
    """Final factor of that schedule."""
    max_grad_norm: float = 0.0
    """Clip the norm of the meta-gradient to this value; 0 disables clipping."""

    def __post_init__(self) -> None:
        check_positive(self, "outer_lr", "learned_outer_lr")
        check_whole(self, anneal_over=0)
        check_fraction(self, "anneal_to")
        check_not_negative(self, "max_grad_norm")


@dataclass(frozen=True)
class GradientSettings(PolicySettings, InnerSettings, SamplingSettings):
    """The settings shared by all gradient-based meta-learners."""

    def __post_init__(self) -> None:
        check_types(self)
        SamplingSettings.__post_init__(self)
        InnerSettings.__post_init__(self)
        PolicySettings.__post_init__(self)
        for name, start in (("learned_discount", "gamma"), ("learned_lambda", "gae_lambda")):
            if getattr(self, name) and not 0 < getattr(self, start) < 1:
                raise ValueError(
                    f"{name} starts at {start}, which must lie between 0 and 1, got {getattr(self, start)}"
                )
            if getattr(self, name) and (self.first_order or self.first_order_until):
                raise ValueError(f"{name} is learned through the inner gradient, which first_order leaves out")
            if getattr(self, name) and self.reward_baseline is not None:
                raise ValueError(f"{name} needs the fitted baseline: leave reward_baseline={self.reward_baseline} out")
            if getattr(self, name) and self.baseline == "value":
                raise ValueError(f"{name} moves what returns a baseline is of, and a value network is not fitted anew "
                                 "for it: take baseline='linear', 'time' or 'none'")  # fmt: skip
            if getattr(self, name) and self.inner_gradient == "dice":
                raise ValueError(f"{name} is of the inner loop's advantages, and inner_gradient='dice' has none: "
                                 "take 'loaded_dice'")  # fmt: skip
        if self.exploration and self.n_tasks == 1:
            raise ValueError(f"exploration={self.exploration} compares the returns of several tasks, got n_tasks=1: "
                             "set n_tasks to at least 2, or exploration to 0")  # fmt: skip
        if self.adapts == "context" and not self.context:
            raise ValueError("adapts='context' needs a context vector: set context to its size, 5 say")

    # What a Config of one's own may replace (docs/your_own_algorithm.md).

    def inner_loss(self, at: LossInput) -> Tensor:
        """The inner loss of every task on its own data, [K]. One of your own is differentiated automatically."""
        loss = policy_loss(at, self.inner_gradient, self.dice_lambda, self.gamma, self.gae_lambda, self.baseline)
        return losses.per_episode(loss, at.batch.rollout.mask) if self.loss_per == "episode" else loss

    def advantages(self, rollout: Rollout, state: Any, stage: int) -> Estimate | Tensor:
        """The advantages of the episodes before inner step `stage`, or after the last one. `state`: the algorithm's."""
        if self.reward_baseline is not None:
            return over_number(rollout, self.reward_baseline, self.gamma, self.gae_lambda)
        if self.baseline == "value":
            values = value_baseline.values(state.baseline, rollout, self.gamma, stage)
            return over(rollout, values, self.gamma, self.gae_lambda)
        return estimate(rollout, self.gamma, self.gae_lambda, FITS[self.baseline])

    def update_state(self, state: Any, stages: Sequence[Sequence[Rollout]]) -> Any:
        """The state with what else is learned from an iteration's episodes: here a value network's parameters.

        Args:
            state: as the meta-iteration leaves it.
            stages: for every stage, before each inner step and after the last, its rollouts.
        """
        if self.baseline != "value":
            return state
        network = value_baseline.fitted(
            state.baseline, stages, self.gamma, self.value_lr, self.value_steps, state.iteration
        )
        return replace(state, baseline=network)

    def at(self, iteration: int) -> Self:
        """These settings as they are in effect in meta-iteration `iteration`."""
        return replace(self, first_order=True) if iteration < self.first_order_until else self

    def step_weights(self, iteration: int) -> tuple[float, ...]:
        """The weights of the losses after inner steps 1 to `inner_steps` (after none of them, if there are none)."""
        return multi_step_weights(self.inner_steps, self.multi_step_until, iteration)


def multi_step_weights(steps: int, until: int, iteration: int) -> tuple[float, ...]:
    """Weights of the losses after inner steps 1 to `steps`: equal at first, from iteration `until` on the last one's
    alone (MAML++). Of the loss after none, if there are no steps."""
    steps = max(1, steps)
    left = max(0.0, 1 - iteration / until) if until else 0.0
    return (*(left / steps for _ in range(steps - 1)), 1 - left * (steps - 1) / steps)


def cosine(iteration: int, over: int, final: float) -> float:
    """A factor that goes from 1 to `final` in half a cosine wave over `over` iterations; 1 where `over` is 0."""
    if over == 0:
        return 1.0
    return final + (1 - final) * (1 + math.cos(math.pi * min(iteration / over, 1.0))) / 2


# ---------------------------------------------------------------------------------------------------------------------
# Checks
