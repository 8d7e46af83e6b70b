"""What to hold a learner of Bernoulli bandits against: classical strategies and the Bayes-optimal value.

A strategy maps what was seen so far to the next arm, for N instances at once. `play` lets it loose on arms whose
probabilities `p` [N, arms] it is not told. All of them believe at first that a probability is uniform in [0, 1]: after
s wins and f losses it is Beta(1 + s, 1 + f) to them. Ties go to the arm with the lowest number: the arms of
`BernoulliBandit` are exchangeable, so that costs nothing.

    p = metarl.make("BernoulliBandit-v0").sample(1000, np.random.default_rng(0), "test")["p"]
    play(gittins(0.99, pulls=100), p, pulls=100, rng=np.random.default_rng(1)).sum(1).mean()
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Seen:
    """What N players have seen after `pulls` pulls each."""

    wins: np.ndarray  # int64 [N, arms]
    losses: np.ndarray  # int64 [N, arms]
    pulls: int

    @property
    def mean(self) -> np.ndarray:
        """Posterior mean of every arm's probability, [N, arms]."""
        return (self.wins + 1) / (self.wins + self.losses + 2)


Strategy = Callable[[Seen, np.random.Generator], np.ndarray]
"""(what was seen, random numbers) -> the arm of every instance, int64 [N]."""


def play(strategy: Strategy, p: np.ndarray, pulls: int, rng: np.random.Generator) -> np.ndarray:
    """Rewards bool [N, pulls] of `strategy` on arms that pay with the probabilities `p` [N, arms]."""
    assert p.ndim == 2, f"p has the shape [N, arms], got {p.shape}"
    every = np.arange(len(p))
    wins, losses = np.zeros(p.shape, np.int64), np.zeros(p.shape, np.int64)
    rewards = np.zeros((len(p), pulls), bool)
    for t in range(pulls):
        arm = strategy(Seen(wins, losses, t), rng)
        assert arm.shape == every.shape, (arm.shape, every.shape)
        rewards[:, t] = won = rng.random(len(p)) < p[every, arm]
        wins[every, arm] += won
        losses[every, arm] += ~won
    return rewards


# ---------------------------------------------------------------------------------------------------------------------
# The strategies


def uniform(seen: Seen, rng: np.random.Generator) -> np.ndarray:
    """Every arm equally often."""
    return rng.integers(seen.wins.shape[1], size=len(seen.wins))


def thompson(seen: Seen, rng: np.random.Generator) -> np.ndarray:
    """Thompson sampling: an arm as often as it is believed to be the best (Thompson 1933)."""
    return rng.beta(1 + seen.wins, 1 + seen.losses).argmax(1)


def ucb1(c: float) -> Strategy:
    """UCB1 (Auer et al. 2002) on posterior means, its bonus times `c`: mean + c sqrt(2 log t / (n + 2)), t = 1, 2, ...

    With the sample mean it would have to pull every arm once before anything else. `c` = 1 is the bonus of the paper;
    RL2's tables (Duan et al. 2016, https://arxiv.org/abs/1611.02779) have the constant that does best.
    """

    def choose(seen: Seen, rng: np.random.Generator) -> np.ndarray:
        bonus = np.sqrt(2 * np.log(seen.pulls + 1) / (seen.wins + seen.losses + 2))
        return (seen.mean + c * bonus).argmax(1)

    return choose


def epsilon_greedy(epsilon: float) -> Strategy:
    """The arm with the largest posterior mean; with probability `epsilon` any arm."""

    def choose(seen: Seen, rng: np.random.Generator) -> np.ndarray:
        explore = rng.random(len(seen.wins)) < epsilon
        return np.where(explore, uniform(seen, rng), seen.mean.argmax(1))

    return choose


def explore_then_commit(explore: int, arms: int | None = None) -> Strategy:
    """`explore` pulls in turns (of the first `arms` arms only, if that is given), then always the arm with the largest
    posterior mean at that moment, which is the most that one adaptation step on `explore` pulls can do.

    Holds the choice of the players it plays with: make a new one for every `play`.
    """
    chosen: list[np.ndarray] = []

    def choose(seen: Seen, rng: np.random.Generator) -> np.ndarray:
        n, total = seen.wins.shape
        if seen.pulls < explore:
            return np.full(n, seen.pulls % (arms or total))
        if not chosen:
            chosen.append(seen.mean.argmax(1))
        return chosen[0]

    return choose


