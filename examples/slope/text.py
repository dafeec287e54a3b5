"""Text to learn: the reference of the Python language, half a million characters that come with every Python."""

from __future__ import annotations

import pydoc_data.topics
from collections import Counter
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - as everybody writes it

#: Different characters; all rarer ones are the last of them.
SYMBOLS = 64
#: Characters that the next one is guessed from.
CONTEXT = 8


class Windows(NamedTuple):
    """Places in a text: the characters before each, int64 (places, CONTEXT), and the one there, int64 (places,)."""

    before: Tensor
    then: Tensor

    def inputs(self) -> Tensor:
        """What the network sees: float32 (places, CONTEXT * SYMBOLS), a one for each character."""
        return F.one_hot(self.before, SYMBOLS).flatten(1).float()


def characters() -> Tensor:
    """The text as numbers of characters, the commonest first; int64 (length,)."""
    text = "".join(pydoc_data.topics.topics.values()).lower()
    numbers = {character: at for at, (character, _) in enumerate(Counter(text).most_common(SYMBOLS - 1))}
    return torch.tensor([numbers.get(character, SYMBOLS - 1) for character in text])


def load(samples: int, held_out: int, seed: int) -> tuple[Windows, Windows]:
    """Places drawn from the first nine tenths of the text to train on, and from the last tenth to validate on."""
    text = characters()
    border = len(text) * 9 // 10
    generator = torch.Generator().manual_seed(seed)
    return (
        _windows(text, torch.randint(CONTEXT, border, (samples,), generator=generator)),
        _windows(text, torch.randint(border + CONTEXT, len(text), (held_out,), generator=generator)),
    )


def _windows(text: Tensor, at: Tensor) -> Windows:
    return Windows(text[at[:, None] + torch.arange(-CONTEXT, 0)], text[at])
