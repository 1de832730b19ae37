"""Where pictures are drawn as if taken: table, lamp, camera, and how old who comes there is."""

from dataclasses import dataclass

import numpy as np

Range = tuple[float, float]  # from and to, of which a picture draws one


@dataclass(frozen=True)
class Laboratory:
    """What all pictures of a set share. The defaults are those of the white table.

    A set differs from another's by these values alone, and by its persons: hands and poses are
    drawn in one way everywhere. Colours are factors, blur is px at 480 rows, grain a share of
    white.
    """

    size: tuple[int, int] = (640, 480)  # (W, H) px
    quality: tuple[int, int] = (80, 96)  # of JPEG, from and below
    ages: tuple[float, float, float] = (19, 1.3, 4.5)  # youngest; gamma's shape and scale above
    distance: float = 1.0  # of the camera, against the white table's
    direction: Range = (-np.pi, np.pi)  # of the lamp, radians: -pi/2 is the picture's upper edge
    tilt: Range = (0.25, 0.6)  # of the lamp off the vertical, as a sine
    ambient: Range = (0.3, 0.47)
    tint: tuple[float, float, float] = (1.0, 1.0, 1.0)  # of the light
    contact: Range = (0.15, 0.42)  # darkness of the shadow beside the hand
    cast: Range = (0.04, 0.26)  # and of the wide one
    cloth: tuple[float, float, float] | None = None  # sRGB 0..1; None: a white table
    mix: tuple[tuple[float, float, float], ...] | None = None  # of the sensor's colours, by row
    vignette: float = 0.0  # light that is lost in the corners
    blur: Range = (0.25, 0.95)
    sharpen: float = 0.0  # how much of what blur took away the camera puts back
    grain: Range = (0.004, 0.014)


LABORATORIES = {
    "white_table": Laboratory(),
    # An older camera, higher up; a lamp at the upper left; persons of all ages
    "other": Laboratory(
        size=(512, 384),
        quality=(68, 84),
        ages=(22, 2.4, 11.0),
        distance=1.1,
        direction=(-2.75, -1.95),
        tilt=(0.5, 0.72),
        ambient=(0.24, 0.36),
        tint=(1.0, 0.94, 0.83),
        contact=(0.25, 0.5),
        cast=(0.1, 0.28),
        cloth=(0.19, 0.27, 0.4),
        mix=((0.9, 0.12, -0.02), (0.05, 0.88, 0.07), (0.02, 0.1, 0.88)),
        vignette=0.22,
        blur=(0.8, 1.4),
        sharpen=0.7,
        grain=(0.012, 0.024),
    ),
}
