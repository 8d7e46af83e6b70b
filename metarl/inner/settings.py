"""Groups of settings that several algorithms share. An algorithm's `Config` takes the groups it needs and adds its own.

Every field has a default and a meaning; nonsense is refused with the value in the message.
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
    """What is rolled out, and how rewards are credited to actions."""

    n_tasks: int = 20
    """K: tasks per meta-iteration."""
    episodes: int = 20
    """E: episodes per task, before and again after every inner step."""
    gamma: float = 0.99
    """Discount."""
    gae_lambda: float = 1.0
    """Lambda of generalised advantage estimation; 1 is the discounted return minus the baseline."""
    baseline: Literal["linear", "value", "time", "none"] = "linear"
    """What returns are compared with. "linear": a ridge regression on observation and time, fitted to each task's own
    episodes. "value": a value network for all tasks, one for every stage of adaptation, trained from iteration to
    iteration; it replaces the fit where that takes up noise, with few episodes or long observations. "time": the mean
    over the task's episodes at the same step. "none": nothing; normalising then takes off the task's mean alone."""
    value_hidden: tuple[int, ...] = (64, 64)
    """Units in the hidden layers of the value network."""
    value_lr: float = 3e-3
    """Adam's step size for the value network."""
    value_steps: int = 40
    """Adam steps of the value network in every iteration, each on up to 4096 time steps."""
    reward_baseline: float | None = None
    """Compare every reward with this number, and not returns with a baseline that is fitted to the task's own; the
    advantages are then not normalised. A fit takes away what the rewards say of a task as a whole, and from a task's
    only episode everything."""
    loss_per: Literal["step", "episode"] = "step"
    """What the inner and outer losses are means over. "step": a task's own steps; a step size then means the same in
    tasks with long and with short episodes. Where episodes end early, how many steps there are depends on the actions,
    and the mean over them is biased, typically by a tenth with one episode and by a two-hundredth with 20. "episode":
    the sum over each episode's steps divided by the horizon, without that bias. The same if no episode ends early."""
    normalize_obs: bool = False
    """Give the policy observations with mean 0 and standard deviation 1 (cut off at 10), by running statistics of the
    training data before this meta-iteration: for vectors whose entries have different scales. The first iteration rolls
    the untrained policy out once more for its first statistics."""

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
    """The inner loop: by which gradient, what adapts, how far."""

    inner_steps: int = 1
    """Inner gradient steps in training; 0 trains one policy on all tasks jointly."""
    inner_lr: float = 0.5
    """Step size of the inner loop. With a Gaussian policy it acts in proportion to 1 / init_std^2."""
    lr_schedule: tuple[float, ...] = ()
    """Factors on `inner_lr`, one for every inner step; the last one holds for all later steps. Empty: all 1."""
    lr_in_std: bool = False
    """Measure the inner step sizes in units of the meta-policy's present standard deviation (the geometric mean over
    actions). The policy gradient grows as the standard deviation shrinks in training; with this the step does not."""
    learned_lr: LearnedLr = "none"
    """What the outer loop learns of the inner step sizes, as factors that start at 1: nothing, one factor ("scalar"),
    one for every tensor and step ("per_layer_and_step", MAML++), one for every number ("per_parameter", Meta-SGD)."""
    learned_mask: bool = False
    """Learn which numbers adapt: each has a mask of its own, open at first (sparse MAML, von Oswald et al. 2021)."""
    learned_std: bool = True
    """Learn a Gaussian policy's standard deviation before adaptation. False keeps it at `init_std` for good: the outer
    loop makes it small to act well, and with it goes what the first episodes can tell about the task. Pays together
    with `learned_noise`."""
    learned_noise: bool = False
    """Learn by how much a Gaussian policy's standard deviation changes after each inner step of training: the first
    episodes may explore, and the adapted policy act with less noise."""
    learned_discount: bool = False
    """Learn the discount of the inner loop's advantages by the meta-gradient (Xu et al. 2018); it starts at `gamma`."""
    learned_lambda: bool = False
    """Learn the lambda of the inner loop's advantages likewise; it starts at `gae_lambda`."""
    inner_gradient: Literal["policy_gradient", "lvc", "dice", "loaded_dice"] = "policy_gradient"
    """What the outer loop differentiates of the inner gradient. "policy_gradient": the gradient of log pi * A, as in
    MAML. "lvc": of the importance-weighted return (low-variance curvature, Rothfuss et al. 2019, section 5): the same
    step, but its derivative also sees that other parameters would have sampled other episodes. "dice" (Foerster et al.
    2018) is unbiased at any order, at a higher variance, and takes rewards as they are: `gae_lambda` is then of the
    outer loop alone. "loaded_dice" (Farquhar et al. 2019) takes advantages and lies between the two."""
    dice_lambda: float = 1.0
    """Lambda of "loaded_dice": 0 has the derivative of LVC, 1 is unbiased."""
    inner_optimizer: Literal["sgd", "momentum", "adam", "natural"] = "sgd"
    """What the inner step makes of the gradient. "momentum" and "adam" carry statistics from one inner step to the
    next, all differentiated; "natural" multiplies by the inverse Fisher matrix of each task's policy: for policies of
    a few hundred parameters."""
    inner_momentum: float = 0.9
    """Factor of "momentum"."""
    inner_adam_eps: float = 1e-5
    """Added to the root of the second moment by "adam": gradients far below it take steps in proportion to themselves,
    those above it steps of one size. The meta-gradient through a number whose gradient is zero grows as 1 / this."""
    natural_damping: float = 0.1
    """Multiple of the identity added to the Fisher matrix of "natural"."""
    adapts: Literal["all", "head", "context"] = "all"
    """What the inner loop moves: all of the policy; the last layer (ANIL); the context vector alone (CAVIA)."""
    adapt_std: bool = False
    """Whether the inner step moves a Gaussian policy's standard deviation too. It multiplies the noise of the next
    step's gradient: on 2D navigation adaptation over several steps became unstable with it."""
    first_order: bool = False
    """Leave the inner gradient out when differentiating (first-order MAML)."""
    first_order_until: int = 0
    """Do so for this many iterations at first (derivative-order annealing of MAML++)."""
    multi_step_until: int = 0
    """Weigh the losses after all inner steps equally at first, and within this many iterations only the last one
    (multi-step loss of MAML++)."""
    exploration: float = 0.0
    """Weight of E-MAML's term, which credits the pre-adaptation policy with what its episodes led to. With 1, and the
    inner gradient "policy_gradient", the meta-gradient is that of the expected return after adaptation on the episodes
    that one gets (formulation I of Rothfuss et al. 2019); the term is mostly noise, which a smaller weight lowers. It
    compares tasks, so it needs at least two. See docs/algorithms/gradients.md."""

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
        """What one unit of adaptation is: a step with a size."""
        return "inner step"

    @property
    def sized_steps(self) -> int:
        """How many inner steps have sizes that the settings fix; those of later ones are chosen."""
        return max(self.inner_steps, len(self.lr_schedule))

    def training_step_sizes(self, steps: int | None = None) -> tuple[float, ...]:
        """The sizes of the first `steps` inner steps (by default as many as in training), without learned factors."""
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
    """The policy's network: "cnn" has convolutions before the hidden layers and needs image observations (a Box of
    uint8 in [0, 255], height x width x channels); "auto" is "cnn" where they are images, else "mlp"."""
    channels: tuple[int, ...] = ()
    """Channels of the convolutions (3 x 3, stride 2) of a "cnn". Empty: 16 in as many as bring the image to 4 x 4 or
    less."""
    hidden: tuple[int, ...] = (64, 64)
    """Units in the hidden layers of the policy."""
    activation: str = "tanh"
    """Activation of the hidden layers: tanh, relu or elu."""
    context: int = 0
    """Numbers in a context vector that is an input to the first layer beside the observation, zero at first. Where all
    parameters adapt it is a bias transformation (Finn et al. 2017b, https://arxiv.org/abs/1709.04905, section 4.3)."""
    init_std: float = 1.0
    """Initial standard deviation of a Gaussian policy."""
    min_std: float = 1e-3
    """Floor of that standard deviation. Its derivative passes straight through: a policy on the floor can leave it."""
    input_gain: float = 1.0
    """Factor on the initial weights of the policy's first layer: above 1 where observations are small numbers."""
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
        """The policy that these settings describe, around the user's own module, where there is one."""
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
    """An outer loop of Adam steps."""

    outer_lr: float = 1e-3
    """Adam's step size for the policy."""
    learned_outer_lr: float = 1e-2
    """Adam's step size for what is learned about the inner loop (factors of step sizes, masks, discount, lambda)."""
    anneal_over: int = 0
    """Bring both down to `anneal_to` times themselves over this many iterations, by a cosine (MAML++); 0: constant."""
    anneal_to: float = 0.01
    """What they end at, as a factor."""
    max_grad_norm: float = 0.0
    """Largest norm of the meta-gradient, which is scaled down to it; 0: any."""

    def __post_init__(self) -> None:
        check_positive(self, "outer_lr", "learned_outer_lr")
        check_whole(self, anneal_over=0)
        check_fraction(self, "anneal_to")
        check_not_negative(self, "max_grad_norm")


@dataclass(frozen=True)
class GradientSettings(PolicySettings, InnerSettings, SamplingSettings):
    """The settings that all gradient-based meta-learners share."""

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

    def advantages(self, rollout: Rollout, state: Any, stage: int) -> Estimate:
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
