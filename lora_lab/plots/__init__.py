"""Pictures of the lessons, in one visual language: a title that says what to see, labels at the things they name.

Draws what it is given and computes nothing. Pictures are on white paper, which a dark page turns, and carry a text for
those who cannot see them.
"""

from .curves import LiveLoss, dots, lines, score_bars, shares
from .figures import Picture
from .mechanism import lora
from .stacked import memory
from .weights import heat, matrices, pairs, push

__all__ = ["LiveLoss", "Picture", "dots", "heat", "lines", "lora", "matrices", "memory", "pairs", "push",
           "score_bars", "shares"]
