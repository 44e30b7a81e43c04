"""Scalars of a training, as TensorBoard reads them."""

import io
from unittest import mock

import pytest
from etils import epath
from tensorboard import compat
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from launch.shared.fitting import Scalars


def read_scalars(folder):
    """The events of each name, file after file."""
    found = {}
    for file in sorted(folder.glob("events.out.tfevents.*")):
        with mock.patch.object(compat, "notf", True, create=True):  # TensorBoard's own reader, without TensorFlow
            events = EventAccumulator(str(file), {"scalars": 0}).Reload()
        for name in events.Tags()["scalars"]:
            found.setdefault(name, []).extend(events.Scalars(name))
    return found


def test_tensorboard_reads_what_was_written(tmp_path):
    writer = Scalars(str(tmp_path))
    writer.flush()
    assert not list(tmp_path.iterdir())  # a training that fails before it begins leaves nothing
    for step in (3, 6):
        writer.write(step, {"loss": 1 / step, "finite": 1.0})
    writer.flush()  # before the file is closed, as of a run that goes on
    found = read_scalars(tmp_path)
    assert [(event.step, event.value) for event in found["loss"]] == [
        (3, pytest.approx(1 / 3)),
        (6, pytest.approx(1 / 6)),
    ]
    assert [event.value for event in found["finite"]] == [1.0, 1.0]
    assert found["loss"][0].wall_time <= found["loss"][1].wall_time
    writer.write(9, {"loss": 0.5})
    writer.close()
    again = Scalars(str(tmp_path))
    again.write(12, {"loss": 0.25})
    again.close()
    assert [event.step for event in read_scalars(tmp_path)["loss"]] == [3, 6, 9, 12]


def test_what_cannot_be_written_is_said_by_the_next_call(tmp_path, monkeypatch):
    class Full(io.BytesIO):
        def write(self, data):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(epath.Path(tmp_path)), "open", lambda *args, **more: Full())
    writer = Scalars(str(tmp_path))
    writer.write(1, {"loss": 1.0})
    with pytest.raises(OSError, match="No space left"):
        writer.write(2, {"loss": 1.0})
    Scalars(str(tmp_path)).close()  # nothing to write is no error
