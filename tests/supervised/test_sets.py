"""Families of support and query sets, losses, scores."""

import dataclasses
import math
import sys

import numpy as np
import pytest
import torch
from supervised_twins import blobs

from metarl.supervised import FewShotClasses, SetFamily, Sets, Sinusoid, check_family, digits, losses
from metarl.supervised.sets import as_tensor, check_targets

RNG = np.random.default_rng


# ---------------------------------------------------------------------------------------------------------------------
# Sinusoids


def test_a_sinusoid_s_points_lie_on_it():
    sets = Sinusoid().sample(4, RNG(0), "train", 3, 6)
    assert sets.x_support.shape == (4, 3, 1) and sets.y_query.shape == (4, 6, 1)
    amplitude, phase = (sets.parameters[name][:, None, None] for name in ("amplitude", "phase"))
    for x, y in ((sets.x_support, sets.y_support), (sets.x_query, sets.y_query)):
        np.testing.assert_allclose(y, amplitude * np.sin(x.numpy() - phase), atol=1e-5)


def test_sinusoids_are_distributed_as_in_the_paper():
    sets = Sinusoid().sample(20_000, RNG(0), "test", 1, 1)
    for values, low, high in ((sets.parameters["amplitude"], 0.1, 5.0), (sets.parameters["phase"], 0.0, math.pi),
                              (sets.x_support.numpy().ravel(), -5.0, 5.0)):  # fmt: skip
        assert low <= values.min() < low + 0.01 * (high - low) and high - 0.01 * (high - low) < values.max() <= high
        assert values.mean() == pytest.approx((low + high) / 2, abs=0.02 * (high - low))
        assert values.std() == pytest.approx((high - low) / math.sqrt(12), rel=0.02)


def test_the_oracle_is_told_the_task():
    sets = Sinusoid(visible=True).sample(2, RNG(0), "train", 3, 4)
    assert Sinusoid(visible=True).x_shape == (3,) == tuple(sets.x_query.shape[2:])
    np.testing.assert_allclose(sets.x_query[1, :, 1], sets.parameters["amplitude"][1], rtol=1e-6)
    np.testing.assert_allclose(sets.x_query[1, :, 2], sets.parameters["phase"][1], rtol=1e-6)
    plain = Sinusoid().sample(2, RNG(0), "train", 3, 4)
    assert torch.equal(plain.x_query, sets.x_query[..., :1]) and torch.equal(plain.y_query, sets.y_query)


def test_ids_tell_variants_apart():
    assert len({Sinusoid().id, Sinusoid(visible=True).id, Sinusoid(phase=(0.0, 1.0)).id}) == 3
    assert Sinusoid().id == "Sinusoid()"


# ---------------------------------------------------------------------------------------------------------------------
# Classes


def test_tasks_are_drawn_from_their_split_s_classes_alone():
    family = blobs()
    for split, allowed in (("train", {0, 1, 2, 3}), ("test", {4, 5, 6, 7})):
        sets = family.sample(50, RNG(0), split, 1, 1)
        assert set(sets.parameters["classes"].ravel()) == allowed
        assert all(len(set(task)) == 3 for task in sets.parameters["classes"])


def test_a_task_s_examples_are_those_of_its_classes():
    family = blobs()
    sets = family.sample(5, RNG(0), "train", 2, 3)
    assert sets.x_support.shape == (5, 6, 2) and sets.y_query.shape == (5, 9)
    for k in range(5):
        for x, y in zip(torch.cat([sets.x_support, sets.x_query], 1)[k],
                        torch.cat([sets.y_support, sets.y_query], 1)[k], strict=True):  # fmt: skip
            (place,) = np.flatnonzero((family.x == x.numpy()).all(1))
            assert family.y[place] == sets.parameters["classes"][k, y]


def test_no_query_example_is_in_the_support_set():
    sets = blobs(each=5).sample(20, RNG(0), "train", 2, 3)  # all five of each class are used
    for k in range(20):
        every = torch.cat([sets.x_support[k], sets.x_query[k]])
        assert len(torch.unique(every, dim=0)) == 15


def test_class_numbers_say_nothing_about_the_class():
    # Or a network could learn the classes by heart and needed no support set.
    shuffled, fixed = (blobs(ways=4, shuffled=s).sample(300, RNG(0), "train", 1, 1).parameters["classes"]
                       for s in (True, False))  # fmt: skip
    for label in range(4):
        counts = np.bincount(np.argwhere(shuffled == label)[:, 1], minlength=4)
        assert counts.min() > 50 and counts.sum() == 300
    assert (fixed == np.arange(4)).all()


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ({"test_classes": (3, 4, 5)}, r"the classes \[3\] are in both splits"),
        ({"test_classes": (5, 6, 99)}, r"no examples of the classes \[99\]"),
        ({"ways": 5}, "5-way tasks need .* train split, which has 4"),
        ({"ways": 1}, "1-way tasks need at least 2 ways"),
        ({"y": np.zeros(3)}, r"one label for every example, got x \(240, 2\) and y \(3,\)"),
    ],
)
def test_classes_that_make_no_sense_are_refused(change, shown):
    given = {f.name: getattr(blobs(), f.name) for f in dataclasses.fields(FewShotClasses) if f.init}
    with pytest.raises(ValueError, match=shown):
        FewShotClasses(**(given | change))


