"""Programs started from a process that has imported what they import, which is most of what a start costs.

Each is a process of its own all the same, with its own command line, environment, output, signals and exit code.
"""

import atexit
import multiprocessing
import os
import runpy
import sys
import threading
import traceback
from collections.abc import Mapping
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from typing import BinaryIO

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["tests.warm"])
atexit.register(forkserver._forkserver._stop)


class Program:
    """`python -m module arguments`, as `subprocess.Popen` would start it; standard error goes where output goes.

    Args:
        environment: all of it; settings of JAX (JAX_...) can be none but this process's, as JAX is imported with them.
        output: a file's number; else a pipe, `stdout`.
    """

    def __init__(
        self, module: str, *arguments: str, environment: Mapping[str, str], cwd: os.PathLike, output: int | None = None
    ) -> None:
        self.stdout: BinaryIO | None = None
        receiver, sender = _SERVER.Pipe(duplex=False) if output is None else (None, Connection(os.dup(output)))
        self._process = _SERVER.Process(
            target=_run, args=(module, arguments, dict(environment), os.fspath(cwd), sender), daemon=False
        )
        self._process.start()
        sender.close()
        if receiver is not None:
            self.stdout = open(os.dup(receiver.fileno()), "rb")  # noqa: SIM115, for as long as the program lives
            receiver.close()
        self.pid = self._process.pid

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self._process.kill()

    def wait(self) -> int:
        self._process.join()
        return self.returncode

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode


def _run(module: str, arguments: tuple[str, ...], environment: dict[str, str], cwd: str, output: Connection) -> None:
    for number in (1, 2):
        os.dup2(output.fileno(), number)
    output.close()
    for name in {name for name in {**os.environ, **environment} if name.startswith("JAX_")}:
        assert os.environ.get(name) == environment.get(name), f"{name} is not the one that JAX was imported with"
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    sys.argv = [module, *arguments]
    code = 1
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
    # what Python does at a program's end and `multiprocessing` does not
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.exit(code)
