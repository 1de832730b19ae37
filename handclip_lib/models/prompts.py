"""Prompts with words that are learned: a few for each identity, where a template says `{person}`.

After CLIP-ReID's first stage, Li et al. 2023, arXiv:2211.13977, section 3.2, and CoOp, Zhou et al.
2022, arXiv:2109.01134.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd
import torch
from torch import nn
from torch.nn import functional

from handclip_lib.models.text import TextTower

Init = Literal["random", "words", "attributes", "image"]
_SLOT, _PLACE = (
    "{person}",
    "X",
)  # in a template; the word that stands in a slot when it is tokenised
_STD = 0.02  # CoOp, section 3.1
_STEPS, _LR = 50, 2e-3  # of start_vectors' image
_AGES = ((25, "young"), (40, "adult"), (60, "middle-aged"), (200, "elderly"))
_NAILS = {0: "bare nails", 1: "nail polish"}
_COLUMNS = ("gender", "age", "skinColor", "nailPolish")


@dataclass(frozen=True, eq=False)
class Slots:
    """A tokenised template. tokens: (L,) int64, for a causal tower cut after the pooled row; at:
    (M,) int64, where the words to be learned go, rising; end: the row that is pooled.
    """

    tokens: torch.Tensor
    at: torch.Tensor
    end: int


def find_slots(tower: TextTower, template: str, count: int) -> Slots:
    """Where `count` words go in a template with `{person}`, found by token, whatever is around it.

    Raises ValueError when the template has not that one brace, when it has words that are taken
    for slots, or when it does not fit the tower's context.
    """
    if template.count(_SLOT) != 1 or "{" in template.replace(_SLOT, "") or count < 1:
        raise ValueError(
            f"template '{template}': {_SLOT} must be there once, and no other brace, for at least"
            f" one word; asked for {count}"
        )
    text = _filled(template, count)
    if not tower.fits(text):
        room = [n for n in range(1, count) if tower.fits(_filled(template, n))]
        raise ValueError(
            f"template '{template}': with {count} words for {_SLOT} it does not fit"
            f" {tower.context} tokens; {max(room, default=0)} words do"
        )
    tokens = tower.tokens([text])  # (1, context)
    at = (tokens[0] == _place(tower)).nonzero()[:, 0]
    if len(at) != count or int(at[-1] - at[0]) != count - 1:
        raise ValueError(
            f"template '{template}': its words give no {count} slots in a row; {_SLOT} must stand"
            f" by itself, and '{_PLACE}' or '{_PLACE.lower()}' must be no word of the template"
        )
    end = int(tower.end(tokens))
    return Slots(tokens[0, : end + 1] if tower.causal else tokens[0], at, end)


class PromptLearner(nn.Module):
    """Words for `num_ids` identities, C, and the texts they make in a tower that stays as it is.

    slots: R prompts of an identity, with M words each, all of their own; start: (C, M, W) first
    words, None for N(0, 0.02); those of further prompts are moved by N(0, 0.02), or they would stay
    the same; dropout: share of the words that are left out (zero) in training mode, the rest
    growing accordingly. `ctx` (R, C, M, W) float32 is all that learns and all that is saved.
    """

    def __init__(
        self,
        tower: TextTower,
        slots: Sequence[Slots],
        num_ids: int,
        start: torch.Tensor | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        counts = {len(told.at) for told in slots}
        if len(counts) != 1:
            raise ValueError(f"prompts must have one number of words, not {sorted(counts)}")
        shape = (num_ids, counts.pop(), tower.width)
        if start is not None and start.shape != shape:
            raise ValueError(f"start: expected {shape}, got {tuple(start.shape)}")
        ctx = _STD * torch.randn(len(slots), *shape)
        if start is not None:
            ctx[0] = 0.0
            ctx = ctx + start.detach().float().cpu()
        self.ctx = nn.Parameter(ctx)
        self.tower, self.dropout = tower, dropout
        self.ends = [told.end for told in slots]
        for r, told in enumerate(slots):
            self.register_buffer(f"tokens{r}", told.tokens, persistent=False)
            self.register_buffer(f"at{r}", told.at, persistent=False)

    def each(self, labels: torch.Tensor | None = None, unit: bool = True) -> torch.Tensor:
        """(R, K, E) text features of identities (K,), None for all; unit: rows of length 1."""
        found = torch.stack([self._encode(r, labels) for r in range(len(self.ends))])
        return functional.normalize(found, dim=2) if unit else found

    def forward(self, labels: torch.Tensor | None = None, unit: bool = True) -> torch.Tensor:
        """(K, E): the mean over an identity's prompts, of length 1 unless `unit` is off.

        Features are averaged, after the tower: templates of different lengths have their words and
        ends at different rows.
        """
        mean = self.each(labels, unit).mean(dim=0)
        return functional.normalize(mean, dim=1) if unit else mean

    @staticmethod
    def diversity(each: torch.Tensor) -> torch.Tensor:
        """Mean cosine between two prompts of an identity, to be minimised; 0 where R is 1.

        each: (R, K, E) unit rows. Scalar in [-1, 1].
        """
        count = len(each)
        among = each.sum(dim=0).square().sum(dim=1) - each.square().sum(dim=(0, 2))  # (K,)
        return among.mean() / max(count * (count - 1), 1)

    def _encode(self, r: int, labels: torch.Tensor | None) -> torch.Tensor:
        ctx = self.ctx[r] if labels is None else self.ctx[r, labels]  # (K, M, W)
        if self.training and self.dropout:
            ctx = ctx * functional.dropout(torch.ones_like(ctx[:, :, :1]), self.dropout)
        tokens, at = self.get_buffer(f"tokens{r}"), self.get_buffer(f"at{r}")
        return _written(self.tower, tokens, at, self.ends[r], ctx)


def nearest_words(learner: PromptLearner, tokenizer: Any, label: int, k: int) -> list[list[str]]:
    """Of each slot of an identity's first prompt the k words nearest to it by cosine, best first.

    tokenizer: the encoder's. A word may be a piece of one, as the vocabulary has them.
    """
    table = functional.normalize(learner.tower.table.float(), dim=1)  # (V, W)
    learned = functional.normalize(learner.ctx[0, label].detach().to(table.device), dim=1)
    sim = learned @ table.T  # (M, V)
    inner = getattr(tokenizer, "tokenizer", tokenizer)  # Hugging Face's lies within open_clip's
    sim[:, list(inner.all_special_ids)] = -2.0  # start and end of a text are no words
    best = sim.topk(k, dim=1).indices.tolist()
    return [[inner.decode([token]).strip() for token in row] for row in best]


def start_vectors(
    init: Init,
    tower: TextTower,
    slots: Slots,
    people: pd.DataFrame,
    mean_image: torch.Tensor | None,
    words: Sequence[str],
    seed: int,
) -> torch.Tensor | None:
    """First words (C, M, W) of the C identities of `people`, a row each; None for random ones.

    words: the embeddings of `words`, in turn, until M; attributes: those of each identity's gender,
    age, skinColor and nailPolish; both moved by a tenth of a word's length, drawn with `seed`, so
    that no two identities are equal; image: from `words`, 50 steps of Adam towards `mean_image`
    (C, E), unit means of each identity's image features. Raises ValueError on a missing column,
    on words without a token, and without mean_image where it is needed.
    """
    if init == "random":
        return None
    alike = [" ".join(words)] * len(people)
    texts = attribute_words(people) if init == "attributes" else alike
    start = torch.stack([_repeated(tower, text, len(slots.at)) for text in texts])
    spread = 0.1 * tower.typical_norm / tower.width**0.5
    generator = torch.Generator().manual_seed(seed)
    start = start + spread * torch.randn(start.shape, generator=generator).to(start.device)
    if init != "image":
        return start
    if mean_image is None:
        raise ValueError("init: image needs the identities' mean image features")
    return _towards(tower, slots, start, mean_image.to(start.device))


def attribute_words(people: pd.DataFrame) -> list[str]:
    """A few words on each person (row): gender, age, skin, nails, from 11k Hands' columns."""
    missing = [name for name in _COLUMNS if name not in people.columns]
    if missing:
        raise ValueError(
            f"words for persons (attributes) need the columns {', '.join(missing)} of the metadata;"
            f" there are {', '.join(map(str, people.columns))}"
        )
    for name in _COLUMNS:
        untold = people.index[people[name].isna()]
        if len(untold):
            raise ValueError(
                f"words for persons (attributes): person {untold[0]} has no {name} in the metadata"
            )
    rows = zip(*(people[name] for name in _COLUMNS), strict=True)
    return [
        f"{gender} {_age(int(years))} {skin} skin {_NAILS[int(nails)]}"
        for gender, years, skin, nails in rows
    ]