def test_more_examples_than_there_are_is_an_error():
    with pytest.raises(ValueError, match="3 shots and 3 queries of every class are more than the 5 examples"):
        blobs(each=5).sample(1, RNG(0), "train", 3, 3)


@pytest.mark.parametrize("family", [Sinusoid(), blobs()])
def test_an_unknown_split_is_refused(family):
    with pytest.raises(ValueError, match="has no split 'valid'; its splits are 'train', 'validation', 'test'"):
        family.sample(1, RNG(0), "valid", 1, 1)


@pytest.mark.parametrize("family", [Sinusoid(), blobs()], ids=["sinusoid", "classes"])
def test_what_is_drawn_depends_on_the_generator_alone(family):
    one, same, other = (family.sample(3, RNG(seed), "train", 2, 2) for seed in (1, 1, 2))
    assert torch.equal(one.x_query, same.x_query) and not torch.equal(one.x_query, other.x_query)


def test_the_digits():
    pytest.importorskip("sklearn")
    family = digits()
    check_family(family)
    sets = family.sample(20, RNG(0), "test", 1, 15)
    assert sets.x_query.shape == (20, 75, 1, 8, 8)
    assert sets.x_query.min() >= 0 and sets.x_query.max() == 1
    assert set(sets.parameters["classes"].ravel()) == {5, 6, 7, 8, 9}
    assert set(family.sample(20, RNG(0), "train", 1, 1).parameters["classes"].ravel()) == {0, 1, 2, 3, 4}
    from sklearn.datasets import load_digits

    data = load_digits()
    k, number = 3, int(sets.y_query[3, 40])
    (place,) = np.flatnonzero((data.images / 16 == sets.x_query[3, 40, 0].numpy()).all((1, 2)))
    assert data.target[place] == sets.parameters["classes"][k, number]


def test_turned_digits_are_classes_of_their_own_in_training_only():
    pytest.importorskip("sklearn")
    plain, family = digits(), digits(rotations=True)
    assert family.train_classes == tuple(d + 10 * q for q in range(4) for d in range(5))
    assert family.test_classes == plain.test_classes
    np.testing.assert_array_equal(family.x[family.y == 9], plain.x[plain.y == 9])
    np.testing.assert_array_equal(family.x[family.y == 13][0, 0], np.rot90(plain.x[plain.y == 3][0, 0]))


def test_without_scikit_learn_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"pip install scikit-learn$"):
        digits()


# ---------------------------------------------------------------------------------------------------------------------
# Sets and the check of families


def sets(**changes):
    given = {"x_support": np.zeros((2, 3, 4)), "y_support": np.zeros((2, 3, 1)),
             "x_query": np.zeros((2, 5, 4)), "y_query": np.zeros((2, 5, 1))}  # fmt: skip
    return Sets(**(given | changes))


def test_arrays_become_tensors():
    made = sets(y_support=np.zeros((2, 3), np.int32), y_query=np.zeros((2, 5), np.uint8))
    assert made.x_support.dtype == torch.float32 and made.y_support.dtype == made.y_query.dtype == torch.int64
    assert as_tensor(torch.zeros(1, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({"y_support": np.zeros((2, 4, 1))}, r"the support set needs .* got \(2, 3, 4\) and \(2, 4, 1\)"),
        ({"x_query": np.zeros((3, 5, 4)), "y_query": np.zeros((3, 5, 1))}, "x_support and x_query need the same shape"),
        ({"x_query": np.zeros((2, 5, 3))}, "x_support and x_query need the same shape"),
        ({"y_query": np.zeros((2, 5, 2))}, "y_support and y_query need the same shape"),
        ({"x_support": np.zeros((2, 0, 4)), "y_support": np.zeros((2, 0, 1))}, "at least 1 each"),
        ({"x_support": np.zeros((2, 3))}, "the support set needs"),
    ],
)
def test_sets_that_do_not_belong_together_are_refused(changes, shown):
    with pytest.raises(ValueError, match=shown):
        sets(**changes)


def test_a_slice_has_its_tasks_own_data():
    every = Sinusoid().sample(5, RNG(0), "train", 2, 3)
    some = every[1:3]
    assert some.n_tasks == 2 and torch.equal(some.y_query, every.y_query[1:3])
    assert (some.parameters["phase"] == every.parameters["phase"][1:3]).all()


