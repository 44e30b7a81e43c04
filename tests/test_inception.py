"""FID's Inception: a published file of a narrow random network through conversion, against PyTorch and Pillow."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from asyncpatch_jax.metrics import conversion, inception, sources
from asyncpatch_jax.metrics.features import INCEPTION
from tests import mains, tiny

SHRINK = 16


class Conv(nn.Module):
    """Of torchvision, with its names, as all here; `window` counts rows, then columns."""

    def __init__(self, channels, width, window=(1, 1), stride=1, padding=(0, 0)):
        super().__init__()
        self.conv = nn.Conv2d(channels, width // SHRINK, window, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(width // SHRINK, eps=1e-3)

    def forward(self, x):
        return F.relu(self.bn(self.conv(x)))


class Mixed(nn.Module):
    """Branches by name: names and settings of their convolutions, one after the other; `pool` comes before the last."""

    def __init__(self, channels, branches, pool):
        super().__init__()
        self.branches, self.pool = branches, pool
        for branch in branches:
            before = channels
            for name, width, *settings in branch:
                if not hasattr(self, name):
                    self.add_module(name, Conv(before, width, *settings))
                before = width // SHRINK

    def forward(self, x):
        parts = []
        for branch in self.branches:
            y = self.pool(x) if branch == [] or branch[0][0] == "branch_pool" else x
            for name, *_ in branch:
                y = getattr(self, name)(y)
            parts.append(y)
        return torch.cat(parts, 1)


def mean(x):
    return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


def maximum(x):
    return F.max_pool2d(x, 3, 1, 1)


def halved(x):
    return F.max_pool2d(x, 3, 2)


THREE, ROW, COLUMN = ((3, 3), 1, (1, 1)), ((1, 7), 1, (0, 3)), ((7, 1), 1, (3, 0))
HALF = ((3, 3), 2)


def a(channels, pooled):
    double = [("branch3x3dbl_1", 64), ("branch3x3dbl_2", 96, *THREE), ("branch3x3dbl_3", 96, *THREE)]
    five = [("branch5x5_1", 48), ("branch5x5_2", 64, (5, 5), 1, (2, 2))]
    return Mixed(channels, [[("branch1x1", 64)], five, double, [("branch_pool", pooled)]], mean)


def b(channels):
    double = [("branch3x3dbl_1", 64), ("branch3x3dbl_2", 96, *THREE), ("branch3x3dbl_3", 96, *HALF)]
    return Mixed(channels, [[("branch3x3", 384, *HALF)], double, []], halved)


def c(channels, inner):
    seven = [("branch7x7_1", inner), ("branch7x7_2", inner, *ROW), ("branch7x7_3", 192, *COLUMN)]
    double = [("branch7x7dbl_1", inner), ("branch7x7dbl_2", inner, *COLUMN), ("branch7x7dbl_3", inner, *ROW)]
    double += [("branch7x7dbl_4", inner, *COLUMN), ("branch7x7dbl_5", 192, *ROW)]
    return Mixed(channels, [[("branch1x1", 192)], seven, double, [("branch_pool", 192)]], mean)


def d(channels):
    seven = [("branch7x7x3_1", 192), ("branch7x7x3_2", 192, *ROW), ("branch7x7x3_3", 192, *COLUMN)]
    three = [("branch3x3_1", 192), ("branch3x3_2", 320, *HALF)]
    return Mixed(channels, [three, [*seven, ("branch7x7x3_4", 192, *HALF)], []], halved)


def e(channels, pool):
    row, column = ((1, 3), 1, (0, 1)), ((3, 1), 1, (1, 0))
    three, double = [("branch3x3_1", 384)], [("branch3x3dbl_1", 448), ("branch3x3dbl_2", 384, *THREE)]
    branches = [[("branch1x1", 320)], [*three, ("branch3x3_2a", 384, *row)], [*three, ("branch3x3_2b", 384, *column)]]
    branches += [[*double, ("branch3x3dbl_3a", 384, *row)], [*double, ("branch3x3dbl_3b", 384, *column)]]
    return Mixed(channels, [*branches, [("branch_pool", 192)]], pool)


class InceptionV3(nn.Module):
    def __init__(self):
        super().__init__()
        w = SHRINK
        self.Conv2d_1a_3x3, self.Conv2d_2a_3x3 = Conv(3, 32, (3, 3), 2), Conv(32 // w, 32, (3, 3))
        self.Conv2d_2b_3x3, self.Conv2d_3b_1x1 = Conv(32 // w, 64, *THREE), Conv(64 // w, 80)
        self.Conv2d_4a_3x3 = Conv(80 // w, 192, (3, 3))
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = a(192 // w, 32), a(256 // w, 64), a(288 // w, 64)
        self.Mixed_6a, self.Mixed_6b, self.Mixed_6c = b(288 // w), c(768 // w, 128), c(768 // w, 160)
        self.Mixed_6d, self.Mixed_6e = c(768 // w, 160), c(768 // w, 192)
        self.Mixed_7a, self.Mixed_7b, self.Mixed_7c = d(768 // w), e(1280 // w, mean), e(2048 // w, maximum)
        self.fc = nn.Linear(2048 // w, 1008)

    def forward(self, x):
        x = halved(self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x))))
        x = halved(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)))
        for name, block in self.named_children():
            x = block(x) if name.startswith("Mixed") else x
        return x.mean((2, 3))


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A network, and the folder that its file was converted to."""
    root, net = tmp_path_factory.mktemp("inception"), tiny.randomised(InceptionV3(), 0)
    generator = torch.Generator().manual_seed(1)
    for param in net.parameters():
        if param.ndim == 4:  # so that what images differ by is not lost in the biases of twenty layers
            param.data.mul_(1.6)
    for name, buffer in net.named_buffers():
        if name.endswith("running_mean"):
            buffer.copy_(0.2 * torch.randn(buffer.shape, generator=generator))
        elif name.endswith("running_var"):
            buffer.copy_(0.2 + torch.rand(buffer.shape, generator=generator))
    torch.save(net.state_dict(), root / "inception.pth")
    with pytest.MonkeyPatch.context() as patch:
        config = {**sources.SOURCES["inception"].config, "shrink": SHRINK}
        patch.setitem(sources.SOURCES, "inception", dataclasses.replace(sources.SOURCES["inception"], config=config))
        conversion.convert("inception", [root / "inception.pth"], root / "folder")
        yield net, root / "folder"


