"""The letters of matplotlib's fonts as few-shot classes."""

import sys
import unicodedata
from dataclasses import replace

import numpy as np
import pytest

from metarl.supervised import FewShotLearner, check_family, glyphs, letters

RNG = np.random.default_rng

pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def images() -> dict[str, np.ndarray]:
    """Of every class, [faces, SIZE, SIZE]."""
    family = glyphs()
    return {chr(label): family.x[family.y == label][:, 0] for label in np.unique(family.y)}


def relative(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """How far images are apart, as a share of the fainter one's norm; [..., pixels] -> [...]."""
    return np.linalg.norm(a - b, axis=-1) / np.minimum(np.linalg.norm(a, axis=-1), np.linalg.norm(b, axis=-1))


def test_the_letters(images):
    family = glyphs()
    check_family(family)
    assert family.x.shape == (229 * 16, 1, 16, 16) and len(letters.FACES) == 16
    assert family.x.min() == 0 and family.x.max() == 1
    assert [len(x) for x in (family.train_classes, family.validation_classes, family.test_classes)] == [142, 33, 54]
    assert {len(x) for x in images.values()} == {16}
    sets = family.sample(20, RNG(0), "test", 5, 11)  # all examples
    assert sets.x_query.shape == (20, 55, 1, 16, 16)
    assert set(sets.parameters["classes"].ravel()) <= set(family.test_classes)
    drawn = sets.x_query[3, 12, 0].numpy()
    letter = chr(sets.parameters["classes"][3, sets.y_query[3, 12]])
    assert (images[letter] == drawn).all((1, 2)).any()


def test_the_splits_have_no_letter_in_common_in_upper_or_lower_case():
    family = glyphs()
    splits = (family.train_classes, family.validation_classes, family.test_classes)
    train, validation, test = ({chr(label).lower() for label in split} for split in splits)
    assert not train & test and not train & validation and not validation & test
    assert len(train | validation | test) == 171
    for alphabet in ("LATIN", "GREEK", "CYRILLIC"):  # every alphabet is in both
        for split, least in zip(splits, (5, 1, 5), strict=True):
            assert sum(unicodedata.name(chr(label)).startswith(alphabet) for label in split) >= least


def test_no_letter_is_there_twice(images):
    flat = {letter: x.reshape(16, -1) for letter, x in images.items()}
    names = list(flat)
    for i, a in enumerate(names[1:], 1):
        others = np.stack([flat[b] for b in names[:i]])
        assert relative(flat[a][None], others).min() >= letters.LOOK_ALIKE, a
    for same in ("AΑА", "oοо", "HΗН", "ΓГ", "uи"):  # и looks like u in italics only
        there = [letter for letter in same if letter in letters.common_letters()]
        assert there == list(same)
        assert [letter for letter in same if letter in names] == [same[0]]


def test_look_alikes_by_hand():
    x = np.zeros((5, 2, 3))
    x[:, :, 0] = 1.0  # all the same at first
    x[1, :, 1] = 1.0  # unlike the first in both faces
    x[2, 0, 2] = 1.0  # unlike it in one face only
    x[3] = [[0, 0, 1], [0, 0.9, 0]]  # unlike all
    x[4] = [[0, 0.5, 1], [0, 0.95, 0]]  # 0.05 / 0.9 from the one before in the second face
    assert letters.unlike(x) == [0, 1, 3]


def test_letters_that_a_face_lacks_are_left_out(images):
    some = set(map(chr, letters._font("DejaVuSans").get_charmap()))
    assert {"Ա", "é", "ა"} <= some and not {"Ա", "ა"} & set(letters.common_letters())
    for face, name in enumerate(letters.FACES):
        font = letters._font(name)
        lacking = [letter for letter in images if font.get_char_index(ord(letter)) == 0]  # 0: "not defined"
        blank = [letter for letter, own in images.items() if own[face].sum() < 5]
        assert lacking == blank == []
    assert letters._font("STIXGeneral").get_char_index(ord("Ա")) == 0  # the control


def test_letters_with_an_accent_are_left_out(images):
    assert not {"é", "Å", "й", "ё", "ά"} & set(images) and {"e", "β", "ж"} <= set(images)


def test_a_letter_looks_another_way_in_each_face(images):
    different = {letter: len(np.unique(x.reshape(16, -1), axis=0)) for letter, x in images.items()}
    assert min(different.values()) >= 15
    assert sum(16 - number for number in different.values()) <= 3  # few that DejaVu has in two faces
    plain, bold = letters.FACES.index("DejaVuSans"), letters.FACES.index("DejaVuSans-Bold")
    for letter in "TIшE":
        if letter in images:  # upright strokes, which a renderer may move to whole pixels
            assert images[letter][bold].sum() > 1.2 * images[letter][plain].sum()


def rows(image: np.ndarray) -> tuple[int, int]:
    """The first and the last row with ink."""
    found = np.flatnonzero(image.max(1) > 0.2)
    return found[0], found[-1]


def test_size_and_baseline_are_the_same_for_all(images):
    for face in range(16):
        (c, bottom), (capital, _), (b, _), (_, p) = (rows(images[letter][face]) for letter in "cCbp")
        assert capital <= c - 2 and b <= c - 2 and bottom + 2 <= p
        assert bottom in (11, 12)  # four rows are below the baseline, into which round letters reach a bit
    h, wide = images["h"], images["h"].max(1) > 0.05
    assert h.shape == (16, 16, 16)
    for row in wide:  # in the middle
        left, right = np.flatnonzero(row)[[0, -1]]
        assert abs(left - (15 - right)) <= 1


@pytest.mark.parametrize(("size", "cut"), [(letters._EM, False), (1.3 * letters._EM, True)])
def test_no_letter_is_cut_off(monkeypatch, size, cut):
    found = []
    monkeypatch.setattr(letters, "_EM", size)
    narrow = {face: letters.draw(face, letters.common_letters()) for face in letters.FACES}
    monkeypatch.setattr(letters, "SIZE", 24)
    monkeypatch.setattr(letters, "_BASELINE", letters._BASELINE + 4)
    for face in letters.FACES:
        large = letters.draw(face, letters.common_letters())
        if not cut:
            np.testing.assert_allclose(large[:, 4:-4, 4:-4], narrow[face], atol=0.02)
        found.append(large.sum() - large[:, 4:-4, 4:-4].sum())
    assert (max(found) > 1) == cut


def test_the_letters_are_the_same_every_time():
    one = glyphs()
    letters._drawn.cache_clear()
    again = glyphs()
    assert one.x is not again.x and one.id == again.id
    np.testing.assert_array_equal(one.x, again.x)
    np.testing.assert_array_equal(one.y, again.y)
    assert (one.train_classes, one.test_classes) == (again.train_classes, again.test_classes)


def test_what_is_held_out_can_be_chosen():
    greek = tuple("ΓΔΘξΨ")
    family = glyphs(test_classes=greek, validation_classes=())
    assert family.test_classes == tuple(map(ord, greek)) and len(family.train_classes) == 224
    assert not set(family.test_classes) & set(family.train_classes)
    assert glyphs(ways=3).ways == 3 and not glyphs(shuffled=False).shuffled
    assert len({glyphs().id, family.id, glyphs(ways=3).id, glyphs(shuffled=False).id}) == 4


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ({"test_classes": "AbΑé"}, r"test_classes has \['é', 'Α'\], which are not classes: .*ABC"),
        ({"test_classes": "AB"}, "5-way tasks need .* test split, which has 2"),
        ({"ways": 60}, "60-way tasks need .* test split, which has 54"),
    ],
)
def test_what_makes_no_sense_is_refused(given, shown):
    with pytest.raises(ValueError, match=shown):
        glyphs(**given)