class Family:
    id, x_shape, outputs, loss = "mine", (4,), 1, "mse"

    def sample(self, n, rng, split, shots, queries):
        return Sets(*(torch.zeros(n, m, d) for m in (shots, queries) for d in (4, 1)))


def test_any_object_with_the_members_is_a_family():
    assert isinstance(Family(), SetFamily)
    check_family(Family())


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("x_shape", (3,), r"inputs must be floats of the shape \(3,\), got torch.float32 \(4,\)"),
        ("outputs", 2, r"targets must be floats \[K, N, 2\]"),
        ("loss", "cross_entropy", r"classes must be whole numbers \[K, N\]"),
        ("loss", "mae", "loss must be 'mse', 'bce' or 'cross_entropy', got 'mae'"),
        ("sample", lambda n, *_: {"x": 1}, "must return metarl.supervised.Sets, got dict"),
        ("sample", lambda n, rng, split, s, q: Family().sample(1, rng, split, s, q), "asked for 2 tasks and gave 1"),
    ],
)
def test_what_is_wrong_with_a_family_is_said(name, value, shown):
    family = Family()
    setattr(family, name, value)
    with pytest.raises(ValueError, match=shown):
        check_family(family)


def test_what_is_no_family_is_a_type_error():
    with pytest.raises(TypeError, match=r"dict is not a family of sets: it lacks \['id', 'x_shape'"):
        check_family({})


@pytest.mark.parametrize(
    ("loss", "y", "shown"),
    [
        ("cross_entropy", torch.tensor([[0, 3]]), "classes must be 0 to 2, got 0 to 3"),
        ("cross_entropy", torch.tensor([[-1, 2]]), "classes must be 0 to 2, got -1 to 2"),
        ("bce", torch.full((1, 2, 3), 0.5), "must be 0 or 1"),
    ],
)
def test_targets_out_of_range_are_refused(loss, y, shown):
    family = Family()
    family.loss, family.outputs = loss, 3
    with pytest.raises(ValueError, match=shown):
        check_targets(family, y)


# ---------------------------------------------------------------------------------------------------------------------
# Losses


def test_mse_by_hand():
    out, y = torch.tensor([[[1.0], [3.0]], [[0.0], [0.0]]]), torch.tensor([[[0.0], [1.0]], [[2.0], [0.0]]])
    assert losses.mse(out, y).tolist() == [2.5, 2.0]


def test_bce_by_hand():
    logits, y = torch.tensor([[[0.0, math.log(3)]]]), torch.tensor([[[1.0, 0.0]]])
    assert losses.bce(logits, y).item() == pytest.approx((math.log(2) + math.log(4)) / 2)


def test_cross_entropy_by_hand():
    logits = torch.tensor([[[1.0, 2.0, 5.0], [1.0, 1.0, 1.0]]]).log()
    assert losses.cross_entropy(logits, torch.tensor([[2, 0]])).item() == pytest.approx(-math.log(5 / 8 / 3) / 2)


def test_accuracies_by_hand():
    logits = torch.tensor([[[1.0, 2.0], [3.0, 0.0], [0.0, 1.0]]])
    assert losses.class_accuracy(logits, torch.tensor([[1, 1, 1]])).item() == pytest.approx(2 / 3)
    yes = torch.tensor([[[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]]])
    assert losses.bce_accuracy(logits - 0.5, yes).item() == pytest.approx(4 / 6)


def test_a_task_s_loss_is_its_own():
    out, y = torch.randn(3, 4, 2), torch.randn(3, 4, 2)
    torch.testing.assert_close(losses.mse(out, y)[1:2], losses.mse(out[1:2], y[1:2]))


@pytest.mark.parametrize("loss", [losses.mse, losses.bce, losses.bce_accuracy])
def test_shapes_that_would_be_broadcast_are_refused(loss):
    with pytest.raises(AssertionError, match="same shape"):
        loss(torch.zeros(2, 3, 1), torch.zeros(2, 3))
    with pytest.raises(AssertionError, match="same shape"):
        loss(torch.zeros(2, 3, 1), torch.zeros(2, 1, 1))


@pytest.mark.parametrize("loss", [losses.cross_entropy, losses.class_accuracy])
def test_classes_of_a_wrong_shape_are_refused(loss):
    with pytest.raises(AssertionError, match=r"need logits \[K, N, C\]"):
        loss(torch.zeros(2, 3, 4), torch.zeros(2, 3, 1, dtype=torch.int64))
    with pytest.raises(AssertionError, match="whole numbers"):
        loss(torch.zeros(2, 3, 4), torch.zeros(2, 3))