def by_clean_fid(image):
    """As its code resizes: each channel as an image of floats, by Pillow."""
    channels = [Image.fromarray(image[..., i].astype(np.float32)) for i in range(3)]
    resized = [np.asarray(part.resize((299, 299), Image.Resampling.BICUBIC)).clip(0, 255) for part in channels]
    return (np.stack(resized, -1) - 128) / 128


def by_pytorch_fid(image):
    pixels = torch.tensor(image, dtype=torch.float32).permute(2, 0, 1)[None] / 255
    resized = F.interpolate(pixels, size=(299, 299), mode="bilinear", align_corners=False)
    return (2 * resized - 1)[0].permute(1, 2, 0).numpy()


def by_tensorflow(image):
    """Between a pixel and the next, from the corner: torch-fidelity's words for what TensorFlow 1 does."""
    x = image.astype(np.float32)
    for axis in (0, 1):
        place = np.arange(299, dtype=np.float32) * np.float32(x.shape[axis] / 299)
        low = place.astype(int)
        high = np.minimum(low + 1, x.shape[axis] - 1)
        share = (place - low).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        x = np.take(x, low, axis) + (np.take(x, high, axis) - np.take(x, low, axis)) * share
    return (x - 128) / 128


RULES = {"clean": by_clean_fid, "legacy_pytorch": by_pytorch_fid, "legacy_tensorflow": by_tensorflow}


