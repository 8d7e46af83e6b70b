"""What strategies earn on Bernoulli bandits in expectation: exact values for few pulls, upper bounds for many.

All probabilities are uniform in [0, 1], as in `BernoulliBandit`; every value is the expected total of `pulls` pulls.
`bandit_strategies.bayes_value` is the value of the best strategy there is.
"""

import functools
from collections import Counter, defaultdict

import numpy as np

from metarl_envs.bandit_strategies import Seen, Strategy

ArmCounts = tuple[tuple[int, int], ...]
"""What was seen, where arms are exchangeable: the sorted (wins, losses) of the arms that were pulled."""


def strategy_value(strategy: Strategy, arms: int, pulls: int) -> float:
    """The value of a deterministic strategy: Gittins', UCB1, greedy.

    Its own decision process, walked forwards: it is asked for its arm in every state that it can reach, of which there
    are at most 2^t after t pulls.

    Raises:
        ValueError: the strategy draws random numbers (`thompson_value`, `pulls / 2` for `uniform`).
    """
    wins, losses, total = np.zeros((1, arms), np.int64), np.zeros((1, arms), np.int64), 0.0
    weight: np.ndarray = np.ones(1)
    for t in range(pulls):
        seen = Seen(wins, losses, t)
        arm = strategy(seen, np.random.default_rng(0))
        if not np.array_equal(arm, strategy(seen, np.random.default_rng(1))):
            raise ValueError(
                "strategy_value needs a deterministic strategy; this one chose differently when asked twice"
            )
        hit, mean = np.eye(arms, dtype=np.int64)[arm], seen.mean[np.arange(len(arm)), arm]
        total += float(weight @ mean)
        reached = np.concatenate([np.hstack([wins + hit, losses]), np.hstack([wins, losses + hit])])
        states, which = np.unique(reached, axis=0, return_inverse=True)
        weight = np.bincount(which.reshape(-1), np.concatenate([weight * mean, weight * (1 - mean)]), len(states))
        wins, losses = states[:, :arms], states[:, arms:]
    return total


def thompson_value(arms: int, pulls: int) -> float:
    """The value of Thompson sampling. The probability that an arm is the best is an integral of a polynomial, which
    Gauss-Legendre quadrature takes exactly."""
    nodes, areas = np.polynomial.legendre.leggauss((pulls + arms) // 2 + 1)
    x, areas = (nodes + 1) / 2, areas / 2
    beliefs = functools.cache(lambda wins, losses: _beta(wins, losses, x))
    total = 0.0
    now: dict[ArmCounts, float] = {(): 1.0}
    for _ in range(pulls):
        after: defaultdict[ArmCounts, float] = defaultdict(float)
        for seen, weight in now.items():
            counts = Counter([*seen, *[(0, 0)] * (arms - len(seen))])
            all_below = np.prod([beliefs(*arm)[1] ** n for arm, n in counts.items()], axis=0)
            for arm, n in counts.items():
                density, below = beliefs(*arm)
                share, mean = weight * n * float(areas @ (density * all_below / below)), (arm[0] + 1) / (sum(arm) + 2)
                total += share * mean
                after[_with(seen, arm, (1, 0))] += share * mean
                after[_with(seen, arm, (0, 1))] += share * (1 - mean)
        now = after
    return total


def _beta(wins: int, losses: int, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Density and distribution function of Beta(1 + wins, 1 + losses) at x."""
    n, polynomial = wins + losses + 1, np.polynomial.polynomial
    density = polynomial.polymul(polynomial.polypow([0, 1], wins), polynomial.polypow([1, -1], losses))
    density = density * n * _choose(n - 1, wins)
    return polynomial.polyval(x, density), polynomial.polyval(x, polynomial.polyint(density))


def _choose(n: int, k: int) -> float:
    return float(np.prod([(n - i) / (i + 1) for i in range(k)]))


def _with(seen: ArmCounts, arm: tuple[int, int], more: tuple[int, int]) -> ArmCounts:
    """`seen` after one more pull of an arm that was at `arm`."""
    rest = list(seen)
    if arm in rest:
        rest.remove(arm)
    return tuple(sorted([*rest, (arm[0] + more[0], arm[1] + more[1])]))


def commit_value(arms: int, used: int, rounds: int, pulls: int) -> float:
    """The value of `rounds` pulls of each of the first `used` of `arms` arms, and then of the arm with the largest
    posterior mean for the rest of the pulls. An arm's wins are uniform over 0, ..., rounds; an arm that was not pulled
    has the mean 1/2."""
    at_most = ((np.arange(rounds + 1) + 1) / (rounds + 1)) ** used
    means = (np.arange(rounds + 1) + 1) / (rounds + 2)
    best = np.diff(at_most, prepend=0.0) @ (np.maximum(means, 0.5) if used < arms else means)
    return used * rounds / 2 + (pulls - used * rounds) * float(best)


def exploration_value(arms: int, pulls: int) -> float:
    """`pulls` times what the best arm is expected to pay after `pulls` pulls that serve nothing but to find it: what a
    policy that has adapted to them can earn at most in as many further ones. Exact, for few pulls."""

    @functools.cache
    def value(seen: ArmCounts, left: int) -> float:
        if left == 0:
            unknown = 0.5 if len(seen) < arms else 0.0
            return max([unknown, *((wins + 1) / (wins + losses + 2) for wins, losses in seen)])
        candidates = [*dict.fromkeys(seen), *([(0, 0)] if len(seen) < arms else [])]
        return max(look(seen, arm, left) for arm in candidates)

    def look(seen: ArmCounts, arm: tuple[int, int], left: int) -> float:
        mean = (arm[0] + 1) / (sum(arm) + 2)
        won, lost = value(_with(seen, arm, (1, 0)), left - 1), value(_with(seen, arm, (0, 1)), left - 1)
        return mean * won + (1 - mean) * lost

    return pulls * value((), pulls)


def value_bound(arms: int, pulls: int) -> float:
    """What no strategy's value exceeds, for many pulls: the smaller of two bounds.

    One is what is earned by whoever knows the best arm. The other lets every arm be pulled whenever it likes, as long
    as all of them together take `pulls` pulls on average: with a charge for every pull the arms come apart, each is
    a problem of stopping, and every charge gives a bound (Whittle 1988, "Restless bandits", section 3).
    """

    def bound(charge: float) -> float:
        return charge * pulls + arms * _stopping_value(charge, pulls)

    low, high = 0.0, 1.0
    for _ in range(40):  # the bound is convex in the charge
        a, b = low + (high - low) / 3, high - (high - low) / 3
        low, high = (low, b) if bound(a) <= bound(b) else (a, high)
    return min(pulls * arms / (arms + 1), bound((low + high) / 2))


def _stopping_value(charge: float, pulls: int) -> float:
    """The value of one arm that may be pulled up to `pulls` times, at a charge, and given up at any time."""
    value = np.zeros(pulls + 1)  # for every number of wins
    for level in reversed(range(pulls)):
        mean = (np.arange(level + 1) + 1) / (level + 2)
        value = np.maximum(0, mean - charge + mean * value[1:] + (1 - mean) * value[:-1])
    return float(value[0])
