"""AsyncPatch's spread with mass at both ends, against shares that can be counted by hand."""

from pathlib import Path

import jax
import numpy as np
import pytest

from asyncpatch_jax.training.times import AsyncPatch
from launch import times

GRID, DRAWS = (4, 4), 20_000
ENDS = (0.2, 0.5)


@jax.jit
def drawn(key):
    samplers = (AsyncPatch(base="two_level", ends=ENDS), AsyncPatch(base="two_level", spread=(0.0, 0.0)))
    return [sampler(key, DRAWS, GRID)[..., 0] for sampler in samplers]


@pytest.fixture(scope="module")
def fields():
    return [np.asarray(t).reshape(DRAWS, -1) for t in drawn(jax.random.key(0))]


def flat():
    """The chance that a two-level pattern has one level: of n squares below a uniform height, 2 / (n + 1)."""
    crossed = {1: [4], 2: [2, 3], 4: [1, 2, 2, 2]}  # squares along an axis of 4 cells, by side, for each offset
    squares = np.mean([np.mean([2 / (a * b + 1) for a in n for b in n]) for n in crossed.values()])
    perlin = 1 / 16  # its area is rounded to whole cells out of 16
    return (squares + perlin) / 2


def test_shares_of_even_and_of_exactly_clean_fields_are_those_that_were_asked_for(fields):
    t = fields[0]
    even, clean, noisy = (t.max(1) == t.min(1)).mean(), (t == 0).any(1).mean(), (t == 1).any(1).mean()
    # with r = 1 a pattern of two levels reaches 0 where m <= zbar and 1 elsewhere; patterns are as likely turned over
    ends = ENDS[1] * (1 - flat()) / 2
    sure = 5 * np.sqrt(0.25 / DRAWS)
    np.testing.assert_allclose(even, ENDS[0] + (1 - ENDS[0]) * flat(), atol=sure)
    np.testing.assert_allclose((clean, noisy), (ends, ends), atol=sure)


def test_the_mean_is_m_whatever_the_spread(fields):
    t, even = np.asarray(fields, np.float64)
    np.testing.assert_allclose(t.mean(1), even[:, 0], atol=1e-6)
    assert np.abs(np.sort(even[:, 0]) - (np.arange(DRAWS) + 0.5) / DRAWS).max() < 1.95 / np.sqrt(DRAWS)


def test_the_rest_is_uniform_on_spread():
    """Of all fields that are drawn at one key, the spread alone moves: how far each is from its mean tells r."""

    @jax.jit
    def both(key):
        samplers = (AsyncPatch(spread=(0.2, 0.6), ends=(0.3, 0.1)), AsyncPatch(spread=(1.0, 1.0)))
        return [sampler(key, 4000, (2, 2)) for sampler in samplers]

    some, most = (np.asarray(t, np.float64).std((1, 2, 3)) for t in both(jax.random.key(1)))
    known = most > 0.02  # neither flat nor at an edge
    r = some[known] / most[known]
    q = np.array([0.1, 0.25, 0.45, 0.6, 0.75, 0.95])
    np.testing.assert_allclose(np.quantile(r, q), [0, 0, 0.3, 0.4, 0.5, 1], atol=0.02)


@pytest.mark.parametrize(
    ("ends", "said"),
    [((0.7, 0.4), "add up"), ((-0.1, 0.2), "r = 0"), ((0.1, 1.2), "r = 1")],
)
def test_shares_that_make_no_sense_are_refused(ends, said):
    with pytest.raises(ValueError, match=said):
        AsyncPatch(ends=ends)


def test_the_table_counts_fields():
    """Four fields of ten cells whose every number can be read off."""
    clean = np.r_[np.zeros(2), np.full(2, 0.2001), np.full(6, 0.1)]
    near = np.r_[np.full(2, 0.05), np.full(8, 0.9)]
    far = np.r_[np.full(2, 0.0501), np.full(8, 0.9)]
    few = np.r_[np.zeros(1), np.ones(9)]
    quiet = np.r_[np.zeros(9), np.ones(1)]
    fields = np.stack([clean, near, far, few, quiet, np.zeros(10), np.full(10, 0.95), np.full(10, 0.3)])[..., None]
    found = times.shares(fields)
    m = np.array([0.10002, 0.73, 0.73002, 0.9, 0.1, 0, 0.95, 0.3])
    np.testing.assert_allclose(found[:2], (m.mean(), m.std()), rtol=1e-6)
    np.testing.assert_allclose(found.within, (fields.std((1, 2)).mean()))
    assert found[3:] == (1 / 8, 1 / 8, 3 / 8, 2 / 8, 1 / 8)


def test_the_page_states_what_the_command_prints(monkeypatch):
    """Rows of the page for two samplers, from fewer fields than the command draws."""
    monkeypatch.setattr(times, "_FIELDS", 2000)
    chosen = ["synchronous", "patchwise"]
    monkeypatch.setattr(times, "SAMPLERS", {name: times.SAMPLERS[name] for name in chosen})

    def rows(text):
        cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
        return {name: [float(cell.removesuffix(" %")) for cell in rest] for name, *rest in cells if name in chosen}

    printed = rows(times.table(16, 0))
    page = (Path(times.__file__).parents[1] / "docs" / "training_times.md").read_text()
    stated = rows(page[page.index("python -m launch.times --table") :])
    assert list(printed) == list(stated) == chosen
    for name in chosen:
        np.testing.assert_allclose(printed[name][:3], stated[name][:3], atol=0.025)
        np.testing.assert_allclose(printed[name][3:], stated[name][3:], atol=3)
    with pytest.raises(ValueError, match="--size of at least 1, got 0"):
        times.table(0, 0)
