"""Few-shot classification of letters, rendered from the fonts that come with matplotlib."""

import unicodedata
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from metarl.report.figures import MissingExtraError
from metarl.supervised.classes import FewShotClasses

if TYPE_CHECKING:
    from matplotlib.ft2font import FT2Font

_STYLES = {
    **dict.fromkeys(("DejaVuSans", "DejaVuSansMono"), ("", "-Oblique", "-Bold", "-BoldOblique")),
    "DejaVuSerif": ("", "-Italic", "-Bold", "-BoldItalic"),
    "STIXGeneral": ("", "Italic", "Bol", "BolIta"),
}
FACES = tuple(family + style for family, styles in _STYLES.items() for style in styles)
"""The 16 typefaces, by file name. A letter has one example in each, in this order."""
SIZE = 16
"""Height and width of an image in pixels."""
_EM, _BASELINE = 11.5, 4.0
"""Font size and height of the baseline in pixels: no letter of any face is cut off."""
LOOK_ALIKE = 0.2
"""Two letters look alike if in any face the norm of their images' difference is less than this fraction of the smaller
image norm."""


def glyphs(
    ways: int = 5, test_classes: Sequence[str] | None = None, shuffled: bool = True,
    validation_classes: Sequence[str] | None = None,
) -> FewShotClasses:  # fmt: skip
    """Few-shot tasks from printed letters in 16 typefaces, images [1, 16, 16] in [0, 1], where 1 is ink.

    The letters are rendered from the fonts in matplotlib's wheel (DejaVu Sans, Sans Mono and Serif, and STIXGeneral, in
    four styles each; free to use, with their licences in `matplotlib.get_data_path()`): nothing is downloaded. Font
    size and baseline are the same for all letters, so that c and C differ; letters are centred horizontally. For three
    letters, two faces give identical images.

    The classes are the 229 letters (with matplotlib 3.11) that all 16 faces contain: upper and lower case, Latin
    including the phonetic alphabet, Greek and Cyrillic. Excluded are composites of a letter and an accent, and, among
    letters that look alike in any face (A, Α, А; but also l and I), all but the first in Unicode order. Class numbers
    are code points: `chr` gives the letter. Every fourth letter in this order is held out for testing, upper and lower
    case together: 54 classes. Of the other 175 every fifth, likewise, is for validation: 33 classes, which leaves 142
    to train on. Related letters can be on both sides: H is held out, the phonetic alphabet's small ʜ is not.

    Unlike the digits, rotated letters are not additional classes: rotated by 180 degrees, u is n and d is p, and the
    phonetic alphabet is full of turned letters.

    Args:
        test_classes: the letters held out for testing; None for the default above.
        validation_classes: the letters held out to choose the best state; None for the default above. `()` holds none
            out: all letters that are not for testing are trained on, and validation tasks are drawn from them.

    Raises:
        MissingExtraError: matplotlib is not installed.
        ValueError: a held-out letter is not one of the classes, or is held out twice.
    """
    letters, x = _drawn()
    held_out = _every(letters, 3, 4) if test_classes is None else tuple(test_classes)
    left = tuple(letter for letter in letters if letter not in held_out)
    validation = _every(left, 2, 5) if validation_classes is None else tuple(validation_classes)
    for name, given in (("test_classes", held_out), ("validation_classes", validation)):
        if unknown := sorted(set(given) - set(letters)):
            raise ValueError(f"{name} has {unknown}, which are not classes: not in all {len(FACES)} faces, accented, "
                             f"or look-alikes of another letter. The classes are {''.join(letters)}")  # fmt: skip
    train = tuple(ord(letter) for letter in left if letter not in validation)
    settings = f"ways={ways}, test_classes={None if test_classes is None else held_out}, shuffled={shuffled}"
    if validation:
        settings += f", validation_classes={None if validation_classes is None else validation}"
    y = np.repeat([ord(letter) for letter in letters], len(FACES))
    return FewShotClasses(
        f"glyphs({settings})", x, y, train, tuple(map(ord, held_out)), ways, shuffled,
        validation_classes=tuple(map(ord, validation)),
    )  # fmt: skip


