"""Golden samples come from the service's own path."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from training.golden import write_golden

SERIES = Path(__file__).parents[2] / "models" / "series-gru"


def test_the_samples_are_what_the_service_answers(tmp_path: Path) -> None:
    version = tmp_path / "series-gru" / "2"
    shutil.copytree(SERIES / "2", version)
    shutil.copy(SERIES / "manifest.toml", version.parent)
    (version / "golden.json").write_text("[]")  # of a graph before this one: not looked at
    given = {"values": [1.0, 2.0, 1.0, None, 2.0], "sensitivity": 0.5}
    (entry,) = write_golden(version, [given], tolerance=0.01, fields=["anomalies", "scores"])
    assert entry["input"] == given
    assert entry["output"]["anomalies"] == []
    assert len(entry["output"]["scores"]) == 5
    assert json.loads((version / "golden.json").read_text()) == [entry]
