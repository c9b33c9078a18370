"""Composed tunes beside those of the Nottingham Music Database.

    gridloop evaluate folk-gru --data DIR [--url URL] [--write]

DIR holds `nottingham_abc/nottingham_abc.zip` (or that zip itself): the folder `ABC_cleaned` of
https://github.com/jukedeck/nottingham-dataset. All its tunes count as known: those that the model learned from, and
those that were held out.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator

from service.evaluation import DataMissing
from service.evaluation.music_composition import MusicCompositionEvaluation


class Nottingham(MusicCompositionEvaluation):
    """Tunes in the style of the Nottingham Music Database."""

    title = "Composed tunes, beside the Nottingham Music Database"

    def known(self) -> Iterator[str]:
        places = (self.data / "nottingham_abc" / "nottingham_abc.zip", self.data / "nottingham_abc.zip")
        path = next((place for place in places if place.is_file()), None)
        if path is None:
            raise DataMissing(
                self.data,
                "nottingham_abc.zip",
                "Pack the folder ABC_cleaned of https://github.com/jukedeck/nottingham-dataset.",
            )
        with zipfile.ZipFile(path) as archive:
            for name in sorted(archive.namelist()):
                if name.endswith(".abc"):
                    yield archive.read(name).decode("latin1").replace("\r", "")
