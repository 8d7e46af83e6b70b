"""Policy losses: tensors [K, T, E] in, one number per task [K] out, to be minimised.

Each is a mean over the task's own valid steps, so that an inner step size means the same for any number of tasks or
episodes, except `exploration`, which is an additional term rather than a loss and is a sum. Losses with the same first
derivatives differ in the second, which matters if an inner step is differentiated.
"""

import torch
from torch import Tensor


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean over each task's valid steps. x, mask [K, T, E] -> [K]."""
    _check(x, mask)
    return (x * mask).sum((1, 2)) / mask.sum((1, 2))


def per_episode(loss: Tensor, mask: Tensor) -> Tensor:
    """A loss [K] that is a mean over each task's valid steps, mask [K, T, E] -> the sum over them, divided by T E.

    The number of valid steps depends on the actions. If episodes end early, the mean over them is a ratio of two random
    numbers and therefore a biased estimate of the expected return per step and of its derivatives; this is unbiased.
    """
    return loss * mask.mean((1, 2))


def policy_gradient(log_prob: Tensor, advantage: Tensor, mask: Tensor) -> Tensor:
    """Likelihood-ratio policy gradient (REINFORCE): its gradient is -E[grad log pi * A]."""
    _check(log_prob, advantage, mask)
    return -masked_mean(log_prob * advantage, mask)


def surrogate(log_prob: Tensor, old_log_prob: Tensor, advantage: Tensor, mask: Tensor) -> Tensor:
    """The importance-weighted surrogate of TRPO (Schulman et al. 2015, eq. 14)."""
    _check(log_prob, old_log_prob, advantage, mask)
    return -masked_mean((log_prob - old_log_prob).exp() * advantage, mask)


def clipped_surrogate(
    log_prob: Tensor, old_log_prob: Tensor, advantage: Tensor, mask: Tensor, clip: float = 0.2
) -> Tensor:
    """PPO's pessimistic bound on `surrogate` (Schulman et al. 2017, https://arxiv.org/abs/1707.06347, eq. 7): no gain
    from a ratio outside [1 - clip, 1 + clip]."""
    _check(log_prob, old_log_prob, advantage, mask)
    ratio = (log_prob - old_log_prob).exp()
    return -masked_mean(torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage), mask)


def dice(log_prob: Tensor, reward: Tensor, baseline: Tensor | None, mask: Tensor, gamma: float) -> Tensor:
    """DiCE (Foerster et al. 2018, https://arxiv.org/abs/1802.05098): every derivative of it is an
    unbiased estimate of the same derivative of the expected discounted return, divided by the number of steps T, where
    all episodes have that number. Where they end early, every derivative of `per_episode` of it is one, and its own is
    biased, more so with few episodes: it is divided by a number that depends on the actions.

    The value is minus the mean over steps of gamma^t r_t. A reward depends on the probabilities of all earlier actions,
    and so do its derivatives. `baseline` [K, T, E] is subtracted from the return from each step on (a function of the
    state before the action; data); it affects the variance of the first derivative, not the value. The first derivative
    is `policy_gradient`'s for the advantage gamma^t (return from t on - baseline).
    """
    _check(log_prob, reward, mask, *([] if baseline is None else [baseline]))
    valid = log_prob * mask
    discount = gamma ** torch.arange(mask.shape[1], dtype=mask.dtype, device=mask.device)[:, None]
    objective = _magic_box(valid.cumsum(1)) * reward
    if baseline is not None:
        objective = objective + (1 - _magic_box(valid)) * baseline
    return -masked_mean(discount * objective, mask)


def loaded_dice(log_prob: Tensor, advantage: Tensor, mask: Tensor, lam: float) -> Tensor:
    """Loaded DiCE (Farquhar, Whiteson, Foerster 2019, https://arxiv.org/abs/1909.10549).

    The value is zero and the first derivative `policy_gradient`'s for every `lam`. In the second derivative the
    dependence of an advantage on the action t steps earlier is weighted by lam^t: fully with 1 (unbiased in every order
    if the advantages are, on the same condition as `dice`, and equal to `dice` if they are returns), not at all with 0
    (the derivative of `surrogate`, LVC), which is biased and has the lowest variance. With a discount gamma, it is
    gamma^t times the advantage of step t whose expectation is the derivative of the discounted return.
    """
    _check(log_prob, advantage, mask)
    times = torch.arange(mask.shape[1], device=mask.device)
    loads = (lam ** (times[:, None] - times).clamp_min(0).to(mask.dtype)).tril()  # [t, t' <= t]: lam^(t - t')
    valid = log_prob * mask
    own_and_before = torch.einsum("ts,kse->kte", loads, valid)
    before = own_and_before - valid
    return -masked_mean((_magic_box(own_and_before) - _magic_box(before)) * advantage, mask)


def exploration(log_prob: Tensor, old_log_prob: Tensor, score: Tensor, mask: Tensor) -> Tensor:
    """Credit to the pre-adaptation policy for the episodes it sampled: E-MAML's term (Stadie et al. 2018,
    https://arxiv.org/abs/1803.01118; formulation I of Rothfuss et al. 2019, https://arxiv.org/abs/1810.06784, sec. 4).

    Add it to the outer loss. At the acting parameters (log_prob = old_log_prob) its gradient is

        - score * sum over all pre-adaptation steps and episodes of grad log pi.

    The sum must not be replaced by a mean: the return of the adapted policy depends on the joint probability of all the
    data used for adaptation, so a mean would make the term T * E times too small. `score` [K], data, is the return of
    the task's adapted policy in the units of the outer loss. If the outer loss is a mean over post-adaptation steps of
    log pi times the return from that step on, the score is the mean reward per step, and the two gradients add up to an
    unbiased estimate of the gradient of formulation I, the expected mean reward per step after adaptation. If the outer
    advantages are divided by something, the score must be too. Anything that does not depend on these episodes may be
    subtracted from it (`metarl.outer.exploration.gain` is such a score).

    With several inner steps, add one such term for every stage's episodes, where `log_prob` belongs to the parameters
    that acted in that stage, as a function of the meta-parameters.

    Away from the acting parameters it is a surrogate like `surrogate`, with a ratio per step, and it is zero at the
    acting parameters. The exact weight, the product of the ratios over thousands of steps, would be useless for a line
    search or a second epoch; exp(x - stopgrad(x)) would not change from one candidate to the next.
    """
    _check(log_prob, old_log_prob, mask)
    assert score.shape == mask.shape[:1], f"expected one score per task [K], got {tuple(score.shape)}"
    return -score * torch.expm1((log_prob - old_log_prob) * mask).sum((1, 2))


def squared_error(value: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Half the mean squared error of a value function."""
    _check(value, target, mask)
    return 0.5 * masked_mean((value - target) ** 2, mask)


def _magic_box(x: Tensor) -> Tensor:
    """DiCE's operator: its value is 1, and its derivatives are those of exp(x) divided by exp(x)."""
    return (x - x.detach()).exp()


def _check(*tensors: Tensor) -> None:
    shapes = {tuple(t.shape) for t in tensors}
    assert len(shapes) == 1 and tensors[0].dim() == 3, f"expected equal shapes [K, T, E], got {sorted(shapes)}"