def _age(years: int) -> str:
    return next(word for limit, word in _AGES if years < limit)


def _filled(template: str, count: int) -> str:
    return template.replace(_SLOT, " ".join([_PLACE] * count))


def _place(tower: TextTower) -> int:
    """The token of the word that stands in a slot."""
    (token,) = _own_tokens(tower, _PLACE)
    return token


def _own_tokens(tower: TextTower, text: str) -> list[int]:
    """A text's tokens without those that every text has: start, end and padding."""
    frame = set(tower.tokens([""])[0].tolist())
    return [token for token in tower.tokens([text])[0].tolist() if token not in frame]


def _repeated(tower: TextTower, text: str, count: int) -> torch.Tensor:
    """(count, W) embeddings of a text's tokens, from the first again when they run out."""
    tokens = _own_tokens(tower, text)
    if not tokens:
        raise ValueError(f"init: '{text}' has no token to start from")
    turns = -(-count // len(tokens))
    return tower.table[(tokens * turns)[:count]].float()


def _written(
    tower: TextTower, tokens: torch.Tensor, at: torch.Tensor, end: int, words: torch.Tensor
) -> torch.Tensor:
    """(K, E) raw features of one template with K times M words (K, M, W) in its slots."""
    embedded = tower.embed(tokens[None]).expand(len(words), -1, -1)  # (K, L, W)
    embedded = embedded.index_copy(1, at, words.to(embedded.dtype))
    return tower.encode(embedded, torch.full((len(words),), end, device=words.device))


def _towards(
    tower: TextTower, slots: Slots, start: torch.Tensor, mean_image: torch.Tensor
) -> torch.Tensor:
    """Words whose texts lie nearer to image features (C, E) than those of `start` (C, M, W)."""
    words = start.clone().requires_grad_()
    adam = torch.optim.Adam([words], lr=_LR)
    for _ in range(_STEPS):
        text = _written(tower, slots.tokens, slots.at, slots.end, words)
        loss = -functional.cosine_similarity(text, mean_image, dim=1).sum()
        (words.grad,) = torch.autograd.grad(loss, [words])  # the tower collects none
        adam.step()
    return words.detach()
