import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from asyncpatch_jax.data.images import read_image
from asyncpatch_jax.data.masks import MASKS, Lama, draw, outpaint, read_mask

LAMA = ("thin", "medium", "wide")
few = settings(max_examples=25, deadline=None)


@few
@given(
    name=st.sampled_from([name for name in MASKS if name != "perlin"]),  # which would compile for every new size
    seed=st.integers(0, 2**40),
    size=st.tuples(st.integers(4, 40), st.integers(4, 40)),
)
def test_a_mask_is_binary_and_neither_empty_nor_full(name, seed, size):
    mask = draw(name, seed, 2, size)
    assert mask.shape == (2, *size, 1)
    assert mask.dtype == np.float32
    assert set(np.unique(mask)) == {0.0, 1.0}
    for one in mask:
        assert 0 < one.mean() < 1
        assert name not in LAMA or one.mean() <= 0.5


@pytest.mark.parametrize("name", MASKS)
def test_an_image_s_mask_does_not_depend_on_the_batch(name):
    many, few = draw(name, 3, 5, 16), draw(name, 3, 2, 16)
    np.testing.assert_array_equal(many[:2], few)
    if name not in ("half", "expand", "every_second_line", "super_resolution"):
        assert len(np.unique(many.reshape(5, -1), axis=0)) > 1
        assert (draw(name, 4, 5, 16) != many).any()


