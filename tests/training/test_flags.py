"""Hyper-parameters as command-line flags."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from training.flags import Flags, read_flags


@dataclass(frozen=True, kw_only=True)
class Config(Flags):
    """The knobs of a small training."""

    out: Path = Path("models/cells")
    work: Path = Path("runs/cells")
    epochs: int = 30
    """Passes over the
    training pictures."""
    learning_rate: float = 1e-3
    mirror: bool = True
    loss: Literal["giou", "ciou"] = "giou"
    sizes: tuple[int, ...] = (320, 416)
    start: Path | None = None


def read(*arguments: str) -> Config:
    return read_flags(Config, __doc__, arguments)


def test_a_field_is_a_flag_and_keeps_its_default_where_it_is_not_given() -> None:
    config = read(
        "--data", "DIR", "--learning-rate", "0.01", "--loss", "ciou", "--sizes", "64", "96", "--start", "a.pt"
    )
    assert config == Config(data=Path("DIR"), learning_rate=0.01, loss="ciou", sizes=(64, 96), start=Path("a.pt"))


def test_a_field_without_a_default_is_required(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        read("--epochs", "3")
    assert "--data" in capsys.readouterr().err


@pytest.mark.parametrize(("given", "value"), [([], True), (["true"], True), (["false"], False), (["no"], False)])
def test_a_bool_may_be_given_alone_or_with_its_value(given: list[str], value: bool) -> None:
    assert read("--data", "DIR", "--mirror", *given).mirror is value


def test_what_is_neither_true_nor_false_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        read("--data", "DIR", "--mirror", "maybe")
    assert "neither true nor false" in capsys.readouterr().err


def test_the_text_below_a_field_is_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        read("--help")
    shown = " ".join(capsys.readouterr().out.split())
    assert "Passes over the training pictures. Default: 30." in shown
    assert "Folder with the data sets." in shown


def test_what_was_read_stays_as_it_is() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        read("--data", "DIR").epochs = 4  # type: ignore[misc]
