"""API keys: their file, what it refuses, how it is read again, and the command that makes them."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from service.errors import SettingUnusable
from service.keys import REMEMBERED_KEYS, Key, Keyring, as_toml, digest, new_key, read_keys
from tests.test_server import GRIDLOOP


def bearer(secret: str) -> bytes:
    return f"Bearer {secret}".encode()


def write(path: Path, *keys: Key) -> Path:
    """As an editor or a mounted secret does: the new file takes the place of the old one at once."""
    new = path.with_suffix(".new")
    new.write_text("".join(map(as_toml, keys)))
    new.replace(path)
    return path


def made(name: str = "shop", **scope: object) -> tuple[str, Key]:
    return new_key(name, **{"models": None, "admin": False, **scope})  # type: ignore[arg-type]


def test_a_key_is_256_random_bits_of_which_the_file_has_the_hash_alone(tmp_path: Path) -> None:
    secret, key = made()
    assert len(secret) == len("gl_") + 43
    assert key.sha256 == hashlib.sha256(secret.encode()).hexdigest()
    assert secret not in write(tmp_path / "keys.toml", key).read_text()
    assert made()[0] != secret


def test_what_is_written_is_read(tmp_path: Path) -> None:
    keys = [
        made()[1],
        made(models=["cifar10-*", "series-gru"])[1],
        made("ops", models=[], admin=True)[1],
    ]
    assert read_keys(write(tmp_path / "keys.toml", *keys)) == keys


@pytest.mark.parametrize(
    ("globs", "may", "may_not"),
    [
        (None, ["anything", ""], []),
        ([], [], ["anything", ""]),
        (["cifar10-*"], ["cifar10-cnn", "cifar10-"], ["cifar10", "xcifar10-cnn", "english-lstm"]),
        (["a", "b?"], ["a", "b1"], ["b", "ab1", "a\n", "a|b1", "A"]),
        (["v[12]", "w[!3]"], ["v1", "w4"], ["v3", "w3"]),
        (["a.b"], ["a.b"], ["aab"]),
    ],
)
def test_a_key_reaches_the_models_that_its_globs_match(
    globs: list[str] | None, may: list[str], may_not: list[str]
) -> None:
    key = made(models=globs)[1]
    assert [key.may_ask(model) for model in may] == [True] * len(may)
    assert [key.may_ask(model) for model in may_not] == [False] * len(may_not)


def test_the_scheme_may_be_in_any_case_and_blanks_are_no_part_of_a_key() -> None:
    keys = Keyring(("secret",))
    for header in (b"Bearer secret", b"bearer secret", b"BEARER  secret "):
        assert keys.find(header) is not None
    for header in (b"", b"Bearer", b"Bearer ", b"Basic secret", b"secret", b"Bearer Secret", b"Bearer secret x"):
        assert keys.find(header) is None
    assert keys.find(b"Bearer " + b"s" * 100_000) is None


def test_without_keys_a_server_is_open_and_an_empty_plain_key_is_none() -> None:
    assert Keyring(()).is_open
    assert not Keyring(("x",)).is_open


def test_what_is_remembered_of_the_headers_that_came_is_bounded() -> None:
    keys = Keyring(("secret",))
    for blanks in range(1, REMEMBERED_KEYS // 4):
        assert keys.find(b"Bearer" + b" " * blanks + b"secret") is not None
    for number in range(2 * REMEMBERED_KEYS):
        assert keys.find(bearer(f"wrong-{number}")) is None
    assert 0 < len(keys._keys[1]) < REMEMBERED_KEYS


# --- the file, while the server runs


def test_two_keys_of_one_name_are_good_until_the_old_one_is_taken_out(tmp_path: Path) -> None:
    (old, old_key), (new, new_key_) = made(), made()
    file = write(tmp_path / "keys.toml", old_key)
    keys = Keyring((), file)
    assert keys.renewal
    found = []
    for content in ([old_key], [old_key, new_key_], [new_key_]):
        write(file, *content)
        keys.renewal.refresh()
        found.append([keys.find(bearer(secret)) is not None for secret in (old, new)])
    assert found == [[True, False], [True, True], [False, True]]


def test_the_same_key_may_be_given_less(tmp_path: Path) -> None:
    secret, key = made()
    file = write(tmp_path / "keys.toml", key)
    keys = Keyring((), file)
    assert keys.renewal
    assert (first := keys.find(bearer(secret))) and first.may_ask("x")
    write(file, key.model_copy(update={"models": ("y",)}))
    keys.renewal.refresh()
    assert (second := keys.find(bearer(secret))) and not second.may_ask("x")


SPOILT = {
    "empty": "",
    "no TOML": "[[key]\nname = 1",
    "a word too many": '[[key]]\nname = "shop"\nsha256 = "%s"\nmodel = "x"' % ("0" * 64),
    "the key itself": '[[key]]\nname = "shop"\nsha256 = "gl_abc"',
    "a hash in capitals": '[[key]]\nname = "shop"\nsha256 = "%s"' % ("A" * 64),
    "no name": '[[key]]\nsha256 = "%s"' % ("0" * 64),
    "a glob with a version": '[[key]]\nname = "shop"\nsha256 = "%s"\nmodels = ["a@1"]' % ("0" * 64),
    "admin as text": '[[key]]\nname = "shop"\nsha256 = "%s"\nadmin = "false"' % ("0" * 64),
    "one key twice": 2 * ('[[key]]\nname = "shop"\nsha256 = "%s"\n' % ("0" * 64)),
    "another table": '[keys]\nname = "shop"',
    "no text": b"\xff\xfe\x00",
    "gone": None,
    "a folder": Path(),
}


def spoil(file: Path, content: str | bytes | Path | None) -> None:
    file.unlink()
    if isinstance(content, Path):
        file.mkdir()
    elif content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())


@pytest.mark.parametrize("content", SPOILT.values(), ids=SPOILT)
def test_a_new_file_that_cannot_be_used_leaves_the_old_keys_and_is_told_of_once(
    tmp_path: Path,
    content: str | bytes | Path | None,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logging.root.manager, "disable", logging.NOTSET)  # the command line's tests silence all logs
    secret, key = made()
    file = write(tmp_path / "keys.toml", key)
    keys = Keyring((), file)
    spoil(file, content)
    with pytest.raises(SettingUnusable, match=r"^GRIDLOOP_API_KEYS_FILE: keys.toml .*\.$"):
        Keyring((), file)
    assert keys.renewal
    for _ in range(3):
        keys.renewal.refresh()
        assert keys.find(bearer(secret)) == key
    told = capsys.readouterr()
    assert (told.out + told.err).count("new API keys cannot be used: the old stay in use") == 1
    if file.is_dir():
        file.rmdir()
    other, other_key = made()
    write(file, other_key)
    keys.renewal.refresh()
    assert keys.find(bearer(secret)) is None
    assert keys.find(bearer(other)) == other_key


def test_a_file_that_has_not_changed_is_not_read_again(tmp_path: Path) -> None:
    secret, key = made()
    file = write(tmp_path / "keys.toml", key)
    keys = Keyring((), file)
    before = keys._keys
    assert keys.renewal
    keys.renewal.refresh()
    assert keys._keys is before
    os.utime(file, (1, 1))
    keys.renewal.refresh()
    assert keys._keys is not before
    assert keys.find(bearer(secret)) == key


def test_plain_keys_are_good_beside_those_of_the_file(tmp_path: Path) -> None:
    secret, key = made(models=["x"])
    keys = Keyring(("plain",), write(tmp_path / "keys.toml", key))
    assert keys.find(bearer(secret)) == key
    assert (found := keys.find(bearer("plain"))) and found.may_ask("anything") and not found.admin


# --- the command


def gridloop_key(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*GRIDLOOP, "key", *arguments], capture_output=True, text=True, check=False, timeout=60)


def test_the_command_shows_a_key_once_and_prints_its_table(tmp_path: Path) -> None:
    made = gridloop_key("shop", "--models", "cifar10-*, series-gru")
    assert made.returncode == 0
    file = tmp_path / "keys.toml"
    file.write_text(made.stdout)
    (key,) = read_keys(file)
    secret = made.stderr.split()[-1]
    assert (key.name, key.models, key.admin) == ("shop", ("cifar10-*", "series-gru"), False)
    assert key.sha256 == digest(secret)
    assert secret not in made.stdout


@pytest.mark.parametrize(
    ("options", "models", "admin"),
    [([], None, False), (["--admin"], [], True), (["--admin", "--models", "*"], ["*"], True)],
)
def test_a_key_for_changing_the_server_asks_models_only_when_they_are_named(
    options: list[str], models: list[str] | None, admin: bool
) -> None:
    made = json.loads(gridloop_key("ops", "--json", *options).stdout)
    assert (made["name"], made["models"], made["admin"]) == ("ops", models, admin)
    assert made["sha256"] == digest(made["key"])
    assert made["table"].startswith('[[key]]\nname = "ops"\n')


@pytest.mark.parametrize("wrong", [["a b"], [""], ["shop", "--models", "x@1"], ["shop", "--models", 'x"y']])
def test_a_name_or_glob_that_cannot_be_is_wrong_usage(wrong: list[str]) -> None:
    made = gridloop_key(*wrong)
    assert made.returncode == 2
    assert not made.stdout
    assert "gl_" not in made.stderr


def test_a_server_does_not_start_with_a_file_that_cannot_be_used(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "service", "serve", f"--api-keys-file={tmp_path / 'none.toml'}", "--port=0"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert ended.returncode == 2
    assert "GRIDLOOP_API_KEYS_FILE: none.toml cannot be read: No such file or directory." in ended.stderr