def test_more_examples_than_faces_is_an_error():
    with pytest.raises(ValueError, match="5 shots and 12 queries of every class are more than the 16 examples"):
        glyphs().sample(1, RNG(0), "train", 5, 12)


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch):
    letters._drawn.cache_clear()
    monkeypatch.setitem(sys.modules, "matplotlib.ft2font", None)
    with pytest.raises(ImportError, match=r"pip install matplotlib$"):
        glyphs()


def test_meta_training_helps_on_letters_that_were_held_out():
    """Three steps on one type face of each letter: from what MAML has learned of other letters they get further than
    from random weights with any step size. The control: nothing can be learned of letters whose examples are mixed."""
    family = glyphs()
    sets = family.sample(200, RNG(1), "test", 1, 10)
    settings = {"shots": 1, "n_tasks": 16, "queries": 5, "inner_steps": 3, "inner_lr": 0.3, "hidden": (64,),
                "outer_lr": 3e-3, "device": "cpu"}  # fmt: skip
    meta = FewShotLearner(family, **settings).learn(120).evaluate(sets=sets).accuracy
    random = FewShotLearner(family, **settings)
    best = max(random.evaluate(sets=sets, step_sizes=[size] * 3).accuracy[-1] for size in (0.1, 0.2, 0.3, 0.5, 1.0))
    mixed = replace(family, id="mixed", y=RNG(0).permutation(family.y))
    control = FewShotLearner(mixed, **settings).learn(120).evaluate(sets=sets).accuracy
    assert abs(meta[0] - 0.2) < 0.02  # chance before adaptation
    assert meta[-1] > best + 0.025 and best > 0.7 and control[-1] < best - 0.2