def _every(letters: Sequence[str], start: int, step: int) -> tuple[str, ...]:
    """Every `step`-th of `letters` from number `start` on, upper and lower case counted as one and taken together."""
    pairs = list(dict.fromkeys(letter.lower() for letter in letters))
    return tuple(letter for letter in letters if letter.lower() in pairs[start::step])


@cache
def _drawn() -> tuple[tuple[str, ...], np.ndarray]:
    """The letters without look-alikes in Unicode order, and their images [letters * faces, 1, SIZE, SIZE]."""
    candidates = common_letters()
    images = np.stack([draw(face, candidates) for face in FACES], 1)
    kept = unlike(images)
    x = images[kept].reshape(-1, 1, SIZE, SIZE)
    x.flags.writeable = False  # all families share it
    return tuple(candidates[i] for i in kept), x


def _font(face: str) -> "FT2Font":
    try:
        from matplotlib import get_data_path
        from matplotlib.ft2font import FT2Font
    except ImportError:
        raise MissingExtraError("the letters come with matplotlib, which is missing: pip install matplotlib") from None
    return FT2Font(str(Path(get_data_path(), "fonts", "ttf", f"{face}.ttf")))


def common_letters() -> list[str]:
    """The letters that all faces contain, upper and lower case, in Unicode order, without composites such as é (e with
    an accent)."""
    common = set.intersection(*(set(_font(face).get_charmap()) for face in FACES))
    return [letter for letter in map(chr, sorted(common))
            if unicodedata.category(letter) in ("Lu", "Ll") and not unicodedata.decomposition(letter)]  # fmt: skip


def draw(face: str, letters: Sequence[str]) -> np.ndarray:
    """Images of `letters` in one face, [letters, SIZE, SIZE], from 0 (paper) to 1 (ink)."""
    font = _font(face)
    from matplotlib.backends.backend_agg import RendererAgg
    from matplotlib.path import Path as Outline
    from matplotlib.transforms import IdentityTransform

    canvas = RendererAgg(SIZE, SIZE * len(letters), 72)  # one below the other
    pen = canvas.new_gc()
    pen.set_linewidth(0)
    pen.set_snap(False)  # or upright strokes would be moved to whole pixels: a bold T would be a plain one
    units = 2000.0  # per em: enough that hinting, which would move outlines to whole units, changes nothing
    font.set_size(units, 72)
    for i, letter in enumerate(letters):
        font.load_char(ord(letter))
        points, codes = font.get_path()
        points = points * _EM / units
        middle = (points[:, 0].min() + points[:, 0].max()) / 2
        points += SIZE / 2 - middle, _BASELINE + SIZE * (len(letters) - 1 - i)
        canvas.draw_path(pen, Outline(points, codes), IdentityTransform(), (0.0, 0.0, 0.0))
    ink = np.asarray(canvas.buffer_rgba())[..., 3]
    return (ink / 255).astype(np.float32).reshape(len(letters), SIZE, SIZE)


def unlike(images: np.ndarray) -> list[int]:
    """The indices of the letters that do not look like an earlier letter that was kept; images [letters, faces,
    ...]."""
    flat = images.reshape(*images.shape[:2], -1).swapaxes(0, 1).astype(np.float64)  # [faces, letters, pixels]
    square = (flat**2).sum(-1)
    distance = square[:, :, None] + square[:, None] - 2 * flat @ flat.swapaxes(1, 2)
    alike = (distance < LOOK_ALIKE**2 * np.minimum(square[:, :, None], square[:, None])).any(0)
    kept: list[int] = []
    for i in range(len(alike)):
        if not alike[i, kept].any():
            kept.append(i)
    return kept
