"""Which windows fill the holes of a photo, and that filling them changes nothing else: geometry, without a network."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from asyncpatch_jax.sampling.painting import Job, erased, look, placed, repaint, resized, together
from asyncpatch_jax.sampling.paste import stitch
from asyncpatch_jax.sampling.windows import REFINE, plan, rounds, starts


@st.composite
def holes(draw):
    """Strengths of a small photo: several boxes anywhere, at the border too, and single pixels; hard or graded."""
    height, width = draw(st.integers(3, 40)), draw(st.integers(3, 40))
    strength = np.zeros((height, width, 1), np.float32)
    value = st.sampled_from([1.0, 1.0, 0.25, 0.5])
    for _ in range(draw(st.integers(1, 4))):
        y, x = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
        h, w = draw(st.sampled_from([1, 2, 5, 13, 40])), draw(st.sampled_from([1, 3, 8, 40]))
        strength[y : y + h, x : x + w] = draw(value)
    return strength


sizes = st.tuples(st.integers(4, 9), st.integers(4, 9))
looks = st.sampled_from([{}, {"room": 4.0}, {"detail": 1.0}, {"detail": 1.7}, {"coarse": False}])
cases = given(holes(), sizes, st.integers(0, 3), looks)
checked = settings(deadline=None, max_examples=60)


@checked
@cases
@example(np.ones((40, 3, 1), np.float32), (4, 9), 3, {"detail": 1.0})
def test_every_pixel_to_fill_is_written_by_one_window_of_each_scale_and_no_other_is(strength, size, overlap, how):
    windows = plan(strength, size, overlap=overlap, **how)
    most = min(side / window for side, window in zip(strength.shape[:2], size, strict=True))
    finest = min(how.get("detail", 1.0), most)
    scales = [window.scale for window in windows]
    assert scales == sorted(scales, reverse=True)
    assert finest <= min(scales)
    assert max(scales) <= most + 1e-9
    assert "coarse" not in how or set(scales) == {finest}
    written = {scale: np.zeros(strength.shape, int) for scale in scales}
    for window in windows:
        rows, columns = window.place
        assert 0 <= rows.start < rows.stop <= strength.shape[0]
        assert 0 <= columns.start < columns.stop <= strength.shape[1]
        for place, side in zip(window.place, size, strict=True):
            assert abs(place.stop - place.start - side * window.scale) <= 0.5 + 1e-9
        before = sum(count[window.place] for count in written.values()) > 0
        given_ = strength[window.place]
        # only what is known from the beginning, or was written, counts as known; and only what is given changes
        assert (before | (given_ == 0))[window.strength == 0].all()
        assert np.isin(window.strength, np.float32([0, 1, REFINE]) * given_).all()
        assert (window.strength[~before] == given_[~before]).all()
        assert (window.strength > 0)[window.write].all()
        assert window.write.any()
        written[window.scale][window.place] += window.write
    if "detail" not in how:
        assert (sum(written.values()) == (strength > 0)).all()
        return
    last = written.pop(finest)
    assert (last == (strength > 0)).all()
    # of coarser scales it is the finer ones that a pixel has, each once
    for scale in sorted(written):
        assert (written[scale] <= last).all()
        last = written[scale]


@checked
@cases
def test_windows_of_a_round_do_not_see_each_other_and_keep_their_order(strength, size, overlap, how):
    windows = plan(strength, size, overlap=overlap, **how)
    turns = rounds(windows)
    assert sorted(i for turn in turns for i in turn) == list(range(len(windows)))
    when = {i: t for t, turn in enumerate(turns) for i in turn}
    for i, a in enumerate(windows):
        earlier = [j for j in range(i) if _meet(a.place, windows[j].place)]
        assert when[i] == max((when[j] + 1 for j in earlier), default=0)


def _meet(a, b):
    return all(p.start < q.stop and q.start < p.stop for p, q in zip(a, b, strict=True))


@checked
@cases
def test_what_is_kept_is_the_photos_own_and_what_is_erased_is_never_seen(strength, size, overlap, how):
    rng = np.random.default_rng(0)
    photo = rng.integers(0, 256, (*strength.shape[:2], 3), np.uint8)
    other = np.where(strength == 1, 255 - photo, photo)
    windows = plan(strength, size, overlap=overlap, **how)
    seen = [{}, {}]

    def fill(shown):
        assert len(shown) <= 2
        assert all(one.image.shape == (*size, 3) and one.strength.shape == (*size, 1) for one in shown)
        assert all(one.strength.any() for one in shown)
        for one in shown:
            seen[one.job][one.window] = one.image
        return [np.roll(one.image, 1, axis=0) ^ np.uint8(85) for one in shown]

    made = dict(repaint([Job(photo, windows), Job(other, windows)], size, fill, batch=2))
    assert (made[0] == photo)[(strength == 0)[..., 0]].all()
    assert (made[1] == other)[(strength == 0)[..., 0]].all()
    assert (made[0] == made[1]).all()
    assert seen[0].keys() == seen[1].keys() == set(range(len(windows)))
    assert all((seen[0][i] == seen[1][i]).all() for i in seen[0])


@checked
@given(st.integers(1, 60), st.integers(1, 20), st.integers(0, 19))
def test_windows_of_an_axis_are_few_and_share_what_they_should(length, window, overlap):
    if overlap >= window or window > length:
        with pytest.raises(ValueError, match="expected"):
            starts(length, window, overlap)
        return
    found = starts(length, window, overlap)
    assert (found[0], found[-1]) == (0, length - window)
    gaps = np.diff(found)
    assert (gaps <= window - overlap).all()
    assert len(found) == 1 + -(-(length - window) // (window - overlap))


def test_a_hole_that_fits_has_one_window_around_it_and_near_ones_share_it():
    strength = np.zeros((223, 223, 1), np.float32)
    strength[100:108, 100:108] = strength[104:106, 110:112] = strength[10, 200] = strength[222, 0] = 1
    windows = plan(strength, (16, 16), overlap=2, room=1.25)
    corners = sorted(tuple(side.start for side in window.place) for window in windows)
    assert corners == [(2, 192), (96, 98), (207, 0)]
    assert all(side.stop - side.start == 16 for window in windows for side in window.place)
    assert {window.scale for window in windows} == {1.0}
    # the network's own size is one look at all of it
    (window,) = plan(np.ones((16, 16, 1), np.float32), (16, 16), overlap=4)
    assert window.place == (slice(0, 16), slice(0, 16))
    assert (window.strength == 1).all()
    # a smaller photo is enlarged
    (window,) = plan(strength[95:110, 95:105], (16, 16), overlap=2)[:1]
    assert window.place[1] == slice(0, 10)
    assert window.scale == 10 / 16


def test_a_large_hole_is_seen_as_a_whole_first_and_by_those_that_know_most_later():
    strength = np.zeros((64, 256, 1), np.float32)
    strength[:, 64:160] = 1
    first = plan(strength, (16, 16), overlap=4)
    assert {window.scale for window in first} == {4}
    windows = plan(strength, (16, 16), overlap=4, detail=1.0)
    for a, b in zip(first, windows, strict=False):
        assert a.place == b.place
        assert (a.write == b.write).all()
    assert len(first) == 3
    assert {first[0].place[1].start, first[1].place[1].start} >= {48}
    assert all(window.strength.max() == 1 for window in first)
    # the one that joins both sides comes last, and knows something on each
    assert [window.strength[:, edge].max() for window in first[-1:] for edge in (0, -1)] == [0, 0]
    finer = [window for window in windows if window.scale < 4]
    assert {window.scale for window in finer} == {2, 1}
    assert all(window.strength.max() == np.float32(REFINE) for window in finer)


def test_a_thousand_specks_take_seconds_and_few_windows():
    strength = (np.random.default_rng(0).random((900, 1200, 1)) > 0.9995).astype(np.float32)
    windows = plan(strength, (64, 64), overlap=8)
    assert len(windows) < 2 * 900 * 1200 / 48**2
    assert {window.scale for window in windows} == {1.0}


@pytest.mark.parametrize(
    ("strength", "more", "message"),
    [
        (np.zeros((9, 9, 1)), {}, "something to fill"),
        (np.full((9, 9, 1), 1.5), {}, "in 0 ... 1"),
        (np.full((9, 9, 1), np.nan), {}, "in 0 ... 1"),
        (np.ones((9, 9, 1)), {"detail": 0.5}, "a detail of 1 pixel or more"),
        (np.ones((9, 9, 1)), {"detail": np.nan}, "a detail of 1 pixel or more"),
        (np.ones((9, 9, 1)), {"room": 0.5}, "a room of 1 or more"),
        (np.ones((9, 9, 1)), {"overlap": 4}, "an overlap in 0 ... 3"),
    ],
)
def test_plans_that_make_no_sense_are_refused(strength, more, message):
    with pytest.raises(ValueError, match=message):
        plan(strength.astype(np.float32), (4, 4), **{"overlap": 1, **more})


def test_a_network_that_is_off_by_a_shade_meets_the_photo_at_the_seam():
    rng = np.random.default_rng(0)
    truth = rng.normal(0, 1, (40, 40, 3)).astype(np.float32)
    hole = np.zeros((40, 40, 1), bool)
    hole[10:36, 8:34] = True
    shade = np.float32([3, -2, 0])
    made = truth + shade
    out = stitch(truth, made, hole, ~hole, 2.0)
    assert (out == truth)[~hole[..., 0]].all()
    error = np.abs(out - truth)
    side = error[20, 8:20]
    assert side[0].max() < 0.6  # from 3: the pixel at the seam
    assert (np.diff(side[:, 0]) >= -1e-5).all()
    # beyond three feathers it is the network's own, to the bit
    assert (out == made)[16:30, 14:28].all()
    # what agrees with the photo is not touched
    np.testing.assert_array_equal(stitch(truth, truth, hole, ~hole, 2.0), truth)
    np.testing.assert_array_equal(stitch(truth, made, hole, ~hole, 0.0), np.where(hole, made, truth))


def test_a_seam_does_not_look_at_what_is_neither_known_nor_filled():
    rng = np.random.default_rng(0)
    base, made = rng.normal(0, 1, (2, 20, 20, 1))
    hole, known = np.zeros((2, 20, 20, 1), bool)
    hole[5:9], known[9:12] = True, True
    hidden = np.where(known, base, np.nan), np.where(known | hole, made, np.nan)
    out = stitch(*hidden, hole, known, 1.5)
    np.testing.assert_array_equal(out[5:9], stitch(base, made, hole, known, 1.5)[5:9])
    with pytest.raises(ValueError, match="of which nothing is known"):
        stitch(base, made, hole, hole, 1.5)
    with pytest.raises(ValueError, match="of one size"):
        stitch(base, made[1:], hole, known, 1.5)
    for feather in (-1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="feather >= 0"):
            stitch(base, made, hole, known, feather)


def test_a_look_marks_every_pixel_that_holds_something_to_change():
    strength = np.zeros((12, 12, 1), np.float32)
    strength[3, 6] = 0.5
    (window,) = plan(strength, (4, 4), overlap=0, detail=3.0)
    assert (window.scale, window.place) == (3.0, (slice(0, 12), slice(0, 12)))
    shown, how_much = look(np.zeros((12, 12, 1), np.uint8), window, (4, 4))
    assert shown.shape == (4, 4, 1)
    assert how_much[1, 2] == 0.5
    assert np.count_nonzero(how_much) == 1


def test_a_small_change_of_a_large_part_keeps_the_photos_detail():
    photo = np.random.default_rng(0).integers(60, 200, (32, 32, 1), np.uint8)
    windows = plan(np.full((32, 32, 1), 0.25, np.float32), (8, 8), overlap=2, detail=4.0)
    ((_, made),) = repaint([Job(photo, windows)], (8, 8), lambda shown: [one.image + 20 for one in shown], batch=1)
    soft = resized(resized(photo, (8, 8)), (32, 32)).astype(int)
    kept = np.corrcoef((made.astype(int) - soft).ravel(), (photo - soft).ravel())[0, 1]
    assert kept > 0.99
    assert made.mean() - photo.mean() == pytest.approx(20, abs=1)


def test_what_is_erased_has_the_nearest_colour_and_a_full_hole_none():
    photo = np.zeros((6, 6, 1), np.uint8)
    photo[:, 5] = 200
    strength = np.zeros((6, 6, 1), np.float32)
    strength[:, 1:5] = 1
    windows = plan(strength, (6, 6), overlap=1)
    assert erased(photo, windows)[0, :, 0].tolist() == [0, 0, 0, 200, 200, 200]
    assert (erased(photo, plan(np.ones_like(strength), (6, 6), overlap=1)) == 127).all()


def test_what_is_written_is_what_was_made():
    photo = np.random.default_rng(0).integers(0, 256, (9, 9, 3), np.uint8)
    strength = np.zeros((9, 9, 1), np.float32)
    strength[2:5, 3:6] = 1
    (window,) = plan(strength, (9, 9), overlap=1)
    made = 255 - photo
    out = placed(photo, window, photo, made, feather=0.0)
    np.testing.assert_array_equal(out, np.where(strength == 1, made, photo))


def test_photos_are_given_back_when_they_are_done_and_share_batches():
    small, large = np.zeros((2, 8, 24, 1), np.float32)
    small[2:5, 2:5], large[:, 2:] = 1, 1
    jobs = [Job(np.zeros((8, 24, 1), np.uint8), plan(mask, (8, 8), overlap=2)) for mask in (large, small)]
    calls = []

    def fill(shown):
        calls.append([(one.job, one.window) for one in shown])
        return [one.image for one in shown]

    assert together(jobs, 16) <= 2
    done = [j for j, _ in repaint(jobs, (8, 8), fill, batch=16)]
    assert done == [1, 0]
    assert {j for j, _ in calls[0]} == {0, 1}
    assert sorted(chosen for call in calls for chosen in call) == [
        (j, i) for j, job in enumerate(jobs) for i in range(len(job.windows))
    ]
