"""Makes sets of outputs and is killed at a chosen change of files, in forks of a small process that does nothing else.

A line of input for each: {"event": which change, "folder": where, "exchanges": whether the file system exchanges
folders}; a line of output: whether the fork was killed, or came to its end with fewer changes.
"""

import errno
import json
import os
import sys

from asyncpatch_jax import files
from launch.shared import outputs, replacing

COMMAND = "launch.sample"
_CHANGES = (*(f"os.{name}" for name in ("rename", "remove", "link", "mkdir", "rmdir", "symlink")), "ctypes.dlsym")


def make(folder, count, text, *, overwrite=False, command=COMMAND):
    """A set of `count` images and a grid."""
    names = [*(f"images/{i:04d}.png" for i in range(count)), "grid.png"]
    with outputs.making(outputs.plan(folder, command, names, overwrite=overwrite), {"seed": 3}) as into:
        for name in names:
            with files.writing(into / name) as stream:
                stream.write(f"{text} {name}".encode())


def no_exchange(*paths):
    """Of a file system that cannot exchange two folders."""
    raise OSError(errno.EINVAL, "no exchange here")


def _killed_at(event, action):
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    seen = 0

    def count(name, arguments):
        nonlocal seen
        writes = name == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if writes or name in _CHANGES:
            seen += 1
            if seen == event:
                os._exit(9)

    sys.addaudithook(count)
    try:
        action()
    finally:
        os._exit(0)


def _main():
    exchange = replacing._exchange_at_once
    for line in sys.stdin:
        asked = json.loads(line)
        replacing._exchange_at_once = exchange if asked["exchanges"] else no_exchange
        killed = _killed_at(asked["event"], lambda: make(asked["folder"], 2, "new", overwrite=True))  # noqa: B023
        print(json.dumps(killed), flush=True)


if __name__ == "__main__":
    _main()
