"""Image captioning: pictures in, sentences out, and where the model looked for each word.

A model is two graphs. `encoder.onnx` takes the picture, as every model of pictures does (`service.tasks.picture`), and
gives what the decoder reads of it: its first recurrent state, and any other tensors. `decoder.onnx` writes a word at a
time: it takes `token` int64 (batch,), its recurrent states `x`, and the encoder's other outputs under their names; it
gives `logits` float32 (batch, tokens) of the next token, each `next_x`, and for `explain` also `attention` float32
(batch, rows, columns): how much each part of the picture counted. `vocabulary.txt` names the tokens, one a line: words
in lower case, and control tokens in angle brackets, of which `<s>` begins a caption and `</s>` ends it.

The picture is encoded once; the beams of all pictures of a request step together, and with those of other requests.

References:
    Xu et al., "Show, Attend and Tell: Neural Image Caption Generation with Visual Attention" (ICML 2015).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from service.decoding.sentences import Grammar, Sentence, States, search
from service.errors import InferenceFailed, InvalidInput, ManifestInvalid
from service.media.heatmaps import Heatmap, heatmap
from service.media.views import View
from service.state import OutOfRange
from service.tasks.base import Array, FailedFile, ModelFolder, Run, Settled, Steps, TaskOutput, Upload
from service.tasks.comparison import difference, ranking_difference
from service.tasks.picture import PictureInput, PictureOptions, PictureResult, PictureTask, picture_fields
from service.tasks.terminal import Shown, Table, number

MOST_BEAMS, MOST_CAPTIONS = 20, 10
"""Largest `beams` and `captions` (count)."""
LEAST_WORDS, MOST_WORDS = 2, 40
"""Of a caption (count)."""
MOST_ROWS = 96
"""Beams that step together (count): each row of the decoder has what the encoder saw of its picture, about 100 KB."""
STEP_WORK = 20_000
"""About as many pixels are decoded in the time that one more beam takes (pixels)."""


class ImageCaptioningInput(PictureInput):
    """Which model, how hard to search, and how many captions."""

    beams: Annotated[int, Field(ge=1, le=MOST_BEAMS)] = Field(
        default=3,
        description="Unfinished captions kept from one word to the next: more take longer and seldom find better ones.",
        examples=[3],
    )
    captions: Annotated[int, Field(ge=1, le=MOST_CAPTIONS)] = Field(
        default=1,
        description="Captions to return for each image, all different; more than `beams`: as many beams are kept.",
        examples=[1],
    )
    explain: bool = Field(
        default=False, description="Add `words` to each caption: their probabilities, and where the model looked."
    )

    @property
    def kept(self) -> int:
        """Captions that the search keeps."""
        return max(self.beams, self.captions)

    @property
    def rows(self) -> int:
        return min(len(self.files) * self.kept, MOST_ROWS)

    @property
    def work(self) -> int:
        """Pixels, and what the beams cost."""
        return super().work + STEP_WORK * len(self.files) * self.kept


class CaptionWord(BaseModel):
    """A word of a caption."""

    word: str = Field(description="As in the caption's text.", examples=["dog"])
    probability: float = Field(
        description="Of this word after those before it, among all words that may follow.", ge=0, le=1, examples=[0.62]
    )
    heatmap: Heatmap = Field(description="Where the model looked for this word.")


class Caption(BaseModel):
    """A sentence about an image."""

    text: str = Field(
        description="Lower case, without punctuation, 2 to 40 words.", examples=["a brown dog runs through the grass"]
    )
    score: float = Field(
        description="Geometric mean of the words' probabilities; the end of the sentence is no word.",
        ge=0,
        le=1,
        examples=[0.41],
    )
    words: list[CaptionWord] | None = Field(
        default=None, description="Only with `explain=true`; joined by a space they are `text`."
    )


class CaptionedImage(PictureResult):
    """What one image shows, in words."""

    captions: list[Caption] = Field(
        description="Best first, no two the same; fewer than asked for where the model can say no more.", min_length=1
    )


class ImageCaptioningOutput(TaskOutput):
    """One result per image, in the order sent."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": {"name": "flickr8k-captioner", "version": "1"},
                    "results": [
                        {
                            "filename": "dog.jpg",
                            "width": 500,
                            "height": 375,
                            "captions": [{"text": "a brown dog runs through the grass", "score": 0.41}],
                        }
                    ],
                }
            ]
        }
    )

    results: list[CaptionedImage | FailedFile] = Field(
        description="One entry per image, in the order sent; of several, one that cannot be used has an `error`."
    )


class CaptionedWord(BaseModel):
    """A word of the best caption of an image, which will not change any more."""

    image: int = Field(description="Place of the image among those sent, from 0.", ge=0, examples=[0])
    place: int = Field(description="Of the word in the caption, from 0.", ge=0, examples=[2])
    word: str = Field(description="As in the caption's text.", examples=["dog"])
    probability: float = Field(description="As in `words` of a caption.", ge=0, le=1, examples=[0.62])
    heatmap: Heatmap | None = Field(default=None, description="Only with `explain=true`: where the model looked.")


