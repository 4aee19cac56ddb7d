"""SIGKILL at any moment, again and again, also while a checkpoint is written: the run ends as if it
never happened."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from limits import HANG_S

pytest.importorskip("trl")

SCRIPT = Path(__file__).parent / "scripts_trl" / "chain.py"


@pytest.mark.slow
@pytest.mark.parametrize("method", [pytest.param("depo", marks=pytest.mark.versions), "depo+"])
@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked children")
def test_sigkill_at_any_moment(tmp_path, method):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, str(SCRIPT), str(tmp_path), method, "10", "5", "0.1", "6"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=HANG_S)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert len(result["hits"]) == 5 and len({hit.split()[0] for hit in result["hits"]}) == 2, (
        "inside saves and outside"
    )
    assert result["different"] == []
    assert any(result["losses"])