@pytest.mark.parametrize("size", [8, 64, (12, 20)])
def test_what_the_fixed_masks_keep(size):
    h, w = (size, size) if isinstance(size, int) else size
    image = np.arange(h * w).reshape(h, w)
    kept = {n: draw(n, 0, 1, size)[0, ..., 0] == 0 for n in MASKS if n not in (*LAMA, "perlin")}
    np.testing.assert_array_equal(image[kept["half"]].reshape(h, -1), image[:, : w // 2])
    np.testing.assert_array_equal(image[kept["every_second_line"]].reshape(-1, w), image[::2])
    np.testing.assert_array_equal(image[kept["super_resolution"]].reshape(h // 2, w // 2), image[::2, ::2])
    rows, columns = np.nonzero(kept["expand"])
    assert (np.ptp(rows) + 1, np.ptp(columns) + 1, len(rows)) == (h // 4, w // 4, (h // 4) * (w // 4))
    assert abs(rows.mean() - (h - 1) / 2) <= 0.5
    assert abs(columns.mean() - (w - 1) / 2) <= 0.5
    # the hole, and only the hole, is the square that "extrema" keeps
    np.testing.assert_array_equal(kept["square"], ~kept["extrema"])
    rows, columns = np.nonzero(kept["extrema"])
    side = min(h, w) // 2
    assert (np.ptp(rows) + 1, np.ptp(columns) + 1, len(rows)) == (side, side, side * side)


def test_square_reaches_every_place():
    holes = draw("square", 0, 400, 8)[..., 0]
    corners = {tuple(np.argwhere(hole)[0]) for hole in holes}
    assert corners == {(y, x) for y in range(5) for x in range(5)}


def thickness(mask):
    """Side of the largest square that fits into the hole: erode until nothing is left."""
    n = 0
    while mask.any():
        mask = mask[:-1, :-1] & mask[1:, :-1] & mask[:-1, 1:] & mask[1:, 1:]
        n += 1
    return n


def test_lama_sets_differ_in_thickness_and_scale_with_the_image():
    # brush widths: thin 5-14, medium 5-54, wide 5-104 pixels of 256; a 45 degree crossing of strokes adds some
    at = {
        (name, size): np.median([thickness(m[..., 0] > 0) for m in draw(name, 0, 24, size)]) / size
        for name in LAMA
        for size in (64, 128)
    }
    for size in (64, 128):
        assert at["thin", size] < at["medium", size] < at["wide", size]
        assert at["wide", size] > 0.15
    for name in LAMA:
        assert at[name, 64] == pytest.approx(at[name, 128], rel=0.35)


def test_perlin_area_is_uniform():
    area = draw("perlin", 0, 300, 8).mean((1, 2, 3))
    assert area.mean() == pytest.approx(0.5, abs=0.06)
    assert area.std() == pytest.approx(12**-0.5, abs=0.03)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("thik", 0, 1, 8), "expected a mask out of thin"),
        (("thin", 0, 1, 1), "a size in pixels >= 2"),
        (("thin", 0, 1, (8, 1)), "a size in pixels >= 2"),
        (("thin", -1, 1, 8), "seed >= 0"),
        (("thin", 0, 0, 8), "batch >= 1"),
    ],
)
def test_wrong_draws(arguments, message):
    with pytest.raises(ValueError, match=message):
        draw(*arguments)


def test_outpaint():
    mask = outpaint((6, 8), top=1, left=3)
    assert mask.shape == (6, 8, 1)
    assert (mask[0] == 1).all()
    assert (mask[:, :3] == 1).all()
    assert (mask[1:, 3:] == 0).all()
    for margins in ({}, {"top": -1}, {"top": 3, "bottom": 3}, {"right": 8}):
        with pytest.raises(ValueError, match=r"expected (a margin|margins)"):
            outpaint((6, 8), **margins)


hard = (
    st.integers(2, 9)
    .flatmap(
        lambda h: st.integers(2, 9).flatmap(
            lambda w: st.lists(st.booleans(), min_size=h * w, max_size=h * w).map(
                lambda bits: np.array(bits).reshape(h, w)
            )
        )
    )
    .filter(lambda mask: mask.any() and not mask.all())
)


@few
@given(mask=hard)
def test_every_convention_reads_back_what_was_marked(tmp_path_factory, mask):
    path = tmp_path_factory.mktemp("mask") / "mask.png"
    grey = np.where(mask, 255, 0).astype(np.uint8)
    files = {
        "white_generate": Image.fromarray(grey),
        "black_generate": Image.fromarray(255 - grey).convert("1"),
        "alpha_generate": Image.fromarray(np.stack([grey, grey, grey, 255 - grey], -1)),
        "alpha_keep": Image.fromarray(np.stack([grey, grey], -1), "LA"),
    }
    for convention, image in files.items():
        image.save(path)
        read = read_mask(path, mask.shape, convention)
        assert read.dtype == np.float32
        np.testing.assert_array_equal(read[..., 0], mask)


def save(path, values):
    Image.fromarray(np.asarray(values, np.uint8)).save(path)
    return path


def test_greys_are_strengths_only_by_choice(tmp_path):
    path = save(tmp_path / "m.png", [[0, 51], [127, 128]])
    told = {"mask_values": (0.0, 255.0)}
    np.testing.assert_array_equal(read_mask(path, (2, 2), **told)[..., 0], [[0, 0], [0, 1]])
    graded = read_mask(path, (2, 2), graded=True, **told)[..., 0]
    np.testing.assert_allclose(graded, [[0, 0.2], [127 / 255, 128 / 255]], rtol=1e-6)
    assert read_mask(path, (2, 2), size=1, graded=True, **told)[0, 0, 0] == pytest.approx(graded.mean())


def test_a_mask_follows_the_crop_and_the_resize_of_its_image(tmp_path):
    values = np.zeros((8, 16))
    values[1, 4] = 255  # one pixel in the corner block of the centre square
    values[:, 15] = 255  # cut off
    path = save(tmp_path / "m.png", values)
    corner = np.eye(4)[0] * np.eye(4)[0][:, None]
    np.testing.assert_array_equal(read_mask(path, (8, 16), size=4, graded=True)[..., 0] > 0, corner)
    hard = read_mask(path, (8, 16), size=4)[..., 0]
    assert hard[0, 0] == 1
    assert not hard[3:].any()
    assert not hard[:, 3:].any()


def test_known_pixels_of_a_resized_image_hold_no_trace_of_what_is_hidden(tmp_path):
    rng = np.random.default_rng(0)
    image, hole = rng.integers(0, 256, (64, 64)), np.zeros((64, 64))
    hole[20:37, 9:30] = 255
    path = save(tmp_path / "m.png", hole)
    known = read_mask(path, (64, 64), size=16)[..., 0] == 0
    assert 0.5 < known.mean() < 0.9
    paths = [save(tmp_path / f"{hidden}.png", np.where(hole, hidden, image)) for hidden in (0, 255)]
    seen = [read_image(path, 16, 1)[..., 0] for path in paths]
    np.testing.assert_array_equal(seen[0][known], seen[1][known])
    assert (seen[0] != seen[1])[~known].any()


def test_wrong_masks(tmp_path):
    empty, some = save(tmp_path / "empty.png", np.zeros((4, 6))), save(tmp_path / "some.png", np.eye(4, 6) * 255)
    with pytest.raises(ValueError, match=r"expected a mask of the image's 5x7 .* got 6x4"):
        read_mask(some, (7, 5))
    with pytest.raises(ValueError, match="something to generate"):
        read_mask(empty, (4, 6))
    with pytest.raises(ValueError, match="convention out of white_generate"):
        read_mask.__wrapped__(some, (4, 6), "white")  # past the type check of the tests
    with pytest.raises(ValueError, match="with transparency"):
        read_mask(some, (4, 6), "alpha_generate")
    layer = tmp_path / "layer.png"
    Image.fromarray(np.full((4, 6, 4), 128, np.uint8)).save(layer)
    with pytest.raises(ValueError, match="without transparency"):
        read_mask(layer, (4, 6), "white_generate")
    with pytest.raises(ValueError, match="no such file"):
        read_mask(tmp_path / "none.png", (4, 6))
    # all of it marked is plain generation, and no mistake
    assert read_mask(empty, (4, 6), "black_generate").all()


@pytest.mark.parametrize("seed", range(8))
def test_the_first_stroke_goes_down_and_to_the_left(seed):
    """Of angles below a right one: from straight down, to the side that the second stroke does not go to."""
    lama = Lama(strokes=(1, 1), width=1, length=60, angle=2)
    rows, cols = np.nonzero(lama(np.random.default_rng(seed), (256, 256)))
    rng = np.random.default_rng(seed)
    assert rng.integers(1, 2) == 1  # of strokes
    y, x = rng.uniform(0, 256), rng.uniform(0, 256)
    assert rows.min() >= y - 4
    assert cols.max() <= x + 4
    assert rows.max() > min(y + 4, 254)