@dataclass
class _Telling:
    """Some images of a request, and how many words of the best caption of each were told as they were settled."""

    images: list[int]
    views: Sequence[View]
    words: list[int]


class ImageCaptioningOptions(PictureOptions):
    """What the manifest of a captioner may say."""

    most_words: int = Field(default=MOST_WORDS, ge=LEAST_WORDS, le=MOST_WORDS)
    """Of a caption; a longer one is broken off (count)."""


class ImageCaptioning(PictureTask[ImageCaptioningInput, ImageCaptioningOutput]):
    """Sentences about pictures of any size."""

    name = "image-captioning"
    summary = "How would a person describe this picture?"
    Input = ImageCaptioningInput
    Output = ImageCaptioningOutput
    Options = ImageCaptioningOptions
    options: ImageCaptioningOptions
    events: ClassVar[Mapping[str, type[BaseModel]]] = {"word": CaptionedWord}
    graphs = ("encoder", "decoder")
    kind = "a captioner's encoder"

    def __init__(self, folder: ModelFolder) -> None:
        super().__init__(folder)
        self.vocabulary = folder.lines("vocabulary.txt")
        self._grammar = self._read_grammar()
        decoder = folder.signatures["decoder"]
        folder.input("token", dtype="int64", rank=1, graph="decoder")
        tokens = folder.output("logits", dtype="float32", rank=2, graph="decoder").shape[1]
        if isinstance(tokens, int) and tokens != len(self.vocabulary):
            raise ManifestInvalid(
                f"{folder.name}/{folder.version}/vocabulary.txt",
                f"has {len(self.vocabulary)} tokens, but the decoder has {tokens}.",
            )
        self._states = tuple(decoder.states)
        self._context = tuple(name for name in decoder.inputs if name != "token" and name not in decoder.states)
        for name in (*self._states, *self._context):
            given, taken = folder.signature.outputs.get(name), decoder.inputs[name]
            if given is None or given.dtype != taken.dtype or len(given.shape) != len(taken.shape):
                there = "; ".join(map(str, folder.signature.outputs.values()))
                raise ManifestInvalid(
                    folder.graph_file("decoder"),
                    f"input {taken} should be an output of the encoder, which has: {there}.",
                )
        if not self._states:
            raise ManifestInvalid(
                folder.graph_file("decoder"),
                "has no recurrent state: an input such as `state`, which the encoder gives first, and the output "
                "`next_state`.",
            )
        if strange := [after for name, after in decoder.states.items() if after != f"next_{name}"]:
            raise ManifestInvalid(
                folder.graph_file("decoder"),
                f"goes on with output {strange[0]!r}; call it `next_` and its input's name.",
            )
        self._looks = "attention" in decoder.outputs
        if self._looks:
            folder.output("attention", dtype="float32", rank=3, graph="decoder")

    def _read_grammar(self) -> Grammar:
        """Which token is what."""
        where, tokens = f"{self.folder.name}/{self.folder.version}/vocabulary.txt", self.vocabulary
        if missing := [token for token in ("<s>", "</s>") if token not in tokens]:
            raise ManifestInvalid(where, f"has no line {missing[0]}, which begins or ends a caption.")
        says = np.array([not (token.startswith("<") and token.endswith(">")) for token in tokens])
        for line, (token, said) in enumerate(zip(tokens, says, strict=True), start=1):
            if said and token.split() != [token]:
                raise ManifestInvalid(where, f"line {line} is no word: {token!r}.")
        if not says.any():
            raise ManifestInvalid(where, "has control tokens alone, and no word.")
        return Grammar(tokens.index("<s>"), tokens.index("</s>"), says, LEAST_WORDS, self.options.most_words)

    def steps(self, request: ImageCaptioningInput) -> Steps[Any]:
        if request.explain and not self._looks:
            raise InvalidInput(
                f"Model {self.folder.name!r} does not tell where it looks. Ask again without explain=true."
            )
        try:
            return (yield from super().steps(request))
        except OutOfRange as error:
            raise InferenceFailed(self.folder.name) from error

    def answer_pictures(
        self, request: ImageCaptioningInput, files: Sequence[Upload], views: Sequence[View], pixels: Array
    ) -> Steps[list[dict[str, Any]]]:
        results = []
        most = max(1, MOST_ROWS // request.kept)
        for start in range(0, len(files), most):
            some = slice(start, start + most)
            encoded = yield self.run(pixels[some], (*self._states, *self._context))
            images = [_place(request.files, file) for file in files[some]]
            telling = _Telling(images, views[some], [0] * len(images))
            found = yield from self._search(request, encoded, telling)
            best = [sentences[0] for sentences in found]
            yield self.settled(partial(self._new_words, request, telling, best))
            results += [
                {**picture_fields(file, view), "captions": self._captions(request, sentences, view)}
                for file, view, sentences in zip(files[some], views[some], found, strict=True)
            ]
        return results

    def _search(
        self, request: ImageCaptioningInput, encoded: Mapping[str, Array], telling: _Telling
    ) -> Steps[list[list[Sentence]]]:
        """The best sentences about each picture."""
        outputs = ("logits", *(f"next_{name}" for name in self._states), *(("attention",) * request.explain))

        def read(tokens: Array, pictures: Array, states: States) -> Run:
            context = {name: encoded[name][pictures] for name in self._context}
            return Run({"token": tokens, **context, **states}, outputs, graph="decoder")

        def settled(certain: Callable[[], list[Sentence]]) -> Settled:
            return self.settled(lambda: self._new_words(request, telling, certain()))

        first = {name: encoded[name] for name in self._states}
        return (yield from search(first, read, self._grammar, request.kept, self._apart, settled))

    def _new_words(
        self, request: ImageCaptioningInput, telling: _Telling, certain: Sequence[Sentence]
    ) -> Iterator[CaptionedWord]:
        """Words of the best captions that are settled and were not told yet."""
        for at, sentence in enumerate(certain):
            told, telling.words[at] = telling.words[at], len(sentence.tokens)
            for place in range(told, len(sentence.tokens)):
                word: dict[str, Any] = {
                    "image": telling.images[at],
                    "place": place,
                    "word": self.vocabulary[sentence.tokens[place]],
                    "probability": min(1.0, math.exp(sentence.logs[place])),
                }
                if request.explain:
                    seen = heatmap(sentence.kept[place]["attention"], telling.views[at])
                    word["heatmap"] = Heatmap.model_construct(values=seen)
                yield CaptionedWord.model_construct(**word)

    def _text(self, tokens: Sequence[int]) -> str:
        return " ".join(self.vocabulary[token] for token in tokens)

    def _apart(self, tokens: Sequence[int]) -> str:
        """What must tell captions apart: their letters and digits, whatever their case."""
        text = self._text(tokens).casefold()
        return " ".join("".join(c if c.isalnum() or c == " " else "" for c in text).split())

    def _captions(
        self, request: ImageCaptioningInput, sentences: Sequence[Sentence], view: View
    ) -> list[dict[str, Any]]:
        """The captions asked for, as JSON has them."""
        captions = []
        for sentence in sentences[: request.captions]:
            caption: dict[str, Any] = {"text": self._text(sentence.tokens), "score": sentence.score}
            if request.explain:
                words = zip(sentence.tokens, np.exp(sentence.logs).tolist(), sentence.kept, strict=True)
                caption["words"] = [
                    {
                        "word": self.vocabulary[token],
                        "probability": min(1.0, probability),
                        "heatmap": {"values": heatmap(kept["attention"], view)},
                    }
                    for token, probability, kept in words
                ]
            captions.append(caption)
        return captions

    # --- what a terminal shows, and what makes an answer another one

    def shown_result(self, request: ImageCaptioningInput, result: Mapping[str, Any]) -> Iterator[Shown]:
        captions = result["captions"]
        rows = [(caption["text"], number(caption["score"], ".3f")) for caption in captions]
        yield Table(("caption", "score"), rows, result.get("filename") or "")
        for caption in captions:
            if caption.get("words"):
                words = [(word["word"], number(word["probability"], ".3f")) for word in caption["words"]]
                yield Table(("word", "probability"), words, caption["text"])

    def widened(self, request: ImageCaptioningInput) -> ImageCaptioningInput:
        """The same search with all that it keeps, so that a caption which a near tie has displaced is found."""
        return request.model_copy(update={"captions": request.kept})

    def difference(
        self, request: ImageCaptioningInput, expected: Mapping[str, Any], got: Mapping[str, Any], tolerance: float
    ) -> str | None:
        """Compare caption by caption, by their texts: those whose scores are nearly tied may stand in either order."""
        rest = dict(expected)
        results = rest.pop("results", None)
        if not isinstance(results, list) or len(results) != len(got["results"]):
            return difference(expected, got, tolerance)
        if found := difference(rest, got, tolerance):
            return found
        for place, (one, other) in enumerate(zip(results, got["results"], strict=True)):
            fields = dict(one)
            captions = fields.pop("captions", None)
            found = difference(fields, other, tolerance, f"results[{place}]")
            if captions is not None and not found:
                found = ranking_difference(
                    captions,
                    other.get("captions"),
                    tolerance,
                    f"results[{place}].captions",
                    name="text",
                    shown=request.captions,
                )
            if found:
                return found
        return None


def _place(files: Sequence[Upload], file: Upload) -> int:
    return next(place for place, other in enumerate(files) if other is file)
