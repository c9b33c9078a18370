"""Models are loaded and unloaded over HTTP, by whoever may do it; in an application without workers as with them."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.settings import Settings
from tests import graphs
from tests.api.test_access import key_file
from tests.conftest import running

SERIES = {"values": [0, 0, 5]}


def path(change: str, model: str = "steps") -> str:
    return f"/v2/repository/models/{model}/{change}"


async def test_an_application_alone_loads_and_unloads(models: Path) -> None:
    async with running(models) as client:
        assert (await client.post("/v1/anomaly-detection", json=SERIES)).status_code == 200
        assert (await client.post(path("unload"))).status_code == 200
        refused = await client.post("/v1/anomaly-detection", json=SERIES)
        assert refused.status_code == 503
        assert "POST /v2/repository/models/steps/load" in refused.json()["detail"]
        loaded = await client.post(path("load"))
        assert (loaded.status_code, loaded.content) == (200, b"")
        assert (await client.post("/v1/anomaly-detection", json=SERIES)).status_code == 200


async def test_a_model_that_has_come_is_loaded_and_a_bad_one_is_400(models: Path) -> None:
    async with running(models) as client:
        graphs.detector_model(models, "later")
        assert (await client.post(path("load", "later"))).status_code == 200
        (models / "later" / "1" / "golden.json").write_text("[]")
        refused = await client.post(path("load", "later"))
        assert refused.status_code == 400
        assert "later/1/golden.json: is empty" in refused.json()["error"]
        assert (await client.post("/v1/anomaly-detection", json=SERIES | {"model": "later"})).status_code == 200
        for change in ("load", "unload"):
            for name in ("nobody", "..", "a%20b"):
                assert (await client.post(path(change, name))).status_code == 404


async def test_files_within_a_load_request_are_refused(models: Path) -> None:
    async with running(models) as client:
        for name in ("file:../x", "file:/x", "file:1/../../x"):
            refused = await client.post(path("load"), json={"parameters": {name: "AAAA"}})
            assert (refused.status_code, "leads out" in refused.json()["error"]) == (400, True)
        for name in ("config", "file:1/model.onnx"):
            assert (await client.post(path("load"), json={"parameters": {name: "{}"}})).status_code == 501
        assert (await client.post(path("unload"), json={"parameters": {"unload_dependents": True}})).status_code == 200


@pytest.mark.parametrize(
    ("host", "told", "expected"),
    [
        ("127.0.0.1", None, True),
        ("::1", None, True),
        ("localhost", None, True),
        ("unix:/run/x.sock", None, True),
        ("0.0.0.0", None, False),
        ("192.168.0.7", None, False),
        ("example.org", None, False),
        ("127.0.0.1", False, False),
        ("0.0.0.0", True, True),
        ("0.0.0.0", "", False),
    ],
)
def test_the_admin_api_is_on_where_only_this_machine_can_connect(
    host: str, told: bool | str | None, expected: bool
) -> None:
    assert Settings(host=host, admin_api=told).has_admin_api is expected  # type: ignore[arg-type]


async def test_where_it_is_off_both_are_403_and_say_what_to_do(models: Path) -> None:
    for settings, words in (({"host": "0.0.0.0"}, "not only this machine"), ({"admin_api": False}, "is off.")):
        async with running(models, **settings) as client:
            for change in ("load", "unload"):
                refused = await client.post(path(change))
                assert refused.status_code == 403
                assert words in refused.json()["error"]
                assert "GRIDLOOP_ADMIN_API=true" in refused.json()["error"]


async def test_without_keys_neither_web_pages_nor_strangers_behind_a_proxy_may(models: Path) -> None:
    async with running(models) as client:
        for header in ("Origin", "X-Forwarded-For", "Forwarded"):
            assert (await client.post(path("unload"), headers={header: "http://evil.example"})).status_code == 403
    async with running(models, admin_api=True) as client:
        assert (await client.post(path("load"), headers={"X-Forwarded-For": "10.0.0.1"})).status_code == 200
        assert (await client.post(path("load"), headers={"Origin": "http://evil.example"})).status_code == 403


async def test_with_keys_one_made_for_it_is_needed_and_enough(models: Path, tmp_path: Path) -> None:
    file, keys = key_file(tmp_path, every=None, ops=[])
    async with running(models, api_keys_file=file) as client:
        assert (await client.post(path("unload"))).status_code == 401
        assert (await client.post(path("unload"), headers=keys["every"])).status_code == 403
        elsewhere = keys["ops"] | {"Origin": "https://admin.example"}
        assert (await client.post(path("unload"), headers=elsewhere)).status_code == 200
