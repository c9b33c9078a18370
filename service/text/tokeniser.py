"""Tokeniser: typed English into the tokens of WikiText-2, and back.

Text is read in *chunks*, the runs of characters between spaces, and the tokens of a chunk depend on that chunk alone:
that is what lets a stream of text be cut at any character.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from service.text.normal_form import EMOJI, normalise, visible

END = "<eos>"
"""Ends a paragraph; also the token that opens every fresh stream."""
MAX_CHUNK_CHARS = 256
"""A longer run of characters without a space is cut there, so that what is pending stays small (characters)."""

JOINERS = {"-": "@-@", ",": "@,@", ".": "@.@"}
_TOKEN = re.compile(
    r"""
      (?P<contraction>\b (?: [a-z]+n't | ma'am | y'all | o'clock
          | (?:i|you|he|she|it|we|they|that|this|there|here|what|who|where|when|how|why|let)'(?:s|re|ll|d|ve|m) )
          (?![^\W_]|'[^\W_]) )
    | (?P<dotted> (?:[^\W\d_]\.){2,} )                                 # U.S.  e.g.  p.m.
    | (?P<abbreviation>\b (?:mr|mrs|ms|dr|st|jr|sr|prof|gen|col|lt|sgt|capt|sen|gov|rev|inc|ltd|co|bros|vs)\. )
    | (?P<initial>\b (?-i:[A-HJ-Z])\.(?=$|(?-i:[A-Z])) )               # J. Smith
    | (?P<number> \d+(?:[.,]\d+)+ )                                    # 1,000  3.5
    | (?P<word> [^\W_]+ )
    | (?P<suffix> (?<=[^\W_])'[^\W_]+ )                                # 's
    | (?P<hyphen> (?<=[^\W_])-(?=[^\W_]) )
    | (?P<dots> \.{2,} )
    | (?P<emoji> EMOJI )
    | (?P<mark> . )
    """.replace("EMOJI", EMOJI),
    re.VERBOSE | re.IGNORECASE | re.DOTALL,
)
PIECE = re.compile(rf"\n\s*|\S{{1,{MAX_CHUNK_CHARS}}}")
"""A chunk, or line breaks."""
FRAGMENT = re.compile(r"[^\W_]+(?:'[^\W_]*)?$")


def unfinished_from(text: str) -> int:
    """Where the last chunk of a text begins, to which more may be added; the end, where a space or a cut ends it."""
    if not text or text[-1].isspace():
        return len(text)
    return len(text) - len(text.rsplit(maxsplit=1)[-1]) % MAX_CHUNK_CHARS


def split_chunk(chunk: str) -> Iterator[tuple[int, str]]:
    """Tokens of a normalised chunk, each with the place where it starts."""
    for match in _TOKEN.finditer(chunk):
        kind, token, start = match.lastgroup, match.group(), match.start()
        if kind == "number":
            for part in re.finditer(r"[.,]|\d+", token):
                yield start + part.start(), JOINERS.get(part.group(), part.group())
        elif kind == "hyphen":
            yield start, "@-@"
        elif kind == "dots":
            yield start, "..."
        else:
            yield start, token


def tokenise_chunk(chunk: str) -> list[str]:
    """Split what stands between two spaces into the tokens of WikiText-2, except that contractions stay whole.

    The tokens of a chunk depend on nothing but the chunk: that is what lets a stream be cut at any character.
    """
    return [token for _, token in split_chunk(normalise(chunk))]


def tokenise(text: str) -> list[str]:
    """Split typed English into tokens; line breaks between two lines become one `<eos>`."""
    tokens: list[str] = []
    for piece in PIECE.findall(visible(text)):
        if piece[0] != "\n":
            tokens += tokenise_chunk(piece)
        elif tokens and tokens[-1] != END:
            tokens.append(END)
    return tokens


def join(tokens: Iterable[str]) -> str:
    """Put tokens together as a person would type them: the way back from `tokenise`."""
    text = ""
    before = ""
    open_quote = False
    glue = True  # no space before the next token
    for token in tokens:
        shown = {"@-@": "-", "@,@": ",", "@.@": "."}.get(token, token)
        if token == END:
            text, glue, open_quote, before = text + "\n", True, False, ""
            continue
        digits = before[-1:].isdigit()
        sticks = (
            token in JOINERS.values()
            or (token[0] == "'" and len(token) > 1 and before[-1:].isalnum())
            or (token == "'" and before[-1:] in ("s", "S"))
            or (token[0] in ",.;:!?%)]}" and bool(before))
            or (token in ("/", "°") and bool(before))
            or (token == '"' and open_quote)
        )
        text += shown if glue or sticks else " " + shown
        glue = (
            token in JOINERS.values()
            or token in ("(", "[", "{", "$", "£", "€", "#", "/")
            or (token == ":" and digits)
            or (token == '"' and not open_quote)
        )
        if token == '"':
            open_quote = not open_quote
        before = token
    return text