def some_images(height=320, width=23):
    """Of the whole range, so that bicubic overshoots it; taller than the network's input, and narrower."""
    images = np.random.default_rng(0).integers(0, 2, (3, height, width, 3), dtype=np.uint8) * 255
    images[1, : height // 2], images[2, :, ::2] = 0, 255
    return images


def test_features_are_pytorchs_under_every_rule(published):
    net, folder = published
    images, found = some_images(), {}
    for rule, by_others in RULES.items():
        features = inception.read_inception(folder, rule, batch=2)
        assert (features.name, features.resize) == (INCEPTION, inception.RESIZES[rule].says)
        ours = found[rule] = features.call(images)
        inputs = np.stack([by_others(image) for image in images])
        # PyTorch and TensorFlow compute places in float32
        np.testing.assert_allclose(inception._pixels(images, rule), inputs, atol=1e-4)
        with torch.no_grad():
            theirs = net(torch.tensor(inputs, dtype=torch.float32).permute(0, 3, 1, 2)).numpy()
        np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max(), rtol=0)
    # which is no mean of images that look alike to the network, nor one rule under three names
    assert np.abs(ours[0] - ours[1]).max() > 0.05 * np.abs(ours).max()
    assert all(np.abs(found["clean"] - found[rule]).max() > 1e-2 * np.abs(ours).max() for rule in list(RULES)[1:])
    assert features.call(images[:0]).shape == (0, 2048 // SHRINK)
    # grey images are grey colours, and the third image does not depend on what filled up its batch
    grey = features.call(images[2:, :, :, :1])
    np.testing.assert_array_equal(grey, features.call(np.repeat(images[2:, :, :, :1], 3, -1)))


@pytest.mark.filterwarnings("ignore:.*TorchScript")  # of torch.load, whose error is what counts
def test_files_that_are_not_this_network(published, tmp_path):
    state = torch.load(published[1].parent / "inception.pth", weights_only=True)
    torchvisions = {**state, "fc.weight": torch.zeros(1000, 2048 // SHRINK)}
    for content, said in (
        (torchvisions, r"fc\.weight \[1008, \.\.\.\], got \[1000, 128\]: torchvision's own"),
        (
            {name: tensor for name, tensor in state.items() if name != "Mixed_7c.branch_pool.bn.weight"},
            "1 missing tensor",
        ),
        ({**state, "AuxLogits.fc.weight": torch.zeros(1)}, r"1 unused tensors \(AuxLogits\.fc\.weight\)"),
    ):
        torch.save(content, tmp_path / "other.pth")
        with pytest.raises(ValueError, match=said):
            conversion.convert("inception", [tmp_path / "other.pth"], tmp_path / "out")
    torch.jit.save(torch.jit.script(nn.ReLU()), tmp_path / "program.pt")
    with pytest.raises(ValueError, match=r"a program of TorchScript, such as inception-2015-12-05\.pt"):
        conversion.convert("inception", [tmp_path / "program.pt"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_read(published, tmp_path):
    with pytest.raises(ValueError, match=r"(?s)launch\.convert_metric inception FILE.*pt_inception-2015-12-05"):
        inception.read_inception(tmp_path)
    with pytest.raises(ValueError, match="rule out of clean, legacy_pytorch, legacy_tensorflow, got 'bicubic'"):
        inception.read_inception(published[1], "bicubic")
    features = inception.read_inception(published[1])
    for images in (np.zeros((2, 8, 8, 3), np.float32), np.zeros((8, 8, 3), np.uint8), np.zeros((2, 8, 8, 4), np.uint8)):
        with pytest.raises(ValueError, match="images of 8 bits"):
            features.call(images)


def test_fid_of_folders_by_the_command_is_pytorch_fids(published, tmp_path, monkeypatch, capfd):
    """`launch.score`, whose other tests have functions for networks, against pytorch-fid's arithmetic."""
    net, weights = published
    rng, found = np.random.default_rng(0), []
    for name, bright in (("made", 1), ("real", 2)):
        images = rng.integers(0, 256, (6, 320, 23, 3), np.uint8) // bright
        (tmp_path / name).mkdir()
        for i, image in enumerate(images):
            Image.fromarray(image).save(tmp_path / name / f"{i}.png")
        inputs = torch.tensor(np.stack([by_pytorch_fid(image) for image in images]))
        with torch.no_grad():
            features = net(inputs.permute(0, 3, 1, 2)).double().numpy()
        found += [(features.mean(0), np.cov(features, rowvar=False))]
    command = mains.command(monkeypatch, capfd)
    asked = (f"--reference={tmp_path / 'real'}", f"--metrics=fid={weights}", "--resize=legacy_pytorch", "--batch=2")
    code, out, err = command("score", tmp_path / "made", *asked, f"--out={tmp_path / 'out'}")
    assert code == 0, err
    (m1, s1), (m2, s2) = found
    cross = np.sqrt(np.linalg.eigvals(s1 @ s2).real.clip(0)).sum()
    wanted = ((m1 - m2) ** 2).sum() + np.trace(s1) + np.trace(s2) - 2 * cross
    line = next(line for line in out.splitlines() if line.startswith("| FID (legacy pytorch-fid) |"))
    assert float(line.split("|")[2].split()[0]) == pytest.approx(wanted, rel=1e-3)
