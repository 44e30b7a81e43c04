"""Rewards on the host: what is checked, z-scores by their definition, and classifiers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from asyncpatch_jax.metrics import classifier, combine, composed, from_callable

DIGITS = [str(digit) for digit in range(10)]


def some_images(count=4, channels=3):
    return np.random.default_rng(0).integers(0, 256, (count, 5, 6, channels), dtype=np.uint8)


def brightness(images, prompts):
    return [float(image.mean()) + len(prompt) for image, prompt in zip(images, prompts, strict=True)]


@pytest.mark.parametrize("channels", [1, 3])
def test_any_function_is_a_reward(channels):
    images, prompts = some_images(channels=channels), ["a", "bb", "", "cc"]
    scores = from_callable("brightness", brightness)(images, prompts)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, images.mean((1, 2, 3)) + np.array([1, 2, 0, 2]), rtol=1e-6)


@pytest.mark.parametrize(
    ("result", "said"),
    [
        (np.zeros((4, 1)), r"4 scores of the reward mine, got an array of \(4, 1\)"),
        (0.5, r"4 scores of the reward mine, got an array of \(\)"),
        ([1.0, 2.0, np.nan, np.inf], "got nan for image 2, 'c'"),
        ([1.0, -np.inf, 2.0, 3.0], "got -inf for image 1, 'b'"),
        ([1.0, 2.0, 3.0, 1e300], "the reward mine, got inf for image 3"),
        (list("abcd"), "numbers of the reward mine, got <U1 such as 'a'"),
        (["1.0"] * 4, "numbers of the reward mine, got <U3 such as '1.0'"),
        (None, "numbers of the reward mine, got object such as None"),
        ([1.0, None, 2.0, 3.0], "numbers of the reward mine, got object such as 1.0"),
        ([1j] * 4, "numbers of the reward mine, got complex128"),
        ([[1.0], [1.0, 2.0], [], []], "of the reward mine, got what numpy does not read"),
        (ZeroDivisionError("no image"), "of the reward mine, got an error: ZeroDivisionError: no image"),
        (ConnectionError("refused"), "of the reward mine, got an error: ConnectionError: refused"),
        (ValueError("expected more, got less"), "of the reward mine, got an error: expected more, got less"),
    ],
    ids=str,
)
@pytest.mark.parametrize("alone", [True, False])
def test_what_a_function_must_not_return(result, said, alone):
    """Whichever way: its own error, or an answer; alone, or as one of several."""

    def mine(images, prompts):
        if isinstance(result, Exception):
            raise result
        return result

    reward = (
        from_callable("mine", mine)
        if alone
        else composed({"good": brightness, "mine": mine}, {"good": 1.0, "mine": 1.0})
    )
    with pytest.raises(ValueError, match=said):
        reward(some_images(), list("abcd"))


@pytest.mark.parametrize("answer", [[True, False], np.arange(2), jnp.ones(2, jnp.bfloat16), torch.ones(2)], ids=str)
def test_numbers_of_any_type_are_scores(answer):
    scores = from_callable("mine", lambda images, prompts: answer)(some_images(2), ["a", "b"])
    assert scores.dtype == np.float32
    assert scores.tolist() == [float(value) for value in answer]


@pytest.mark.parametrize(("prompts", "said"), [(["a"], "4 images, got 1"), ("abcd", "4 images, got one text")])
def test_a_prompt_for_each_image(prompts, said):
    with pytest.raises(ValueError, match=said):
        from_callable("mine", brightness)(some_images(), prompts)


@pytest.mark.parametrize("scale", ["log", "probability"])
def test_classifier_is_the_softmax_at_the_named_class(scale):
    images = some_images(count=3)
    table = np.random.default_rng(1).normal(0, 30, (3, 10)).astype(np.float32)

    @jax.jit
    def logits(images):
        return jnp.asarray(table) + 0.0 * images.mean((1, 2, 3))[:, None]

    reward = classifier(logits, DIGITS, scale=scale)
    expected = jax.nn.log_softmax(table)[np.arange(3), np.array([7, 0, 9])]
    expected = expected if scale == "log" else np.exp(expected)
    np.testing.assert_allclose(reward(images, ["7", "0", "9"]), expected, rtol=1e-5, atol=1e-30)


def test_what_a_classifier_refuses():
    images, flat = some_images(count=2), classifier(lambda images: np.zeros((2, 10)), DIGITS)
    with pytest.raises(ValueError, match=r"name a class of 0, 1, .*, got 'seven'"):
        flat(images, ["7", "seven"])
    with pytest.raises(ValueError, match=r"logits of shape \(2, 10\), got \(2, 3\)"):
        classifier(lambda images: np.zeros((2, 3)), DIGITS)(images, ["1", "2"])
    with pytest.raises(ValueError, match="different names"):
        classifier(lambda images: np.zeros((2, 2)), ["cat", "cat"])
    with pytest.raises(ValueError, match="'log' or 'probability', got 'logit'"):
        classifier(lambda images: np.zeros((2, 10)), DIGITS, scale="logit")


def test_combined_scores_are_the_mean_z_scores():
    rng = np.random.default_rng(2)
    a, b = rng.normal(5, 0.01, 6).astype(np.float32), rng.normal(-3, 70, 6).astype(np.float32)
    z = {name: (v.astype(np.float64) - v.mean(dtype=np.float64)) / v.std(dtype=np.float64) for name, v in
         (("a", a), ("b", b))}  # fmt: skip
    np.testing.assert_allclose(combine({"a": a, "b": b}, {"a": 1.0, "b": 1.0}), (z["a"] + z["b"]) / 2, atol=1e-6)
    np.testing.assert_allclose(combine({"a": a, "b": b}, {"a": 3.0, "b": -1.0}), (3 * z["a"] - z["b"]) / 4, atol=1e-6)
    # units and offsets of a metric do not matter
    np.testing.assert_allclose(
        combine({"a": 100 * a + 7, "b": b}, {"a": 1.0, "b": 1.0}),
        combine({"a": a, "b": b}, {"a": 1.0, "b": 1.0}),
        atol=1e-3,
    )


def test_a_metric_without_spread_counts_as_nothing():
    a, same = np.array([1.0, 2.0, 4.0], np.float32), np.full(3, 0.1, np.float32)
    alone = combine({"a": a}, {"a": 1.0})
    np.testing.assert_allclose(combine({"a": a, "same": same}, {"a": 1.0, "same": 1.0}), alone / 2, rtol=1e-6)
    np.testing.assert_array_equal(combine({"same": same + np.array([0, 1e-8, 0])}, {"same": 1.0}), 0)
    np.testing.assert_array_equal(combine({"a": a[:1]}, {"a": 1.0}), 0)
    np.testing.assert_array_equal(combine({"a": 0 * a}, {"a": 1.0}), 0)
    # small values are no small spread
    np.testing.assert_allclose(combine({"a": 1e-9 * a}, {"a": 1.0}), alone, rtol=1e-5)


def test_groups_are_compared_among_themselves():
    a, groups = np.array([1.0, 3.0, 100.0, 200.0, 300.0, 5.0], np.float32), np.array([4, 4, 1, 1, 1, 7])
    parts = [combine({"a": a[groups == group]}, {"a": 1.0}) for group in (4, 1, 7)]
    np.testing.assert_allclose(combine({"a": a}, {"a": 1.0}, groups), np.concatenate(parts), rtol=1e-6)
    np.testing.assert_allclose(parts[0], [-1, 1])


def test_a_composed_reward_is_its_combined_scores():
    images, prompts = some_images(), ["a", "bb", "", "cc"]
    bright = from_callable("brightness", brightness)
    long = from_callable("length", lambda images, prompts: [len(prompt) for prompt in prompts])
    weights = {"bright": 2.0, "long": 1.0}
    both = composed({"bright": bright, "long": long}, weights)(images, prompts)
    np.testing.assert_allclose(
        both, combine({"bright": bright(images, prompts), "long": long(images, prompts)}, weights)
    )
    assert both.std() > 0.1


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ({"a": 1.0, "c": 1.0}, "a weight for each of a, b"),
        ({"a": 1.0}, "a weight for each of a, b"),
        ({"a": 0.0, "b": 0.0}, "not all 0"),
        ({"a": np.nan, "b": 1.0}, "finite weights"),
    ],
)
def test_weights_of_other_metrics(weights, said):
    scores = {"a": np.arange(3.0), "b": np.arange(3.0)}
    with pytest.raises(ValueError, match=said):
        combine(scores, weights)
    with pytest.raises(ValueError, match=said):
        composed(dict.fromkeys("ab", from_callable("x", brightness)), weights)


def test_scores_of_other_images():
    with pytest.raises(ValueError, match=r"lengths \{'a': 3, 'b': 2\}"):
        combine({"a": np.arange(3.0), "b": np.arange(2.0)}, {"a": 1.0, "b": 1.0})
    with pytest.raises(ValueError, match=r"lengths \{'a': 3, 'groups': 2\}"):
        combine({"a": np.arange(3.0)}, {"a": 1.0}, np.arange(2))
    with pytest.raises(ValueError, match="finite scores of a"):
        combine({"a": np.array([1.0, np.nan])}, {"a": 1.0})
