"""The clips that come with mgray."""

from __future__ import annotations

from pathlib import Path

GRID_ADVERBS = str(Path(__file__).parent / "grid_adverbs")
"""1,000 clips of a speaker saying one of four words (GRID corpus, CC BY 4.0, see NOTICE there); 800 are to train on."""
