"""Keyed random numbers: known answers, slices, prefixes, distributions, independence."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats

from metarl import random

# Known answers of philox4x32-10 from the Random123 distribution: counter, key, result.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def python_philox(counter: tuple[int, ...], key: tuple[int, int]) -> tuple[int, ...]:
    """The twin in Python's integers, which never overflow."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 % 2**32, (p0 >> 32) ^ c3 ^ k1, p0 % 2**32
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return c0, c1, c2, c3


def seeds(n_tasks: int = 3, episodes: int = 5, seed: int = 0, iteration: int = 0, stage: int = 0) -> torch.Tensor:
    return random.episode_seeds(seed, iteration, stage, n_tasks, episodes)


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN)
def test_philox_gives_the_known_answers(counter, key, answer):
    out = random.philox(tuple(torch.tensor(c) for c in counter), tuple(torch.tensor(k) for k in key))
    assert tuple(int(word) for word in out) == answer


def test_philox_equals_its_twin_on_random_words():
    words = np.random.default_rng(0).integers(2**32, size=(6, 200))
    out = random.philox(*(tuple(torch.from_numpy(w) for w in part) for part in (words[:4], words[4:])))
    for i in range(200):
        column = [int(w) for w in words[:, i]]
        assert tuple(int(word[i]) for word in out) == python_philox(tuple(column[:4]), tuple(column[4:]))


def test_words_use_the_documented_key_and_counter():
    seed = 0x1234567_89ABCDEF
    out = random.words(torch.tensor(seed), 4 * (2**32 + 7), 4, stream=3)
    assert out.tolist() == list(python_philox((7, 1, 3, 0), (seed % 2**32, seed >> 32)))


def test_episode_seeds_use_the_documented_key_and_counter():
    run = 0x9_00000002
    w = python_philox((4, 6, 11, 5), (run % 2**32, run >> 32))
    assert int(random.episode_seeds(run, 11, 5, 5, 7)[4, 6]) == w[0] + ((w[1] % 2**30) << 32)


@pytest.mark.parametrize("draw", [random.words, random.uniform, random.normal])
def test_any_slice_is_the_same_numbers(draw):
    key = seeds()
    full = draw(key, 0, 23, random.ACTION)
    assert full.shape == (3, 5, 23)
    for start, count in itertools.product((0, 1, 2, 3, 4, 7, 12), (0, 1, 2, 5, 11)):
        assert torch.equal(draw(key, start, count, random.ACTION), full[..., start : start + count])


def test_a_tasks_numbers_do_not_depend_on_how_many_others_there_are():
    small, large = seeds(3, 5), seeds(11, 8)
    assert torch.equal(small, large[:3, :5])
    assert torch.equal(
        random.uniform(small, 0, 9, random.ENVIRONMENT), random.uniform(large, 0, 9, random.ENVIRONMENT)[:3, :5]
    )


def test_every_part_of_the_key_changes_every_seed():
    base = seeds(20, 20)
    assert base.unique().numel() == 400
    assert base.min() >= 0
    assert base.max() < 2**62
    for other in (seeds(20, 20, seed=1), seeds(20, 20, seed=2**32), seeds(20, 20, iteration=1), seeds(20, 20, stage=1)):
        assert (base != other).all()


def test_streams_differ():
    key = seeds()
    environment, action = (random.words(key, 0, 40, s) for s in (random.ENVIRONMENT, random.ACTION))
    assert (environment != action).all()


def test_generator_seeds_differ_by_purpose_and_run():
    drawn = {random.generator_seed(seed, purpose) for seed in range(5) for purpose in range(5)}
    assert len(drawn) == 25


def test_uniform_numbers_are_uniform():
    x = random.uniform(seeds(50, 40), 0, 50, random.ENVIRONMENT).flatten().numpy()
    assert x.min() >= 0
    assert x.max() < 1
    assert np.array_equal(x * 2.0**24, np.round(x * 2.0**24))
    assert stats.kstest(x, "uniform").pvalue > 1e-3


@pytest.mark.parametrize("source", ["Box and Muller", "inverse distribution function"])
def test_normal_numbers_are_normal(source):
    key = seeds(50, 40)
    if source == "Box and Muller":
        x = random.normal(key, 0, 50, random.ACTION)
    else:
        x = random.to_normal(random.uniform(key, 0, 50, random.ACTION))
    x, n = x.flatten().double().numpy(), 50 * 40 * 50
    assert stats.kstest(x, "norm").pvalue > 1e-3
    # Moments 1 to 4 of a standard normal; the variance of x^k is E x^2k - (E x^k)^2.
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((x**power).mean() - moment) < 4 * math.sqrt(variance / n)


def test_to_normal_by_table_and_at_the_ends():
    draws = torch.tensor([0.5, 0.975, 0.025, 0.0, 1 - 2.0**-24])
    out = random.to_normal(draws)
    assert torch.allclose(out[:3], torch.tensor([0.0, 1.959964, -1.959964]), atol=1e-4)
    assert torch.isfinite(out).all()
    assert out[3] < -5
    assert out[4] > 5


def test_normal_numbers_are_finite_where_the_words_are_zero(monkeypatch):
    monkeypatch.setattr(random, "words", lambda seeds, start, count, stream: seeds.new_zeros(*seeds.shape, count))
    assert random.normal(seeds(1, 1), 0, 2, random.ACTION).tolist() == [
        [pytest.approx([math.sqrt(48 * math.log(2)), 0])]
    ]


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("draw", [random.uniform, random.normal])
def test_neighbours_are_independent(draw, axis):
    """Neighbouring tasks, episodes and numbers, and their squares, are uncorrelated: 5 standard errors."""
    x = draw(seeds(40, 40), 0, 40, random.ACTION).double().numpy()
    for y in (x, (x - x.mean()) ** 2):
        a, b = np.delete(y, -1, axis).ravel(), np.delete(y, 0, axis).ravel()
        assert abs(np.corrcoef(a, b)[0, 1]) < 5 / math.sqrt(a.size)


def test_environment_and_action_numbers_are_independent():
    key = seeds(40, 40)
    a, b = (random.uniform(key, 0, 40, s).double().flatten().numpy() for s in (random.ENVIRONMENT, random.ACTION))
    assert abs(np.corrcoef(a, b)[0, 1]) < 5 / math.sqrt(a.size)
