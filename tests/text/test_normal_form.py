"""How text is read: what looks the same is the same, what nobody sees isn't there, and meaning stays."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.text.normal_form import normalise, visible
from service.text.tokeniser import tokenise

INVISIBLE = {
    "zero width space": "\u200b",
    "zero width non-joiner": "\u200c",
    "zero width joiner": "\u200d",
    "soft hyphen": "\u00ad",
    "left-to-right mark": "\u200e",
    "right-to-left mark": "\u200f",
    "Arabic letter mark": "\u061c",
    "embedding and its end": "\u202a\u202c",
    "override": "\u202e",
    "isolate and its end": "\u2066\u2069",
    "word joiner": "\u2060",
    "invisible times": "\u2062",
    "byte-order mark": "\ufeff",
    "combining grapheme joiner": "\u034f",
    "Hangul filler": "\u3164",
    "Mongolian vowel separator": "\u180e",
    "text variation": "\ufe0e",
    "emoji variation": "\ufe0f",
    "ideographic variation": "\U000e0100",
    "language tag": "\U000e0065",
    "interlinear annotation": "\ufff9\ufffb",
    "null": "\x00",
    "escape": "\x1b",
    "delete": "\x7f",
}

EMOJI = {
    "family": "\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "programmer of a skin tone": "\U0001f469\U0001f3fd\u200d\U0001f4bb",
    "flag": "\U0001f1e9\U0001f1ea",
    "flag of England": "\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
    "smile": "\U0001f600",
}


@pytest.mark.parametrize("character", INVISIBLE.values(), ids=INVISIBLE)
@pytest.mark.parametrize("text", ["{}restau", "res{}tau", "restau{}", "at {} the", "at {}the", "caf{}e\u0301", "3{}½"])
def test_what_nobody_sees_is_not_there(character: str, text: str) -> None:
    assert normalise(text.format(character)) == normalise(text.format(""))
    assert tokenise(text.format(character)) == tokenise(text.format(""))


def test_no_format_character_between_letters_is_left() -> None:
    """But for those that Unicode says are shown: Arabic signs that stand under numbers, and Egyptian quadrats."""
    scripts = ("ARABIC", "SYRIAC", "KAITHI", "EGYPTIAN", "SHORTHAND")
    every = map(chr, range(0x110000))
    formats = [c for c in every if unicodedata.category(c) == "Cf" and not unicodedata.name(c, "").startswith(scripts)]
    assert len(formats) > 120
    assert [c for c in formats if normalise(f"a{c}b") != "ab"] == []


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ("\ufb01nd the \ufb02oor of the o\ufb03ce", "find the floor of the office"),
        ("ｆｕｌｌ width！", "full width!"),
        ("𝐛𝐨𝐥𝐝 𝑖𝑡𝑎𝑙𝑖𝑐 𝟙𝟚", "bold italic 12"),
        ("Henry Ⅷ", "Henry VIII"),
        ("5 ㎏ at 20 ℃", "5 kg at 20 °C"),
        ("wait…", "wait..."),
        ("don’t don‘t donʼt don＇t don´t don`t don′t", "don't " * 6 + "don't"),
        ("“a” „a‟ «a» 〝a〞 ＂a＂", '"a" "a" "a" "a" "a"'),
        ("‘a’ ‚a‛ ‹a›", "'a' 'a' 'a'"),
        ("well‐known well‑known well－known well﹣known", "well-known well-known well-known well-known"),
        ("555‒1234 ― no", "555–1234 — no"),
        ("cafe\u0301 A\u030angstro\u0308m \u212bngstro\u0308m", "café Ångström Ångström"),
        ("\u1e9b and \u017f\u0307", "ṡ and ṡ"),
        ("a\u2800b", "a b"),
        ("a\rb\r\nc\u2028d\u2029e\x0bf\x0cg\x85h", "a\nb\n\nc\nd\ne\nf\ng\nh"),
    ],
)
def test_what_looks_the_same_is_spelt_the_same(typed: str, read: str) -> None:
    assert normalise(typed) == read


@pytest.mark.parametrize(
    "typed",
    [
        "x² H₂O 10⁶ 1ª",  # x2 is another thing
        "5½ ⅓",  # 51/2
        "Word™",  # WordTM
        "① Ⓐ",
        "5 µm 6′ 5″",  # as the training texts spell them
        "a – b — c − d",
        "5′ of `code`",
        "´ ¨ ¸",  # NFKC puts a space before an accent that stands alone
        "a\u00a0b\u2003c\u3000d",  # spaces are the tokeniser's business
        "Москва",  # though М looks like M
        "naïve café Hawaiʻi",
    ],
)
def test_what_means_something_else_stays(typed: str) -> None:
    assert normalise(typed) == typed


@pytest.mark.parametrize("picture", EMOJI.values(), ids=EMOJI)
def test_a_picture_is_one_token_however_it_is_made(picture: str) -> None:
    assert tokenise(f"so {picture}{picture}, nice{picture}") == ["so", picture, picture, ",", "nice", picture]


def test_a_joiner_that_joins_no_pictures_is_not_there() -> None:
    heart, fire = "\u2764", "\U0001f525"
    assert tokenise(f"{heart}\ufe0f\u200d{fire}") == [f"{heart}\u200d{fire}"]
    assert tokenise(f"{heart}\u200d") == [heart]
    assert tokenise(f"a\u200d{fire}") == ["a", fire]
    assert tokenise(f"{fire}\u200d\u200d{fire}") == [fire, fire]


def test_the_other_spaces_separate_words() -> None:
    spaces = "\u00a0\u1680\u2000\u2003\u2007\u2009\u200a\u202f\u205f\u3000\u2800"
    for space in spaces:
        assert tokenise(f"a{space}b") == ["a", "b"]


some_text = st.text() | st.text(
    "ae '´`’-‐ﬁｆ\u0301\u0323\u200d\u200b\ufe0f\u2764\U0001f469\U0001f3fd\U0001f1e9²½ſ\u1e9b"
)


@given(some_text)
def test_a_normal_form_is_its_own_normal_form(text: str) -> None:
    assert normalise(normalise(text)) == normalise(text)


@given(some_text)
def test_composed_and_decomposed_letters_are_the_same(text: str) -> None:
    assert normalise(unicodedata.normalize("NFD", text)) == normalise(unicodedata.normalize("NFC", text))


@given(some_text, some_text)
def test_what_is_seen_of_a_text_is_what_is_seen_of_its_parts(left: str, right: str) -> None:
    assert visible(left + right) == visible(left) + visible(right)


@given(some_text)
def test_a_normal_form_has_no_more_spaces_than_what_was_typed(text: str) -> None:
    """So that a chunk stays a chunk."""
    assert len(normalise(text).split()) <= len(visible(text).split())


@given(st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E, exclude_characters="`")))
def test_what_a_keyboard_types_is_read_as_it_is(text: str) -> None:
    assert normalise(text) == text
