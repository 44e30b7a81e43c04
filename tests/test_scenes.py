import numpy as np
import pytest

from asyncpatch_jax.data import batches, scenes
from asyncpatch_jax.data.scenes import MOST, Box, captions, holds, lies, size_of, split_captions
from asyncpatch_jax.metrics.alignment import Found, check, spots
from launch.shared import scenes_judge


def boxes_of(record):
    return [Box(*map(int, box)) for box in record["boxes"] if box[0] >= 0]


def caption(text):
    return next(caption for caption in captions() if caption.text == text)


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])


def test_a_record_depends_on_index_seed_and_size_only():
    first, second = scenes.scenes("train", seed=3).source, scenes.scenes("train", seed=3).source
    order = np.random.default_rng(0).permutation(40)
    later = {int(i): second[int(i)] for i in order}
    for i in range(40):
        assert_same(first[i], later[i])
    other = scenes.scenes("train", seed=4).source
    assert np.mean([other[i]["label"] == first[i]["label"] for i in range(40)]) < 0.5


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("size", [24, 32])
def test_captions_are_true_of_the_boxes(split, size):
    dataset = scenes.scenes(split, size)
    assert (dataset.shape, dataset.num_classes) == ((size, size, 1), len(captions()))
    kinds = set()
    for i in range(300):
        record = dataset.source[i]
        said, boxes = captions()[record["label"]], boxes_of(record)
        assert record["label"] in split_captions(split)
        assert dataset.class_names[record["label"]] == said.text
        assert tuple(record["digits"][: len(boxes)]) == said.digits
        assert tuple(size_of(box, size) for box in boxes) == said.sizes
        assert not said.relation or holds(said.relation, *boxes)
        assert not said.place or lies(said.place, boxes[0], size)
        for j, a in enumerate(boxes):
            assert 0 <= a.top <= size - a.height
            assert 0 <= a.left <= size - a.width
            for b in boxes[j + 1 :]:
                gaps = (
                    max(a.top - b.top - b.height, b.top - a.top - a.height),
                    max(a.left - b.left - b.width, b.left - a.left - a.width),
                )
                assert max(gaps) >= 2
        kinds.add(said.kind)
    assert kinds == {captions()[i].kind for i in split_captions(split)}


def test_held_out_captions_are_new_combinations_of_known_words():
    train, test = (set(split_captions(split)) for split in ("train", "test"))
    assert not train & test
    assert train | test == set(range(len(captions())))
    assert len({c.text for c in captions()}) == len(captions())

    def what(c):
        """What a scene holds, whichever way it is said."""
        turned = c.relation in ("right of", "below")
        axis = {"right of": "left of", "below": "above"}.get(c.relation, c.relation)
        things = list(zip(c.digits, c.sizes, strict=True))
        return axis, tuple(things[::-1] if turned else things), c.place

    assert not {what(captions()[i]) for i in train} & {what(captions()[i]) for i in test}
    words = [{word for i in part for word in captions()[i].text.split()} for part in (train, test)]
    assert words[1] <= words[0]


def test_objects_are_words_of_the_caption():
    assert caption("a seven left of a three").objects == ("seven", "three")
    assert caption("three sixes").objects == ("sixes",)
    assert caption("an eight in the top right corner").objects == ("eight",)
    for c in captions():
        assert all(c.text.split().count(word) == 1 for word in c.objects)


def test_scenes_make_batches():
    (item,) = (next(batches(scenes.scenes("train"), batch=16, seed=0)),)
    assert item["image"].shape == (16, 24, 24, 1)
    assert set(item["label"]) <= set(split_captions("train"))


def test_relations_and_places():
    a, b = Box(2, 1, 8, 5), Box(6, 14, 8, 5)
    assert holds("left of", a, b)
    assert holds("right of", b, a)
    assert not any(holds(relation, a, b) for relation in ("right of", "above", "below"))
    assert [place for place in scenes.PLACES if lies(place, a, 24)] == ["top left"]
    assert [place for place in scenes.PLACES if lies(place, Box(15, 14, 7, 5), 24)] == ["bottom right"]
    assert lies("middle", Box(8, 9, 8, 5), 24)
    with pytest.raises(ValueError, match="expected a relation out of left of"):
        holds("near", a, b)
    with pytest.raises(ValueError, match="expected a place out of top left"):
        lies("top", a, 24)


def test_wrong_scenes():
    with pytest.raises(ValueError, match="expected a size of at least 24"):
        scenes.scenes(size=16)
    with pytest.raises(ValueError, match="expected split = 'train' or 'test'"):
        scenes.scenes.__wrapped__("all")


def test_spots_are_the_boxes_of_a_scene():
    source = scenes.scenes("train").source
    for i in range(200):
        record = source[i]
        found = sorted(spot.box for spot in spots(record["image"][..., 0]))
        # a digit's rim may be darker than ink
        np.testing.assert_allclose(np.array(found), np.array(sorted(boxes_of(record))), atol=2)


def test_spots_join_broken_strokes_and_leave_out_specks():
    image = np.zeros((24, 24), np.uint8)
    image[3:7, 4:8] = image[8:12, 4:8] = 255
    image[20:22, 20:22] = 255
    image[3:12, 10] = 255
    assert [spot.box for spot in spots(image)] == [Box(3, 4, 9, 4), Box(3, 10, 9, 1)]
    assert spots(np.zeros((24, 24), np.uint8)) == []


def test_verdicts_by_hand():
    said = caption("a small two above a large five")
    two, five = Box(2, 4, 6, 5), Box(10, 5, 13, 7)
    assert check(said, [Found(two, 2), Found(five, 5)], 24).strict
    swapped = check(said, [Found(two, 5), Found(five, 2)], 24)
    assert (swapped.objects, swapped.sizes, swapped.relation, swapped.place) == (1, 0, 0, None)
    alone = check(said, [Found(two, 2)], 24)
    assert alone.alignment == pytest.approx((0.5 + 0.5 + 0) / 3)
    more = check(said, [Found(two, 2), Found(five, 5), Found(Box(0, 18, 6, 5), 2)], 24)
    assert more.objects == pytest.approx(2 / 3)
    assert not more.strict
    nothing = check(caption("three eights"), [], 24)
    assert (nothing.alignment, nothing.strict) == (0, False)
    assert check(caption("three eights"), [Found(two, 8)] * 3, 24).strict
    assert check(caption("a four in the middle"), [Found(two, 4)], 24).alignment == 0.5


def test_the_judge_is_right_about_real_scenes_of_unseen_digits():
    own, other = scenes_judge.of_real(600, seed=0)
    assert scenes_judge.summary(own)[0] > 0.97
    assert scenes_judge.summary(own)[1] > 0.96
    assert scenes_judge.summary(other)[0] < 0.15
    assert scenes_judge.summary(other)[1] < 0.03


def test_the_judge_sees_nothing_in_noise_or_darkness():
    dark = -np.ones((3, 24, 24, 1), np.float32)
    assert scenes_judge.read(dark) == [[], [], []]
    noise = np.random.default_rng(0).normal(size=(20, 24, 24, 1)).astype(np.float32)
    assert scenes_judge.summary(scenes_judge.judge(noise, split_captions("test")[:20]))[1] == 0
    assert MOST == 3
