r"""Normal form: how text is read, whatever characters it came with.

Text from word processors, web pages, PDFs and phones holds characters that nobody sees and others that merely look like
those on a keyboard. They are read as what they look like, which is also how the vocabulary is spelt:

- what has no width is left out: joiners, soft hyphens, direction marks, byte-order marks, variation selectors, control
  characters. In the middle of an emoji, joiners stay: there they make one picture of several;
- every kind of line break is `\n`, and U+2800, an empty Braille cell, is a space;
- accents are composed (NFC);
- compatibility characters are unfolded, as NFKC does: ligatures, full-width and mathematical letters, Roman numerals,
  units;
- typographic quotes, apostrophes and hyphens are those of a keyboard.

Not unfolded, because it would change the meaning or the spelling that the texts of the training have: superscripts,
subscripts and fractions (x² is not x2, 5½ not 51/2, and ™ no word), characters in circles, accents that stand alone,
and µ and ″. Dashes, the minus sign, primes, and letters of other scripts that look like Latin ones stay what they are.

References:
    Unicode Standard Annex #15, "Unicode Normalization Forms"; DerivedCoreProperties.txt, Default_Ignorable_Code_Point;
    Unicode Technical Standard #51, "Unicode Emoji", emoji sequences.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from itertools import chain

# ------------------------------------------------------------------------------------------------ what nobody sees

_WITHOUT_WIDTH = (
    *(range(0x09), range(0x0E, 0x1C), range(0x7F, 0x85), range(0x86, 0xA0)),
    *(range(0xAD, 0xAE), range(0x34F, 0x350), range(0x61C, 0x61D), range(0x115F, 0x1161), range(0x17B4, 0x17B6)),
    *(range(0x180B, 0x1810), range(0x200B, 0x200D), range(0x200E, 0x2010), range(0x202A, 0x202F)),
    *(range(0x2060, 0x2070), range(0x3164, 0x3165), range(0xFE00, 0xFE10), range(0xFEFF, 0xFF00)),
    *(range(0xFFA0, 0xFFA1), range(0xFFF0, 0xFFFC), range(0x1BCA0, 0x1BCA4), range(0x1D173, 0x1D17B)),
    *(range(0xE0000, 0xE0020), range(0xE0080, 0xE1000)),
)
"""Control characters that are no spaces, default ignorable code points but the joiners of emoji, and the marks around
annotations (U+FFF9 to U+FFFB)."""
_VISIBLE = {
    **dict.fromkeys(chain(*_WITHOUT_WIDTH), ""),
    **dict.fromkeys(map(ord, "\r\x0b\x0c\x85\u2028\u2029"), "\n"),
    0x2800: " ",
}

_JOINERS = r"\u200d\U000e0020-\U000e007f"
"""Zero width joiner, and the tags that say whose flag it is."""
_PICTURE = (
    r"(?!\w)[©®\u2190-\u21ff\u2300-\u27bf\u2900-\u297f\u2b00-\u2bff\u3030\u303d\u3297\u3299\U0001f000-\U0001faff]"
)
_PART = rf"{_PICTURE}[\U0001f3fb-\U0001f3ff\U000e0020-\U000e007f]*"
EMOJI = rf"(?:[\U0001f1e6-\U0001f1ff]{{2}}|{_PART}(?:\u200d{_PART})*)"
"""Pattern of one picture: a flag; or an emoji, with its skin tone and others that are joined to it."""
_EMOJI_OR_JOINER = re.compile(rf"({EMOJI})|[{_JOINERS}]")


def visible(text: str) -> str:
    r"""Leave out what nobody sees, character by character, so that it doesn't matter where a text is cut.

    Joiners that may be in the middle of an emoji stay; `normalise` sees to them. Line breaks become `\n`.
    """
    return text if text.isascii() and text.isprintable() else text.translate(_VISIBLE)


# -------------------------------------------------------------------------------------------- what merely looks like it

_KEYBOARD: dict[int, str] = {
    **dict.fromkeys(map(ord, "’‘‚‛ʼ‹›❛❜"), "'"),
    **dict.fromkeys(map(ord, "“”„‟«»〝〞〟❝❞"), '"'),
    **dict.fromkeys(map(ord, "‐‑"), "-"),
    ord("‒"): "–",
    ord("―"): "—",
}
"""Typographic quotes, apostrophes and hyphens; and the rarer dashes, as the usual ones."""
_SPELT_SO = "µ″"
"""Compatibility characters that the training texts hold: µm and 5″ are words there."""
_CHANGES_MEANING = ("<super>", "<sub>", "<fraction>", "<circle>")
_BLOCKS = (range(0xA0, 0x3400), range(0xFB00, 0x10000), range(0x1D400, 0x1D800), range(0x1EE00, 0x1FC00))
"""Where compatibility characters are, but for a few superscripts."""


def _is_safe(character: str) -> bool:
    """Whether a character says the same when its compatibility decomposition is written instead, however deep."""
    kind, *parts = unicodedata.decomposition(character).split() or [""]
    if not kind.startswith("<"):
        return True
    codes = [chr(int(part, 16)) for part in parts]
    return kind not in _CHANGES_MEANING and " " not in codes and all(map(_is_safe, codes))


def _unfolded(codes: Iterable[int]) -> dict[int, str]:
    found = {}
    for character in map(chr, codes):
        if unicodedata.decomposition(character)[:1] == "<" and character not in _SPELT_SO and _is_safe(character):
            found[ord(character)] = unicodedata.normalize("NFKC", character)
    return found


_FOLD = {code: text.translate(_KEYBOARD) for code, text in _unfolded(chain(*_BLOCKS)).items()} | _KEYBOARD
_APOSTROPHE = re.compile(r"(?<=[^\W\d_])[´`′](?=[^\W\d_])")
"""An accent or a prime between two letters; elsewhere these are quotes of code, feet and minutes."""


def normalise(text: str) -> str:
    """The normal form of a text: what looks the same is spelt the same, and what nobody sees isn't there.

    The normal form of a normal form is itself. Spaces stay as they are.
    """
    text = visible(text)
    if not text.isascii():
        text = _EMOJI_OR_JOINER.sub(r"\1", text)
        text = unicodedata.normalize("NFC", unicodedata.normalize("NFD", text).translate(_FOLD))
    elif "`" not in text:
        return text
    return _APOSTROPHE.sub("'", text)
