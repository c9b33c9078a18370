"""Settings from the environment, and what is done about those that make no sense."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from service.settings import Settings


def test_variables_set_what_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRIDLOOP_MAX_QUEUE", "7")
    monkeypatch.setenv("GRIDLOOP_PORT", "9000")
    settings = Settings(port=9001)
    assert (settings.max_queue, settings.port) == (7, 9001)


def test_keys_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRIDLOOP_API_KEYS", " first, second ,,")
    assert Settings().api_keys == ("first", "second")


def test_keys_are_never_printed() -> None:
    assert "hidden" not in repr(Settings(api_keys=("hidden",)))


@pytest.mark.parametrize(
    ("text", "origins"),
    [
        ("", ()),
        ("*", ("*",)),
        ("http://localhost:3000, https://App.Example.com/", ("http://localhost:3000", "https://app.example.com")),
        ("https://a:443,http://b:80,https://c:80", ("https://a", "http://b", "https://c:80")),
        ("http://[::1]:5173", ("http://[::1]:5173",)),
        ("null,chrome-extension://abcdef", ("null", "chrome-extension://abcdef")),
    ],
)
def test_origins_are_read_as_browsers_send_them(text: str, origins: tuple[str, ...]) -> None:
    assert Settings(cors_origins=text).cors_origins == origins  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "prefix"),
    [("", ""), ("/", ""), ("ml", "/ml"), ("/ml/", "/ml"), ("/apis/ml-1.0_x~", "/apis/ml-1.0_x~")],
)
def test_a_root_path_begins_with_a_slash_and_ends_without(text: str, prefix: str) -> None:
    assert Settings(root_path=text).root_path == prefix


@pytest.mark.parametrize(
    "field",
    [
        {"port": 70000},
        {"max_queue": 0},
        {"request_timeout_s": 0},
        {"log_format": "xml"},
        {"nope": 1},
        {"cors_origins": "localhost:3000"},
        {"cors_origins": "https://example.com/page"},
        {"cors_origins": "https://*.example.com"},
        {"root_path": "/a b"},
        {"root_path": "/a/../b"},
        {"root_path": "/a//b"},
        {"root_path": '/"'},
        {"trusted_proxies": "localhost"},
        {"trusted_proxies": "10.0.0.0/99"},
        {"host": "unix:"},
        {"host": "fd:three"},
    ],
)
def test_a_value_without_sense_is_refused(field: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Settings(**field)  # type: ignore[arg-type]


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError):
        Settings().port = 1  # type: ignore[misc]


def test_a_service_link_of_kubernetes_is_not_mistaken_for_a_port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRIDLOOP_PORT", "tcp://10.0.0.1:8000")
    assert Settings().port == 8000


def test_a_misspelt_variable_is_noticed() -> None:
    environment = {"GRIDLOOP_WORKRES": "2", "GRIDLOOP_WORKERS": "2", "GRIDLOOP_SERVICE_HOST": "10.0.0.1", "HOME": "/"}
    assert Settings.unknown_variables(environment) == ["GRIDLOOP_WORKRES"]
