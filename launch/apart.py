"""Compiling in a process apart, since a compiler may end the process that it runs in."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

_CHILD = [sys.executable, "-m", "launch.aot"]
_LINES = 15  # of what a process that died has said
# no search for a TPU of this machine, and no lock on it: nothing runs there
_ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}


def ahead(request: dict[str, Any], timeout: float) -> dict[str, Any]:
    """Compile one program in a process of its own.

    Args:
        request: as `launch.aot.answer` takes it.
        timeout: seconds.

    Returns:
        What that gives; or {"failed": how the process ended, "stderr": its last lines}.

    Raises:
        ValueError: the request makes no sense.
    """
    with tempfile.TemporaryDirectory() as folder:
        asked, answered = Path(folder) / "request.json", Path(folder) / "answer.json"
        asked.write_text(json.dumps(request))
        root = str(Path(__file__).parent.parent)
        path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        try:
            done = subprocess.run(
                [*_CHILD, str(asked), str(answered)],
                env={**os.environ, **_ENVIRONMENT, "PYTHONPATH": path},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            return {"failed": f"not done after {timeout:g} s", "stderr": _last(error.stderr)}
        if done.returncode:
            return {"failed": _ending(done.returncode), "stderr": _last(done.stderr)}
        answer = json.loads(answered.read_text())
    if "mistake" in answer:
        raise ValueError(answer["mistake"])
    return answer


def _ending(code: int) -> str:
    return f"exit code {code}" if code > 0 else f"killed by {signal.Signals(-code).name} (exit code {code})"


def _last(text: bytes | None) -> list[str]:
    return (text or b"").decode(errors="replace").strip().splitlines()[-_LINES:]
