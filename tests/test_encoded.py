"""Latents in files are those of the images, whoever wrote them and however often they were stopped."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from asyncpatch_jax.data import dataset, encoded, sources
from asyncpatch_jax.pretrained import autoencoders
from launch import encode
from launch.shared import autoencoders as shared
from launch.shared import cli
from tests import mains, tiny_autoencoder

COUNT, SHARD, BATCH = 23, 8, 4


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    return tiny_autoencoder.folder(tmp_path_factory.mktemp("vae") / "vae")


@pytest.fixture(scope="module")
def coder(vae):
    return autoencoders.read_autoencoder(vae)


def configured(vae, where, **more):
    config = cli.load("configs/digits.py")
    settings = {"data.autoencoder": str(vae), "data.latents": str(where), "data.augment": "flip"}
    config.update_from_flattened_dict({**settings, **more})
    return config


def about(vae, coder, where, dtype="float16"):
    config = configured(vae, where)
    shared.fitting(config, coder)
    return shared.about(config, sources.digits(), coder, dtype=dtype, images=COUNT, shard=SHARD)


def write(folder, vae, coder, shard=(0, 1), dtype="float16", **more):
    what = about(vae, coder, folder, dtype)
    encoded.begin(folder, what)
    encoded.write(folder, what, sources.digits(), more.get("encode", coder.encode), batch=BATCH, shard=shard)
    return what


@pytest.fixture(scope="module")
def whole(vae, coder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("latents") / "whole"
    encoded.finish(folder, write(folder, vae, coder))
    return folder


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def pixels(record):
    return record["image"].astype(np.float32) / 127.5 - 1


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_what_is_read_is_what_the_autoencoder_says(whole, vae, coder, dtype, tmp_path):
    folder = whole
    if dtype:
        folder = tmp_path / dtype
        encoded.finish(folder, write(folder, vae, coder, dtype=dtype))
    data, images = encoded.latents(folder), sources.digits()
    assert data.shape == (4, 4, 2)
    assert (len(data.source), data.num_classes) == (COUNT, 10)
    chosen = [images.source[int(i)] for i in np.linspace(0, len(images.source) - 1, COUNT).round()]
    records = [data.source[i] for i in range(COUNT)]
    assert [record["label"] for record in records] == [record["label"] for record in chosen]
    spread = coder.standardised(data.latents.shift, data.latents.scale)
    direct = np.concatenate([np.asarray(spread.encode(np.stack([pixels(one)] * BATCH)))[:1] for one in chosen])
    mirrored = spread.encode(np.stack([pixels(chosen[5])[:, ::-1]] * BATCH))[0]
    # half a unit in the last place of the largest number, before the scale
    largest = np.abs(direct / data.latents.scale + data.latents.shift).max() * data.latents.scale.max()
    rounding = largest * 2.0 ** (-9 if dtype else -12)
    np.testing.assert_allclose(np.stack([one["image"] for one in records]), direct, atol=rounding)
    np.testing.assert_allclose(records[5]["mirrored"], mirrored, atol=rounding)
    assert np.abs(direct[5] - mirrored).max() > 20 * rounding


def test_shift_and_scale_make_each_channel_of_mean_0_and_variance_1(whole):
    data = encoded.latents(whole)
    records = [data.source[i] for i in range(COUNT)]
    read = np.stack([record[name] for record in records for name in ("image", "mirrored")]).astype(np.float64)
    np.testing.assert_allclose(read.mean((0, 1, 2)), 0, atol=1e-6)
    np.testing.assert_allclose(read.var((0, 1, 2)), 1, atol=1e-6)


def test_a_few_images_measure_what_all_do(coder):
    found = encoded.measure(sources.digits(), coder.encode, count=BATCH * 2, batch=BATCH)
    source = sources.digits().source
    places = np.linspace(0, len(source) - 1, BATCH * 2).round().astype(int).tolist()
    latents = np.concatenate([coder.encode(np.stack([pixels(source[i]) for i in places[k : k + 4]])) for k in (0, 4)])
    np.testing.assert_allclose(found.shift, latents.mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(found.scale, 1 / latents.std((0, 1, 2)), rtol=1e-5)


def test_two_processes_write_what_one_writes_and_a_stop_changes_nothing(whole, vae, coder, tmp_path):
    two = tmp_path / "two"
    write(two, vae, coder, (1, 2))
    with pytest.raises(ValueError, match=r"expected 3 shards.*got none for latents-00000-of-00003.json"):
        encoded.finish(two, about(vae, coder, two))
    with pytest.raises(ValueError, match=r"got no latents.json \(not all of them are there yet"):
        encoded.latents(two)

    calls = []

    def dies(images):
        calls.append(1)
        if len(calls) > 5:  # in the middle of the last shard
            raise KeyboardInterrupt
        return coder.encode(images)

    with pytest.raises(KeyboardInterrupt):
        write(two, vae, coder, (0, 2), encode=dies)
    assert [path.name for path in two.iterdir() if "part" in path.name or "00002" in path.name] == []
    # a process that is killed leaves a shard without what says that it is whole
    (two / "latents-00002-of-00003.array_record").write_bytes(b"half")
    calls.clear()
    done = len(list(two.glob("*.array_record")))
    assert done == 3
    encoded.finish(two, write(two, vae, coder, (0, 2)))
    assert contents(two) == contents(whole)


def test_a_folder_of_other_latents_is_refused(whole, vae, tmp_path, coder):
    with pytest.raises(ValueError, match=r"other settings .*dtype: 'float16' -> 'bfloat16'"):
        write(whole, vae, coder, dtype="bfloat16")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    with pytest.raises(ValueError, match="expected a path where nothing exists yet"):
        write(tmp_path / "mine", vae, coder)
    broken = tmp_path / "broken"
    shutil.copytree(whole, broken)
    (broken / "latents-00001-of-00003.array_record").unlink()
    with pytest.raises(ValueError, match=r"expected 3 shards in .*got no latents-00001-of-00003"):
        encoded.latents(broken)
    with pytest.raises(ValueError, match="no such folder"):
        encoded.latents(tmp_path / "nothing")
    with pytest.raises(ValueError, match="finite in float16"):
        write(tmp_path / "large", vae, coder, encode=lambda images: 1e6 * np.asarray(coder.encode(images)))


def test_batches_are_latents_and_flips_those_of_mirrored_images(whole):
    data = encoded.latents(whole)
    plain = dataset.batches(data, batch=COUNT, seed=3, masks=("square",), threads=0)
    flipped = dataset.batches(data, batch=COUNT, seed=3, augment="flip", threads=0)
    one, other = next(plain), next(flipped)
    assert set(one) == {"image", "label", "mask"}
    assert one["image"].dtype == np.float32
    # a square of 4x4 pixels covers 2x2 cells, or parts of 3 in a row
    assert set(one["mask"].sum((1, 2, 3))) <= {4.0, 6.0, 9.0}
    assert len(set(one["mask"].sum((1, 2, 3)))) > 1
    np.testing.assert_array_equal(one["label"], other["label"])
    records = [data.source[i] for i in range(COUNT)]
    ways = set()
    for image in other["image"]:
        way = [name for record in records for name in ("image", "mirrored") if np.array_equal(record[name], image)]
        assert len(way) == 1
        ways |= set(way)
    assert ways == {"image", "mirrored"}
    without = data._replace(latents=data.latents._replace(flips=False))
    with pytest.raises(ValueError, match="expected latents that were encoded with augment = 'flip'"):
        dataset.batches(without, batch=4, seed=0, augment="flip")


def test_the_command_writes_the_same_and_goes_on(whole, vae, tmp_path, monkeypatch, capsys):
    call = mains.command(monkeypatch, capsys)
    where = tmp_path / "latents"
    flags = [f"--config.data.autoencoder={vae}", f"--config.data.latents={where}", "--config.data.augment=flip"]
    flags += [f"--num={COUNT}", f"--shard_size={SHARD}", f"--batch={BATCH}"]
    code, out, err = call("encode", *flags)
    assert code == 0, err
    assert "23 images as 4x4x2 latents in float16" in out
    assert contents(where) == contents(whole)
    assert call("encode", *flags)[0] == 0
    code, _, err = call("encode", *flags[1:])
    assert (code, err) == (1, "error: expected --config.data.autoencoder=FOLDER, got none\n")
    code, _, err = call("encode", flags[0], "--config.data.latents=online")
    assert (code, "expected --config.data.latents=FOLDER to write to, got online" in err) == (1, True)
    assert encode.run.__doc__


def test_latents_of_another_autoencoder_or_of_other_images_are_refused(whole, vae, coder, tmp_path):
    config = configured(vae, whole)
    assert shared.training_data(config, coder).latents.autoencoder == coder.digest
    other = dataclasses.replace(coder, digest="another")
    with pytest.raises(ValueError, match=rf"expected latents of .* \(another\).*\({coder.digest}\)"):
        shared.training_data(config, other)
    with pytest.raises(ValueError, match="got others: split: 'train' -> 'test'"):
        shared.training_data(configured(vae, whole, **{"data.split": "test"}), coder)
    assert json.loads((whole / "latents.json").read_text())["about"]["autoencoder"] == coder.digest
