"""A text tower from the inside: texts go in as embeddings, so that single words can be learned."""

from collections.abc import Sequence
from typing import Any

import torch
from open_clip.transformer import TextTransformer
from torch import nn

from handclip_lib.models.clip import Encoder

_POOLS = ("argmax", "eos", "first", "last")


class TextTower:
    """A view of an encoder's text side, which may lie flat in open_clip's CLIP or under `.text`.

    It is no module and owns nothing: the weights stay the encoder's and follow it from device to
    device. Gradient flows through them to embeddings that learn, whether they are frozen or not.
    Raises TypeError on text towers of other libraries and on those that pool a class token.
    """

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        text = getattr(encoder.model, "text", None)
        if text is not None:
            _check(encoder.name, text)
        self.context = int(encoder.model.context_length)
        if self._pool not in _POOLS:
            raise TypeError(f"{encoder.name}: its text tower pools by '{self._pool}', not at a row")

    @property
    def width(self) -> int:
        """W, of a token's embedding."""
        return int(self.table.shape[1])

    @property
    def causal(self) -> bool:
        """Whether no token sees those after it: what follows the pooled row can be left out."""
        return self._side.attn_mask is not None

    @property
    def typical_norm(self) -> float:
        """Median length of the embeddings in its table (about 0.4 for OpenAI's weights)."""
        return float(self.table.norm(dim=1).median())

    @property
    def table(self) -> torch.Tensor:
        """(V, W) the embeddings of its vocabulary, without gradient."""
        weight: torch.Tensor = self._side.token_embedding.weight
        return weight.detach()

    def tokens(self, texts: Sequence[str]) -> torch.Tensor:
        """int64 (N, context) of N texts. What does not fit is cut off."""
        found: torch.Tensor = self._encoder.tokenizer(list(texts), context_length=self.context)
        return found.to(self.table.device)

    def fits(self, text: str) -> bool:
        """Whether all of a text's tokens lie in the context."""
        longer = self._encoder.tokenizer([text], context_length=2 * self.context)
        return torch.equal(self.tokens([text]).cpu(), longer[:, : self.context])

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """(N, L) int64 to (N, L, W), without positions."""
        embedded: torch.Tensor = self._side.token_embedding(tokens)
        return embedded

    def end(self, tokens: torch.Tensor) -> torch.Tensor:
        """(N,) the row of each text (N, L) that the tower pools: for CLIP the end-of-text token."""
        if self._pool == "argmax":
            return tokens.argmax(dim=1)
        if self._pool == "eos":
            return (tokens == self._eos).int().argmax(dim=1)
        row = 0 if self._pool == "first" else tokens.shape[1] - 1
        return torch.full((len(tokens),), row, device=tokens.device)

    def encode(self, embedded: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
        """(N, L, W) without positions, pooled rows (N,) -> (N, E) raw features, float32.

        L: the context, or less, down to the last pooled row + 1, where the tower is causal: the
        features are the same. Raises ValueError on a cut text of another tower.
        """
        length = embedded.shape[1]
        if length > self.context or (length < self.context and not self.causal):
            raise ValueError(
                f"{self._encoder.name}: {length} tokens for a context of {self.context}"
                f"{'' if self.causal else '; its text tower sees all of it: nothing can be cut'}"
            )
        side = self._side
        mask = None if side.attn_mask is None else side.attn_mask[:length, :length]
        x = side.transformer(embedded + side.positional_embedding[:length], attn_mask=mask)
        rows = side.ln_final(x[torch.arange(len(x), device=x.device), ends])  # (N, W)
        projection = side.text_projection
        if isinstance(projection, nn.Linear):
            rows = projection(rows)
        elif projection is not None:
            rows = rows @ projection
        features: torch.Tensor = rows.float()
        return features

    @property
    def _side(self) -> Any:
        """What holds the parts: the model itself, or its `.text`."""
        return getattr(self._encoder.model, "text", self._encoder.model)

    @property
    def _pool(self) -> str:
        side = self._side
        return str(side.pool_type if isinstance(side, TextTransformer) else side.text_pool_type)

    @property
    def _eos(self) -> int:
        side = self._side
        return int(side.eos_id if isinstance(side, TextTransformer) else side.text_eos_id)


def _check(name: str, text: nn.Module) -> None:
    if not isinstance(text, TextTransformer):
        raise TypeError(
            f"{name}: its text tower is a {type(text).__name__}, not open_clip's own: prompts"
            " cannot be learned through it; take another model, e.g. ViT-B-16-quickgelu"
        )
    if text.cls_emb is not None:
        raise TypeError(
            f"{name}: its text tower pools a class token (CoCa): prompts cannot be learned through"
            " it; take another model, e.g. ViT-B-16-quickgelu"
        )
