"""Simple pictures without a graphics library: strokes on a white square."""

from typing import Any

import numpy as np

PIXELS = 256
WHITE, GREY, BLACK = (255, 255, 255), (200, 200, 200), (60, 60, 60)
GREEN, BLUE, ORANGE = (44, 160, 44), (31, 119, 180), (255, 127, 14)

Colour = tuple[int, int, int]


class Picture:
    """An image [256, 256, 3] of the square of `half` the width around `centre`; the y axis points up."""

    def __init__(self, half: float, centre: tuple[float, float] = (0.0, 0.0)):
        axis = (2 * np.arange(PIXELS) + 1 - PIXELS) / PIXELS * half
        self.x, self.y = centre[0] + axis[None, :], centre[1] - axis[:, None]  # row 0 is the top
        self.image = np.full((PIXELS, PIXELS, 3), WHITE, np.uint8)

    def stroke(self, start: Any, end: Any, width: float, colour: Colour) -> None:
        """A line with round ends."""
        (ax, ay), (bx, by) = start, end
        length2 = (bx - ax) ** 2 + (by - ay) ** 2
        along = ((self.x - ax) * (bx - ax) + (self.y - ay) * (by - ay)) / length2 if length2 else np.zeros(1)
        along = np.clip(along, 0, 1)
        distance2 = (self.x - ax - along * (bx - ax)) ** 2 + (self.y - ay - along * (by - ay)) ** 2
        self.image[distance2 <= (width / 2) ** 2] = colour

    def disc(self, centre: Any, radius: float, colour: Colour) -> None:
        """A filled circle."""
        self.stroke(centre, centre, 2 * radius, colour)

    def below(self, heights: np.ndarray, colour: Colour) -> None:
        """Everything below a curve given at the columns of pixels `x[0]`."""
        self.image[self.y <= heights[None, :]] = colour
