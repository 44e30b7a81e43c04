"""How much memory this process has taken at most, on the host and on its devices."""

import resource
import sys

import jax


def peak() -> dict[str, int | None]:
    """Bytes: of the process, and of the fullest of its devices (None where a device does not count)."""
    unit = 1 if sys.platform == "darwin" else 1024
    host = unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    device = max((stat.get("peak_bytes_in_use", 0) for stat in stats), default=0)
    return {"host": host, "device": device or None}


def said() -> str:
    """`peak` for people."""
    found = peak()
    device = "" if found["device"] is None else f", {found['device'] / 2**30:.2f} GiB on the fullest device"
    return f"peak memory {(found['host'] or 0) / 2**30:.2f} GiB on the host{device}"
