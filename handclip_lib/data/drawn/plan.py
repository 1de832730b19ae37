"""Which pictures a drawn set has: its persons and their numbers, in the layout of 11k or of HD."""

from dataclasses import dataclass
from math import ceil

from handclip_lib.aspects import CHAIN
from handclip_lib.data.drawn.laboratory import LABORATORIES
from handclip_lib.data.drawn.person import Person, make_person, person_seed, stream

MOST_OF_HD = 500  # main persons, whose numbers must stay clear of the extra ones' + 1000
_MAIN, _EXTRA = "Original Images/1-501", "Original Images/502-712"
_EXTRA_SHARE = 213 / 502  # extra persons of HD for each main one


@dataclass(frozen=True)
class Picture:
    """One photograph of a set and what it takes to draw it. image: its path under the root."""

    image: str
    pid: int
    person: Person
    aspect: str
    shot: int
    accessories: bool
    nail_polish: bool
    irregular: bool

    @property
    def name(self) -> str:
        """The file's name without its folder."""
        return self.image.rpartition("/")[2]


def plan(
    persons: int,
    seed: int,
    shots: tuple[int, int],
    layout: str = "11k",
    laboratory: str = "white_table",
) -> list[Picture]:
    """All pictures of a set in the order of the table; a person's don't depend on later ones.

    Sets of another layout or laboratory have other persons, whatever their seeds. layout hd: right
    hands of `persons` and, in the same proportion as in HD, of extra persons besides, numbered
    apart; nobody wears anything. ValueError where numbers of the two would meet.
    """
    usual = (layout, laboratory) == ("11k", "white_table")
    name = "drawn" if usual else f"drawn {layout} {laboratory}"
    if layout == "11k":
        return _as_11k([_person(name, laboratory, seed, k) for k in range(persons)], shots)
    if persons > MOST_OF_HD:
        raise ValueError(f"persons={persons}: a set in HD's layout has {MOST_OF_HD} at most")
    main = [_person(name, laboratory, seed, k) for k in range(persons)]
    more = ceil(_EXTRA_SHARE * persons)
    extra = [_person(f"{name} extra", laboratory, seed, k) for k in range(more)]
    fewer = max(1, shots[0] // 2), shots[1]
    # As in HD, numbers of the one folder are persons of the other, too, and sort otherwise as text
    return _as_hd(_MAIN, main, shots, 0, 490) + _as_hd(_EXTRA, extra, fewer, 501, 0)


def _person(name: str, laboratory: str, seed: int, index: int) -> Person:
    return make_person(person_seed(name, seed, index), LABORATORIES[laboratory].ages)


def _as_11k(people: list[Person], shots: tuple[int, int]) -> list[Picture]:
    """Four aspects of each, pictures with accessories after the plain ones."""
    rows: list[Picture] = []
    pid, number = 0, 1
    for person in people:
        rng = stream(person.seed, "plan", *shots)
        pid += int(rng.integers(1, 9)) + (400 if rng.random() < 0.04 else 0)
        polish = person.gender == "female" and rng.random() < 0.25
        wears, irregular = rng.random() < 0.75, rng.random() < 0.03
        for aspect in CHAIN:
            plain = int(rng.integers(shots[0], shots[1] + 1))
            worn = max(1, round(plain * rng.uniform(0.2, 0.5))) if wears else 0
            for shot in range(plain + worn):
                number += 1 + (int(rng.integers(1, 5)) if rng.random() < 0.05 else 0)
                image = f"Hands/Hand_{number:07d}.jpg"
                rows.append(
                    Picture(image, pid, person, aspect, shot, shot >= plain, polish, irregular)
                )
    return rows


def _as_hd(
    folder: str, people: list[Person], shots: tuple[int, int], before: int, gap: int
) -> list[Picture]:
    """Backs of right hands; numbers rise by one or two from `before`, and by `gap` after four."""
    rows: list[Picture] = []
    pid = before
    for index, person in enumerate(people):
        rng = stream(person.seed, "plan", *shots)
        pid += int(rng.integers(1, 3)) + gap * (index == 4)
        polish = person.gender == "female" and rng.random() < 0.25
        for shot in range(int(rng.integers(shots[0], shots[1] + 1))):
            image = f"{folder}/{pid}_{shot + 1}.jpg"
            rows.append(Picture(image, pid, person, CHAIN[0], shot, False, polish, False))
    return rows
