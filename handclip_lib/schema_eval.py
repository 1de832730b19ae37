"""What notebook 06 asks of models that are there: further ways to rank, to err and to look."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, field_validator

from handclip_lib.schema_base import Amount, Count, Model, Node, Share, no_bool


def _named(value: object) -> object:
    """A name alone is a tower that brings its weights along: a folder, a file, `tiny_rn`."""
    return {"name": value, "pretrained": ""} if isinstance(value, str) else value


class Reranking(Node):
    """k-reciprocal re-ranking; k1 is to be smaller than the photographs of an identity."""

    k1: Count = 10
    k2: Count = 3
    lam: Share = 0.3  # of the plain distance in the mixture


class Comparison(Node):
    """Notebook 06."""

    reference: str = "stage1"  # the row that others are tested against
    shown: tuple[str, ...] = ("zero_shot", "stage1", "mba")  # rows that are looked at closely
    # Further towers, as `model`: {name: ViT-B-32, pretrained: TAG}; a folder or file by its name
    models: tuple[Annotated[Model, BeforeValidator(_named)], ...] = ()
    reranking: tuple[Reranking, ...] = (Reranking(), Reranking(k1=20, k2=6))
    expand: Count = 3  # gallery entries that are added to a query, and to a gallery entry
    expand_alpha: Amount = 3.0  # power of the similarity that they weigh
    whiten: Count | None = None  # dimensions kept by whitening; None: all that training spans
    open_share: Annotated[float, BeforeValidator(no_bool), Field(gt=0, lt=1)] = 0.3
    fmr: Annotated[float, BeforeValidator(no_bool), Field(gt=0, lt=1)] = 0.01  # of the threshold
    folds: Annotated[int, BeforeValidator(no_bool), Field(ge=3)] = 5  # of persons, for calibration
    # Other data sets by name: what differs from `data`, and `aspect`, where it has another
    others: dict[str, dict[str, Any]] = {}
    photographs: Count = 4  # whose maps are shown; the first of every person is explained
    spoiled_queries: Count = 2  # photographs of a person that are spoiled, level by level
    deleted: Share = 0.1  # of the places that are blanked, on the hand where it is known

    @field_validator("shown", "models", "reranking")
    @classmethod
    def _distinct(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        if len({str(one) for one in value}) != len(value):
            raise ValueError("each is named once")
        return value
