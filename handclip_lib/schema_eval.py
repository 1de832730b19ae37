"""What notebook 06 asks of models that are there: further ways to rank, to err and to look."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, field_validator

from handclip_lib.schema_base import Amount, Count, Node, Share, no_bool


class Reranking(Node):
    """k-reciprocal re-ranking; k1 is to be smaller than the photographs of an identity."""

    k1: Count = 10
    k2: Count = 3
    lam: Share = 0.3  # of the plain distance in the mixture


class Comparison(Node):
    """Notebook 06."""

    reference: str = "stage1"  # the row that others are tested against
    shown: tuple[str, ...] = ("zero_shot", "stage1", "mba")  # rows that are looked at closely
    models: tuple[str, ...] = ()  # further towers: open_clip names, model folders, weights files
    reranking: tuple[Reranking, ...] = (Reranking(), Reranking(k1=20, k2=6))
    expand: Count = 3  # gallery entries that are added to a query, and to a gallery entry
    expand_alpha: Amount = 3.0  # power of the similarity that they weigh
    whiten: Count | None = None  # dimensions kept by whitening; None: all that training spans
    open_share: Annotated[float, BeforeValidator(no_bool), Field(gt=0, lt=1)] = 0.3
    fmr: Annotated[float, BeforeValidator(no_bool), Field(gt=0, lt=1)] = 0.01  # of the threshold
    folds: Annotated[int, BeforeValidator(no_bool), Field(ge=3)] = 5  # of persons, for calibration
    others: dict[str, dict[str, Any]] = {}  # other data sets by name: what differs from `data`
    photographs: Count = 4  # that are explained
    deleted: Share = 0.1  # of an image's patches

    @field_validator("shown", "models", "reranking")
    @classmethod
    def _distinct(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        if len({str(one) for one in value}) != len(value):
            raise ValueError("each is named once")
        return value
