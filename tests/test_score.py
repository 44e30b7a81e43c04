"""`launch.score`: folders of images in, numbers, intervals and files out; networks are small functions here."""

import json
import threading
import unicodedata
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from etils import epath
from PIL import Image, PngImagePlugin

from asyncpatch_jax.metrics import bootstrap, frechet
from asyncpatch_jax.metrics.features import INCEPTION, Features
from asyncpatch_jax.metrics.paired import Weights
from launch.scoring import images as images_lib
from launch.scoring import measures, passes, report
from launch.shared import replacing
from tests import mains

SIDE, COUNT = 16, 6
RNG = np.random.default_rng(0)
WEIGHTS = Weights("where/model.safetensors", "0123456789abcdef" * 4)


def folder(path, pictures, suffix=".png", texts=None):
    path.mkdir()
    for i, picture in enumerate(pictures):
        chunks = PngImagePlugin.PngInfo()
        if texts:
            chunks.add_itxt("prompt", texts[i])
        Image.fromarray(picture).save(path / f"{i:02d}{suffix}", **({"pnginfo": chunks} if texts else {}))
    return path


def pictures(seed, count=COUNT, side=SIDE):
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), np.uint8)


def colours(images):
    """Features: the mean of each colour of each half."""
    halves = np.split(np.asarray(images, np.float32) / 255, 2, 1)
    return np.concatenate([half.mean((1, 2)) for half in halves], -1)


@pytest.fixture
def command(monkeypatch, capfd):
    call = mains.command(monkeypatch, capfd)
    return lambda *arguments: call("score", *arguments)


def stand_in(monkeypatch, name, call, features=None, needs=None):
    """A measure without a network under the name of one that has it."""
    loaded = measures.Loaded(name, f"about {name}", WEIGHTS, call, features)
    needs = measures.MEASURES[name].needs if needs is None else needs
    monkeypatch.setitem(measures.MEASURES, name, measures.Measure(needs, "", (), lambda folder, options: loaded))


@pytest.fixture
def distances(monkeypatch):
    features = Features(INCEPTION, "the rule", WEIGHTS.sha256, colours)
    for name in measures.SETS:
        stand_in(monkeypatch, name, lambda given: colours(given.images), features)


def read(out):
    return json.loads((out / "scores.json").read_text())