def gittins(discount: float, pulls: int) -> Strategy:
    """The arm with the largest Gittins index: the best that can be done for the sum of discount^t times reward over
    an infinite time (Gittins 1979). `pulls` is how many there will be."""
    index = gittins_indices(discount, pulls)
    return lambda seen, rng: index[seen.wins, seen.losses].argmax(1)


# ---------------------------------------------------------------------------------------------------------------------
# Gittins indices and Bayes-optimal values


@functools.lru_cache(16)
def gittins_indices(discount: float, pulls: int, ahead: int | None = None, grid: int = 401) -> np.ndarray:
    """Gittins indices of an arm with s wins and f losses: float64 [pulls + 1, pulls + 1], NaN where s + f > pulls.

    By calibration (Gittins, Glazebrook, Weber 2011, "Multi-armed bandit allocation indices", section 8.4): against
    an arm that is known to pay r for ever, what is an arm worth by dynamic programming over its own future? The index
    is the r at which going on with it is worth just as much as r. All r of a grid are worked on at once, and the
    index lies where a straight line between two of them crosses zero: good to 1e-5 for the first few pulls, to 5e-4 for
    all of 100.

    Args:
        ahead: pulls looked ahead beyond `pulls`, after which the posterior mean counts as the truth. None: as many as
            bring `discount` to 1e-4, 1,000 at most.

    Raises:
        ValueError: a discount outside (0, 1).
    """
    if not 0 < discount < 1:
        raise ValueError(f"discount must lie in (0, 1), got {discount}")
    if ahead is None:
        ahead = int(min(1000, np.ceil(np.log(1e-4) / np.log(discount))))
    known = (0.5 - 0.5 * np.cos(np.linspace(0, np.pi, grid)))[:, None]  # dense near 0 and 1, where indices crowd
    value = np.maximum(
        known, _means(pulls + ahead)
    )  # [grid, s]; worths in units of reward per pull: times 1 - discount
    index = np.full((pulls + 1, pulls + 1), np.nan)
    for level in reversed(range(pulls + ahead)):
        mean = _means(level)
        go_on = (1 - discount) * mean + discount * (mean * value[:, 1:] + (1 - mean) * value[:, :-1])
        value = np.maximum(known, go_on)
        if level <= pulls:
            wins = np.arange(level + 1)
            index[wins, level - wins] = _crossing(go_on - known, known[:, 0])
    return index


def _means(level: int) -> np.ndarray:
    """Posterior means of an arm after `level` pulls with 0, 1, ..., `level` wins."""
    return (np.arange(level + 1) + 1) / (level + 2)


def _crossing(surplus: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Where the columns of `surplus` [grid, n], positive at first and negative at last, cross zero over `x` [grid]."""
    last = (surplus > 0).sum(0) - 1
    above = np.take_along_axis(surplus, last[None], 0)[0]
    below = np.take_along_axis(surplus, last[None] + 1, 0)[0]
    return x[last] + (x[last + 1] - x[last]) * above / (above - below)


def bayes_value(arms: int, pulls: int) -> float:
    """The expected total of the best strategy there is, over arms with uniform probabilities: exact, for few pulls.

    Dynamic programming over what can be seen. Arms are exchangeable, so a state is the sorted list of the arms that
    were pulled. 10 pulls take under a second for any number of arms, 14 pulls of 10 arms some ten seconds.
    """
    Arms = tuple[tuple[int, int], ...]

    @functools.cache
    def value(seen: Arms, left: int) -> float:
        if left == 0:
            return 0.0
        candidates = [*dict.fromkeys(seen), *([(0, 0)] if len(seen) < arms else [])]
        return max(pull(seen, arm, left) for arm in candidates)

    def pull(seen: Arms, arm: tuple[int, int], left: int) -> float:
        rest = list(seen)
        if arm in rest:
            rest.remove(arm)
        (wins, losses), mean = arm, (arm[0] + 1) / (sum(arm) + 2)
        won = value(tuple(sorted([*rest, (wins + 1, losses)])), left - 1)
        lost = value(tuple(sorted([*rest, (wins, losses + 1)])), left - 1)
        return mean * (1 + won) + (1 - mean) * lost

    return value((), pulls)
