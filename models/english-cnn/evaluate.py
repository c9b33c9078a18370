"""WikiText-2 and everyday English: the evaluation of english-lstm, of another model.

    gridloop evaluate english-cnn --data DIR [--url URL] [--write]

DIR is what `models/english-lstm/evaluate.py` says.
"""

from __future__ import annotations

from pathlib import Path

from service.evaluation import load_script

english = load_script(Path(__file__).resolve().parents[1] / "english-lstm" / "evaluate.py")


class EnglishByConvolutions(english.English):
    """WikiText-2 and sets of everyday English, each the official test split."""
