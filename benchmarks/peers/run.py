"""Run the side-by-side comparison with other serving systems, with Gridloop among them.

    python benchmarks/peers/run.py HARNESS --folders DIR [--gridloop COMMAND] [arguments of the harness's run.py]

HARNESS is the folder of the comparison (its `run.py`, `common/wire.py` and targets); DIR is what `make_folders.py`
wrote. The harness measures; this file only tells it how W3 is asked in words, and where Gridloop is.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def main() -> None:
    """Prepare the target's table and hand over to the harness."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("harness", type=Path)
    parser.add_argument("--folders", type=Path, required=True)
    parser.add_argument("--gridloop", default=str(Path(sys.executable).with_name("gridloop")))
    ours, theirs = parser.parse_known_args()
    sys.path[:0] = [str(ours.harness), str(ours.harness / "common")]
    import run
    import wire

    asked = wire.request

    def request(spec: dict[str, Any], workload: str, number: int) -> tuple[bytes, dict[str, str], str]:
        if wire.option(spec, workload, "body") != "words":
            return asked(spec, workload, number)
        tokens = json.loads(wire.body(workload, number))["tokens"]
        # The space at the end says that the last word is finished.
        body = json.dumps({"text": " ".join(map(str, tokens)) + " "}).encode()
        return body, {"Content-Type": "application/json"}, wire.option(spec, workload, "path")

    wire.request = request
    table = (HERE / "gridloop.toml").read_text()
    table = table.replace("{gridloop}", ours.gridloop).replace("{folders}", str(ours.folders.resolve()))
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as config:
        config.write(table)
        config.flush()
        sys.argv = ["run.py", "--config", config.name, *theirs]
        run.main()


if __name__ == "__main__":
    main()