def test_pairs_are_matched_by_name_and_folders_compared_image_by_image(command, tmp_path):
    real, good, bad = pictures(0), pictures(1), pictures(2)
    good[:] = np.clip(real.astype(int) + good // 32, 0, 255)
    a, b = folder(tmp_path / "a", good), folder(tmp_path / "b", bad, ".bmp")
    pairs = folder(tmp_path / "real", real, ".tiff")
    # as a Mac writes it, the same name comes before another one and not after it
    for place, form in ((a, "NFC"), (b, "NFC"), (pairs, "NFD")):
        for number, name in (("03", "0é"), ("04", "0f")):
            (file,) = place.glob(f"{number}.*")
            file.rename(place / f"{unicodedata.normalize(form, name)}{file.suffix}")
    hole = np.zeros((SIDE, SIDE), np.uint8)
    hole[4:9, 2:12] = 255
    Image.fromarray(hole).save(tmp_path / "hole.png")
    asked = (f"--pairs={pairs}", f"--masks={tmp_path / 'hole.png'}", "--metrics=psnr, hole_rmse", "--batch=4")
    code, out, err = command(a, b, *asked, f"--out={tmp_path / 'out'}")
    assert code == 0, err
    found = read(tmp_path / "out")
    order = [0, 1, 2, 5, 4, 3]
    off = [(made.astype(float) - real)[order] / 127.5 for made in (good, bad)]
    psnr = np.array([10 * np.log10(4 / (x**2).mean((1, 2, 3))) for x in off])
    rmse = np.array([np.sqrt((x**2).mean(-1)[:, hole > 0].mean(1)) for x in off])
    for name, each in (("psnr", psnr), ("hole_rmse", rmse)):
        of = found["measures"][name]
        np.testing.assert_allclose(of["each"], each, rtol=1e-5)
        for value, own in zip([*of["values"], *of["differences"]], [*each, each[1] - each[0]], strict=True):
            np.testing.assert_allclose([value[key] for key in ("mean", "low", "high")], bootstrap(own), rtol=1e-5)
    assert (found["folders"], found["names"]) == ([str(a), str(b)], ["00", "01", "02", "05", "0f", "0é"])
    assert found["peak_memory"]["host"] > 2**20
    line = next(line for line in out.splitlines() if line.startswith("| PSNR"))
    assert f"| {psnr[0].mean():.4g} [" in line
    assert f"| {psnr[1].mean() - psnr[0].mean():+.4g} [" in line
    assert "images/s" in out
    assert "peak memory" in out
    assert (tmp_path / "out" / "scores.md").read_text().strip() in out
    assert json.loads((tmp_path / "out" / "made.json").read_text())["command"] == "launch.score"
    assert "PSNR, " in err  # the progress bar


def test_equal_images_have_no_psnr_and_the_others_a_mean():
    number = report.Number("PSNR", "", None, np.array([np.inf, 10.0, 12.0]), 3.0)
    found = {"psnr": report.summary([number, number._replace(values=np.full(3, np.inf))], None)}
    assert found["psnr"].values[0].mean == 11.0
    assert report.table(["a", "b"], found).splitlines()[-1].endswith("| infinite | infinite |")
    assert "3 images are infinite" in report.notes(found)
    assert report.content(found)["psnr"]["each"] == [[None, 10.0, 12.0], [None] * 3]


def test_distances_of_sets_to_images_and_to_their_statistics(command, tmp_path, distances):
    made, other, real = pictures(0, 40), pictures(1, 40) // 2, pictures(2, 50)
    a, b, reference = (folder(tmp_path / name, of) for name, of in (("a", made), ("b", other), ("real", real)))
    statistics = tmp_path / "real.npz"
    asked = (f"--reference={reference}", "--metrics=fid,kid", "--batch=16", f"--statistics={statistics}")
    code, out, err = command(a, b, *asked, f"--out={tmp_path / 'out'}")
    assert code == 0, err
    found = read(tmp_path / "out")["measures"]
    features = [colours(of) for of in (made, other, real)]
    for name in ("fid", "kid"):
        for k in range(2):
            value, each = found[name]["values"][k], found[name]["each"][k]
            if name == "fid":
                np.testing.assert_allclose(value["mean"], frechet(features[k], features[2]), rtol=1e-6)
            np.testing.assert_allclose(np.mean(each), value["mean"], rtol=1e-6)
            assert value["low"] < value["mean"] < value["high"]
        paired = found[name]["differences"][0]
        assert paired["low"] > 0  # the second is darker
        np.testing.assert_allclose(
            paired["mean"], np.subtract(*[v["mean"] for v in found[name]["values"][::-1]]), rtol=1e-6
        )
    assert f"the rule; 40 images against 50 of {reference}" in out
    assert "(sha256 0123456789abcdef)" in out
    # what was written, and the same images as an array
    np.savez(tmp_path / "made.npz", arr_0=made)
    again = (f"--reference={statistics}", "--metrics=fid", f"--out={tmp_path / 'again'}")
    code, out, err = command(tmp_path / "made.npz", *again)
    assert code == 0, err
    by_statistics = read(tmp_path / "again")["measures"]["fid"]
    np.testing.assert_allclose(by_statistics["each"][0], found["fid"]["each"][0], rtol=1e-9)
    assert f"against 50 of {statistics} (sha256 " in out
    with np.load(statistics) as both:  # as pytorch-fid writes them
        np.savez(tmp_path / "plain.npz", mu=both["mu"], sigma=both["sigma"])
    plain = (f"--reference={tmp_path / 'plain.npz'}", "--metrics=fid", f"--out={tmp_path / 'plain'}")
    code, out, err = command(tmp_path / "made.npz", *plain)
    assert code == 0, err
    assert f"an unknown number of {tmp_path / 'plain.npz'}, which does not say its resize rule (sha256" in out
    code, _, err = command(tmp_path / "made.npz", *again[:1], "--metrics=kid", f"--out={tmp_path / 'kid'}")
    assert (code, "expected images as --reference for kid, got statistics alone" in err) == (1, True)


def test_a_reference_that_does_not_fit_is_refused_before_any_image_is_seen(command, tmp_path, monkeypatch):
    def work(given):
        raise AssertionError("a network was called")

    stand_in(monkeypatch, "fid", work, Features(INCEPTION, "the rule", "", work, 6))
    stand_in(monkeypatch, "aesthetic", work)
    some = folder(tmp_path / "some", pictures(0))
    for name, width, more, said in (
        ("narrow", 5, {}, "expected reference statistics of 6 features"),
        ("other", 6, {"resize": np.array("another")}, "of the resize rule 'the rule', got 'another'"),
    ):
        file = tmp_path / f"{name}.npz"
        np.savez(file, mu=np.zeros(width), sigma=np.eye(width), **more)
        # whatever else is asked for first
        asked = ("--metrics=aesthetic,fid", f"--reference={file}", f"--out={tmp_path / 'out'}")
        code, _, err = command(some, *asked)
        assert (code, said in err, str(file) in err) == (1, True, True), err


def test_one_prompt_says_nothing_of_others():
    number = report.Number("", "", None, np.array([1.0, 2.0, 4.0]), 1.0)
    assert report.summary([number], ["a", "a", "a"]).values == [bootstrap(number.values)]
    assert report.summary([number], ["a", "a", "b"]).values == [bootstrap(number.values, ["a", "a", "b"])]


def test_names_of_texts_may_have_dots(tmp_path):
    images = images_lib.open_images(str(folder(tmp_path / "a", pictures(0, 2), ".5.png")))
    file = tmp_path / "p.json"
    for names in (("00.5", "01.5.png"), ("./00.5.png", "01.5")):
        file.write_text(json.dumps(dict(zip(names, "ab", strict=True))))
        assert images_lib.texts_of(images, str(file), None, 0) == ["a", "b"]
    file.write_text(json.dumps({"": "a", "00.5": "b", "01.5": "c"}))
    with pytest.raises(ValueError, match="expected the same names"):
        images_lib.texts_of(images, str(file), None, 0)


def test_each_image_is_scored_with_its_own_prompt(command, tmp_path, monkeypatch):
    texts = ["a cat", "a dog", "a cow"]
    stand_in(
        monkeypatch, "clip", lambda given: np.array([[len(t) + ord(t[-1]) / 1000] for t in given.texts], np.float32)
    )
    wanted = np.array([5 + ord(texts[i // 2][-1]) / 1000 for i in range(COUNT)])
    images = folder(tmp_path / "a", pictures(0), texts=[texts[i // 2] for i in range(COUNT)])
    (tmp_path / "p.txt").write_text("\n".join(texts))
    named = {f"{i:02d}.png": texts[i // 2] for i in reversed(range(COUNT))}
    (tmp_path / "p.json").write_text(json.dumps(named))
    for i, more in enumerate(([], [f"--prompts={tmp_path / 'p.txt'}"], [f"--prompts={tmp_path / 'p.json'}"])):
        code, _, err = command(images, "--metrics=clip", "--batch=4", f"--out={tmp_path / f'out{i}'}", *more)
        assert code == 0, err
        found = read(tmp_path / f"out{i}")
        np.testing.assert_allclose(found["measures"]["clip"]["each"][0], wanted, rtol=1e-6)
        # drawn again by prompts: three, not six
        assert found["measures"]["clip"]["values"][0] == bootstrap(wanted.astype(np.float32), found["texts"])._asdict()
    (tmp_path / "p.json").write_text(json.dumps({**named, "99.png": "a hen"}))
    (tmp_path / "few.txt").write_text("\n".join([*texts, "a hen"]))
    for file, said in (("p.json", "got 1 only in"), ("few.txt", "got 6 and 4")):
        code, _, err = command(images, "--metrics=clip", f"--prompts={tmp_path / file}", f"--out={tmp_path / 'no'}")
        assert (code, said in err) == (1, True), err


def test_what_lacks_or_does_not_fit_is_said_before_any_work(command, tmp_path, monkeypatch):
    def work(given):
        raise AssertionError("a network was called")

    stand_in(monkeypatch, "ssim", work)
    stand_in(monkeypatch, "kid", work)
    few, some = folder(tmp_path / "few", pictures(0)[:-1]), folder(tmp_path / "some", pictures(0))
    large, small = (folder(tmp_path / name, pictures(0, side=side)) for name, side in (("large", 17), ("small", 10)))
    one = folder(tmp_path / "one", pictures(0, 1))
    broken = folder(tmp_path / "broken", pictures(0))
    (broken / "03.png").write_bytes((broken / "03.png").read_bytes()[:200])
    hps = tmp_path / "weights" / "hps_v2.1"
    hps.mkdir(parents=True)
    (hps / "config.json").write_text(json.dumps({"_reward": "pick_score"}))
    (hps / "model.safetensors").write_bytes(b"")
    root = f"--weights={tmp_path / 'weights'}"
    for arguments, said in (
        (["--metrics="], "expected measures (NAME or NAME=FOLDER"),
        (["--metrics=fod"], "expected measures out of fid, kid, lpips"),
        (["--metrics=psnr=x"], "expected no folder of weights for psnr"),
        (["--metrics=ssim"], "expected --pairs=FOLDER for the measure ssim"),
        (["--metrics=kid"], "expected --reference=FOLDER or stats.npz for the measure kid"),
        # weights come before images, which are broken here
        (
            ["--metrics=lpips", f"--pairs={some}", root],
            "there is no such folder\nIt needs a folder that this command makes",
        ),
        (["--metrics=hpsv2", root], "it is of pick_score\nIt needs a folder that this command makes: python -m launch"),
        (["--metrics=clip", root], "such as openai/clip-vit-large-patch14"),
        (["--metrics=bert", root], "such as roberta-large"),
        (["--metrics=ssim", f"--pairs={some}"], "03.png"),
        (["--metrics=kid", "--reference=gone"], "as --reference, got gone, which does not exist"),
    ):
        code, _, err = command(broken, *arguments, f"--out={tmp_path / 'out'}")
        assert (code, said in err) == (1, True), (arguments, err)
    for place, arguments, said in (
        (few, ["--metrics=ssim", f"--pairs={some}"], f"got 1 only in {some} (05)"),
        (some, ["--metrics=ssim", f"--pairs={few}"], f"got 1 only in {some} (05)"),
        (some, ["--metrics=ssim", f"--pairs={large}"], "of one size under one name"),
        (some, ["--metrics=ssim", f"--pairs={broken}"], "03.png"),
        (small, ["--metrics=ssim", f"--pairs={small}"], f"11 pixels a side or more in {small} for ssim, got 10 x 10"),
        (some, ["--metrics=kid", f"--reference={one}"], f"expected at least 2 images in {one} for fid or kid"),
        (one, ["--metrics=kid", f"--reference={some}"], f"expected at least 2 images in {one} for fid or kid"),
        (some, ["--metrics=ssim", f"--pairs={some}", "--sample=2"], "expected --prompts=FILE to draw --sample=2 from"),
        (some, ["--metrics=clip=x"], "there is no such folder"),
        (some, ["--metrics=kid", f"--reference={broken}"], "03.png"),
        (some, ["--metrics=kid", f"--reference={some}", "--protocol=fid-30k"], "expected 30,000 images of 256 x 256"),
        (some, ["--metrics=kid", "--resize=clean", "--protocol=fid-30k"], "--resize=legacy_pytorch for FID-30K"),
    ):
        code, _, err = command(place, *arguments, f"--out={tmp_path / 'out'}")
        assert (code, said in err) == (1, True), (arguments, err)
    stand_in(monkeypatch, "clip", work)
    code, _, err = command(some, "--metrics=clip", f"--out={tmp_path / 'out'}")
    assert (code, "expected --prompts=FILE" in err) == (1, True)
    assert not (tmp_path / "out").exists()


def test_a_folder_of_weights_says_which_network_it_is_of(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(measures, "read_reward", lambda *what: asked.append(what) or (lambda images, texts: [1.0]))
    for name, kind, read in (("hpsv2", "hps_v2", "hps_v2"), ("hpsv2", "hps_v2.1", "hps_v2.1"), ("clip", None, "clip")):
        where = tmp_path / f"{kind}"
        where.mkdir()
        (where / "config.json").write_text(json.dumps({} if kind is None else {"_reward": kind}))
        (where / "model.safetensors").write_bytes(b"x")
        measures.check({name: str(where)}, [])
        loaded = measures.MEASURES[name].load(str(where), measures.Options("clean", 4, 17, ""))
        assert asked[-1] == (read, str(where))
        assert loaded.call(measures.Given(pictures(0), None, None, ["a"], [])).shape == (1, 1)
        assert len(loaded.weights.sha256) == 64


def test_the_smallest_images_of_a_trunk(tmp_path):
    for kind, side in (("lpips_alex", 31), ("lpips_vgg", 16), ("lpips_squeeze", 17), ("squeezenet", 17)):
        (tmp_path / "config.json").write_text(json.dumps({"_reward": kind}))
        assert [measures.smallest(name, str(tmp_path)) for name in ("lpips", "lpips_hole")] == [side, side]
    assert [measures.smallest(name, "") for name in ("psnr", "ssim")] == [1, 11]


def test_batches_are_of_one_size_and_compile_one_shape():
    shapes = [(2, 3)] * 5 + [(4, 4)] + [(2, 3)] * 2
    seen = []
    for places, (numbers,) in images_lib.batches(lambda i: (np.array([i]),), shapes, range(8), 3):
        assert numbers[: len(places), 0].tolist() == places
        seen.append((places, len(numbers)))
    assert seen == [([0, 1, 2], 3), ([3, 4, 6], 3), ([7], 3), ([5], 1)]


def test_two_processes_give_the_rows_of_one(tmp_path, monkeypatch):
    """Two threads stand for them, and what they tell each other goes by hand."""
    asked = passes.Asked(images_lib.open_images(str(folder(tmp_path / "a", pictures(0, 7)))))
    loaded = measures.Loaded("", "", None, lambda given: colours(given.images))
    whole, sums = passes.rows(loaded, asked, 2, "")[0], passes.summed(loaded, asked, 2, "")[0]
    np.testing.assert_array_equal(whole, colours(pictures(0, 7)))
    told, meeting, here = [None, None], threading.Barrier(2, timeout=10), threading.local()

    def tell(array):
        told[here.process] = array
        meeting.wait()
        found = np.stack(told)
        meeting.wait()
        return found

    def work(process):
        here.process = process
        return passes.rows(loaded, asked, 2, "")[0], passes.summed(loaded, asked, 2, "")[0]

    monkeypatch.setattr("jax.process_count", lambda: 2)
    monkeypatch.setattr("jax.process_index", lambda: here.process)
    monkeypatch.setattr("asyncpatch_jax.metrics.moments._all", tell)
    with ThreadPoolExecutor(2) as pool:
        for rows, both in pool.map(work, range(2)):
            np.testing.assert_array_equal(rows, whole)
            assert both.count == 7
            np.testing.assert_allclose(both.scatter, sums.scatter, rtol=1e-12)


def test_images_that_a_command_wrote_are_its_images(tmp_path):
    """And not its grid, which lies beside them."""
    made = tmp_path / "made"
    made.mkdir()
    (made / "made.json").write_text("{}")
    Image.fromarray(pictures(0)[0]).save(made / "grid.png")
    folder(made / "images", pictures(0))
    assert images_lib.open_images(str(made)).names == tuple(f"{i:02d}" for i in range(COUNT))


def test_a_record_beside_images_is_none_of_them(tmp_path):
    """So that what `launch.inpaint` makes of a folder can be scored."""
    folder(tmp_path / "filled", pictures(0))
    names = [f"{i:02d}.png" for i in range(COUNT)]
    replacing.write(epath.Path(tmp_path / "filled"), "launch.inpaint", {}, dict.fromkeys(names))
    assert images_lib.open_images(str(tmp_path / "filled")).names == tuple(f"{i:02d}" for i in range(COUNT))
    (tmp_path / "filled" / names[1]).unlink()
    with pytest.raises(ValueError, match=r"what its made.json lists, got no 01.png"):
        images_lib.open_images(str(tmp_path / "filled"))
