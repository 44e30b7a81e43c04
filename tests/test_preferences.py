"""Rewards of public networks: published files of tiny random networks through conversion, against PyTorch."""

import dataclasses
import itertools
import json
import re
import shutil
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from torch import nn

from asyncpatch_jax.metrics import REWARDS, conversion, read_reward
from asyncpatch_jax.metrics.pixels import MEAN, STD
from asyncpatch_jax.pretrained.folders import families, names
from tests import mains, tiny
from tests.test_pixels import cut, filled

SIZE, PATCH, WIDTH, LAYERS, HEADS, SHARED, POSITIONS = 20, 5, 16, 2, 2, 8, 24
_FULL = {name: source.config for name, source in conversion.SOURCES.items()}  # before a test makes them small
TEXTS = ["a red dog, and two dogs", "a cat", "an apple on the street"]


def some_images(size=(SIZE, SIZE)):
    return np.random.default_rng(0).integers(64, 192, (3, *size, 3), dtype=np.uint8)


def normalised(squares, dtype=torch.float32):
    """Squares, 0 ... 255, as PyTorch's networks read them."""
    pixels = (torch.tensor(np.stack(squares), dtype=torch.float64) / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    return pixels.permute(0, 3, 1, 2).to(dtype)


class Block(nn.Module):
    """Of OpenCLIP, with its names, as all until OpenCLIP itself."""

    def __init__(self):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attn = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.mlp = nn.Sequential()
        self.mlp.add_module("c_fc", nn.Linear(WIDTH, 2 * WIDTH))
        self.mlp.add_module("gelu", nn.GELU())
        self.mlp.add_module("c_proj", nn.Linear(2 * WIDTH, WIDTH))

    def forward(self, x, mask=None):
        h = self.ln_1(x)
        x = x + self.attn(h, h, h, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp(self.ln_2(x))


class Tower(nn.Module):
    def __init__(self):
        super().__init__()
        self.resblocks = nn.ModuleList(Block() for _ in range(LAYERS))

    def forward(self, x, mask=None):
        for block in self.resblocks:
            x = block(x, mask)
        return x


class Visual(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, WIDTH, PATCH, PATCH, bias=False)
        self.class_embedding = nn.Parameter(torch.zeros(WIDTH))
        self.positional_embedding = nn.Parameter(torch.zeros((SIZE // PATCH) ** 2 + 1, WIDTH))
        self.ln_pre, self.transformer, self.ln_post = nn.LayerNorm(WIDTH), Tower(), nn.LayerNorm(WIDTH)
        self.proj = nn.Parameter(torch.zeros(WIDTH, SHARED))

    def forward(self, pixels):
        x = self.conv1(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], 1) + self.positional_embedding
        return self.ln_post(self.transformer(self.ln_pre(x))[:, 0]) @ self.proj


class OpenCLIP(nn.Module):
    def __init__(self, vocab):
        super().__init__()
        self.visual, self.transformer, self.ln_final = Visual(), Tower(), nn.LayerNorm(WIDTH)
        self.token_embedding = nn.Embedding(vocab, WIDTH)
        self.positional_embedding = nn.Parameter(torch.zeros(POSITIONS, WIDTH))
        self.text_projection = nn.Parameter(torch.zeros(WIDTH, SHARED))
        self.logit_scale = nn.Parameter(torch.zeros(()))

    def forward(self, ids, pixels):
        x = self.token_embedding(ids) + self.positional_embedding[: ids.shape[1]]
        mask = torch.full((ids.shape[1],) * 2, -torch.inf, dtype=x.dtype).triu(1)
        x = self.ln_final(self.transformer(x, mask))
        texts = x[torch.arange(len(ids)), ids.argmax(-1)] @ self.text_projection
        return nn.functional.cosine_similarity(texts, self.visual(pixels))


def head(width):
    """Five linear layers; the file's numbers count the dropouts between them."""
    sizes = [width, 12, 7, 6, 4, 1]
    layers = []
    for i, (before, after) in enumerate(itertools.pairwise(sizes)):
        layers += [nn.Linear(before, after), *([nn.Dropout(0.2)] if i < 3 else [])]
    return nn.Sequential(*layers)


_PUBLISHED = (
    (r"^text\.", "blip.text_encoder."),
    (r"^mlp\.", "mlp.layers."),
    (r"^vision\.", "blip.visual_encoder."),
    (r"embeddings\.class_embedding", "cls_token"),
    (r"embeddings\.position_embedding$", "pos_embed"),
    (r"embeddings\.patch_embedding", "patch_embed.proj"),
    (r"encoder\.layers\.", "blocks."),
    (r"self_attn\.projection", "attn.proj"),
    (r"self_attn\.qkv", "attn.qkv"),
    (r"layer_norm(\d)", r"norm\1"),
    (r"post_layernorm", "norm"),
)


class ImageReward(nn.Module):
    """BLIP of transformers, with ImageReward's head."""

    def __init__(self, vocab):
        super().__init__()
        shared = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
        vision = {**shared, "hidden_size": WIDTH, "image_size": SIZE, "patch_size": PATCH, "layer_norm_eps": 1e-6}
        text = {**shared, "hidden_size": 12, "encoder_hidden_size": WIDTH, "vocab_size": vocab}
        text |= {"max_position_embeddings": 40, "layer_norm_eps": 1e-12, "is_decoder": True, "pad_token_id": 0}
        self.vision = transformers.BlipVisionModel(transformers.BlipVisionConfig(**vision))
        text_config = transformers.BlipTextConfig(**text)
        self.text = transformers.models.blip.modeling_blip_text.BlipTextModel(text_config, add_pooling_layer=False)
        self.mlp = head(12)

    def forward(self, ids, mask, pixels):
        image = self.vision(pixels).last_hidden_state
        x = self.text(ids, attention_mask=mask, encoder_hidden_states=image).last_hidden_state[:, 0]
        return ((self.mlp(x) - 0.16717362830052426) / 1.0333394966054072)[:, 0]

    def published(self):
        """Its tensors as ImageReward.pt names them, with those that nobody reads."""
        state = {}
        for name, tensor in self.state_dict().items():
            for pattern, theirs in _PUBLISHED:
                name = re.sub(pattern, theirs, name)
            state[name] = tensor
        state["blip.text_encoder.embeddings.position_ids"] = torch.arange(40)[None]
        state["blip.vision_proj.weight"] = torch.zeros(4, WIDTH)
        state["blip.text_proj.bias"] = torch.zeros(4)
        return state


CLIP = {
    "hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
    "projection_dim": SHARED, "hidden_act": "gelu",
}  # fmt: skip
VISION = {**CLIP, "image_size": SIZE, "patch_size": PATCH}


def clip_config(vocab):
    text = {**CLIP, "vocab_size": vocab, "max_position_embeddings": POSITIONS, "eos_token_id": vocab - 1}
    return {"architectures": ["CLIPModel"], "projection_dim": SHARED, "text_config": text, "vision_config": VISION}


class Published:
    """Published files of tiny networks, the networks, and the sources with their sizes."""

    def __init__(self, root):
        self.root = root
        self.clip, self.bert = root / "clip", root / "bert"
        vocab, words = tiny.clip_tokenizer(self.clip, length=POSITIONS), tiny.bert_tokenizer(self.bert)
        config = clip_config(vocab)
        text = {**config["text_config"], "bos_token_id": vocab - 2}
        settings = transformers.CLIPConfig(text_config=text, vision_config=VISION, projection_dim=SHARED)
        clip = transformers.CLIPModel(settings)
        self.nets = {
            "pick_score": tiny.randomised(clip, 0),  # and the CLIP of the others
            "hps_v2": tiny.randomised(OpenCLIP(vocab), 1),
            "image_reward": tiny.randomised(ImageReward(words), 2),
            "aesthetic": tiny.randomised(head(SHARED), 3),
        }
        blip = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
        text = {**blip, "hidden_size": 12, "vocab_size": words, "max_position_embeddings": 40}
        vision = {**blip, "hidden_size": WIDTH, "image_size": SIZE, "patch_size": PATCH}
        self.configs = {
            "pick_score": config,
            "hps_v2": config,
            "image_reward": {"architectures": ["ImageReward"], "text_config": text, "vision_config": vision},
            "aesthetic": {"architectures": ["AestheticPredictor"], **VISION},
        }
        clip.save_pretrained(root / "transformers")
        torch.save({"epoch": 3, "state_dict": self.nets["hps_v2"].state_dict()}, root / "hps.pt")
        torch.save(self.nets["image_reward"].published(), root / "image_reward.pt")
        layers = {f"layers.{name}": tensor for name, tensor in self.nets["aesthetic"].state_dict().items()}
        torch.save(layers, root / "aesthetic.pth")
        model = root / "transformers" / "model.safetensors"
        self.files = {
            "pick_score": [model],
            "hps_v2": [root / "hps.pt"],
            "image_reward": [root / "image_reward.pt"],
            "aesthetic": [root / "aesthetic.pth", model],
        }
        self.tokenizers = dict.fromkeys(self.files, self.clip) | {"image_reward": self.bert, "aesthetic": None}

    def state(self, name, dtype=np.float64):
        parts = [conversion.read_state(file) for file in self.files[name]]
        return {key: tensor.astype(dtype) for part in parts for key, tensor in part.items()}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    found = Published(tmp_path_factory.mktemp("published"))
    with pytest.MonkeyPatch.context() as patch:
        for name, config in found.configs.items():
            patch.setitem(conversion.SOURCES, name, dataclasses.replace(conversion.SOURCES[name], config=config))
        for name, files in found.files.items():
            conversion.convert(name, files, found.root / name, found.tokenizers[name])
        yield found


def clip_ids(published):
    read = transformers.CLIPTokenizer.from_pretrained(published.clip)
    return torch.tensor(read(TEXTS, padding="max_length", max_length=POSITIONS).input_ids)


def bert_tokens(published, texts=TEXTS):
    read = transformers.BertTokenizer.from_pretrained(published.bert)
    tokens = read(texts, padding="max_length", truncation=True, max_length=35, return_tensors="pt")
    return tokens.input_ids, tokens.attention_mask


def by_pytorch(published, name, squares, dtype=torch.float32):
    """Scores of squares, 0 ... 255, by the published network."""
    net, pixels = published.nets[name].to(dtype), normalised(squares, dtype)
    try:
        with torch.no_grad():
            match name:
                case "pick_score":
                    out = net(clip_ids(published), pixels)
                    return out.logits_per_text.diagonal()
                case "hps_v2":
                    return net(clip_ids(published), pixels)
                case "image_reward":
                    return net(*bert_tokens(published), pixels)
                case "aesthetic":
                    clip = published.nets["pick_score"].to(dtype)
                    vectors = clip.get_image_features(pixels).pooler_output
                    return net(nn.functional.normalize(vectors))[:, 0]
    finally:
        published.nets[name].float(), published.nets["pick_score"].float()


@pytest.mark.parametrize("name", ["pick_score", "hps_v2", "image_reward", "aesthetic"])
def test_scores_are_pytorchs(published, name):
    """Of images that need no resizing, so that no rounding of pixels hides anything."""
    ours = read_reward(name, published.root / name)(some_images(), TEXTS)
    theirs = by_pytorch(published, name, some_images()).numpy()
    np.testing.assert_allclose(ours, theirs, atol=1e-5 * max(1, np.abs(theirs).max()), rtol=0)
    assert ours.std() > 1e-3
    changed = read_reward(name, published.root / name)(some_images(), TEXTS[::-1])
    assert (np.abs(changed - ours).max() > 1e-3) == (name != "aesthetic")


@pytest.mark.parametrize("name", ["hps_v2", "image_reward", "aesthetic"])
def test_networks_are_pytorchs_in_double(published, name):
    with jax.enable_x64(True):
        module, params, config = conversion.component(name, published.state(name))
        module, params = families.module(config, jnp.float64), jax.tree.map(jnp.asarray, params)
        network = jax.jit(lambda *inputs: module.apply({"params": params}, *inputs))
        pixels = jnp.asarray(normalised(some_images(), torch.float64).permute(0, 2, 3, 1))
        match name:
            case "hps_v2":
                texts, images, _ = network(jnp.asarray(clip_ids(published)), pixels)
                ours = (texts * images).sum(1) / (jnp.linalg.norm(texts, axis=1) * jnp.linalg.norm(images, axis=1))
            case "image_reward":
                ids, mask = (jnp.asarray(part) for part in bert_tokens(published))
                ours = network(ids, mask.astype(bool), pixels)
            case "aesthetic":
                ours = network(pixels)
    assert ours.dtype == np.float64
    np.testing.assert_allclose(ours, by_pytorch(published, name, some_images(), torch.float64), atol=1e-9, rtol=0)


@pytest.mark.parametrize(
    ("name", "prepare"),
    [
        ("pick_score", partial(cut, offset=int)),
        ("hps_v2", filled),
        ("image_reward", partial(cut, offset=round)),
        ("aesthetic", partial(cut, offset=round)),
    ],
)
def test_scores_of_images_that_are_resized(published, name, prepare):
    images = some_images((31, 36))  # to 20 x 23, of which the square begins at 1 or at 2
    ours = read_reward(name, published.root / name)(images, TEXTS)
    theirs = by_pytorch(published, name, [prepare(image) for image in images]).numpy()
    np.testing.assert_allclose(ours, theirs, atol=5e-4 * max(1, np.abs(theirs).max()))  # a level of one pixel


def test_clip_score_needs_no_conversion(published, tmp_path):
    folder = shutil.copytree(published.root / "transformers", tmp_path / "clip")
    shutil.copytree(published.clip, folder, dirs_exist_ok=True)
    ours = read_reward("clip_score", folder)(some_images(), TEXTS)
    scale = published.nets["pick_score"].logit_scale.exp().item()
    cosine = by_pytorch(published, "pick_score", some_images()).numpy() / scale
    np.testing.assert_allclose(ours, 2.5 * np.maximum(cosine, 0), atol=1e-5)
    assert ours.max() > 0.01
    assert cosine.min() < -0.01
    np.testing.assert_allclose(read_reward("clip", folder)(some_images(), TEXTS), cosine, atol=1e-5)


def test_long_prompts_are_cut_as_by_the_authors(published):
    long = ["a photo of a horse and a red car " * 6] * 3
    with pytest.warns(UserWarning, match="takes 35 tokens"):
        ours = read_reward("image_reward", published.root / "image_reward")(some_images(), long)
    with torch.no_grad():
        theirs = published.nets["image_reward"](*bert_tokens(published, long), normalised(some_images()))
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_scores_do_not_depend_on_the_batch(published):
    reward = read_reward("image_reward", published.root / "image_reward")
    images, texts = np.concatenate([some_images()] * 12), TEXTS * 12
    scores = reward(images, texts)
    assert scores.shape == (36,)
    np.testing.assert_allclose(scores[33:], reward(images[33:], texts[33:]), atol=1e-5)


@pytest.mark.parametrize("name", sorted(REWARDS))
def test_a_reward_without_weights_says_what_to_provide(name, tmp_path):
    with pytest.raises(ValueError, match="expected a folder") as error:
        read_reward(name, tmp_path / "nothing")
    said = str(error.value)
    if name in ("clip", "clip_score"):
        assert "such as openai/clip-vit-large-patch14" in said
    else:
        assert f"python -m launch.convert_metric {name} FILE..." in said
        assert conversion.SOURCES[name].files in said
        assert ("--tokenizer" in said) == (name != "aesthetic")


def test_folders_of_other_rewards(published, tmp_path):
    with pytest.raises(ValueError, match="expected a folder of hps_v2, got one of pick_score"):
        read_reward("hps_v2", published.root / "pick_score")
    with pytest.raises(ValueError, match="expected a folder of clip_score, got one of hps_v2"):
        read_reward("clip_score", published.root / "hps_v2")
    with pytest.raises(ValueError, match="expected a folder of clip, got one of hps_v2"):
        read_reward("clip", published.root / "hps_v2")
    with pytest.raises(ValueError, match="expected a folder of image_reward, got one of clip_score"):
        read_reward("image_reward", published.root / "transformers")
    with pytest.raises(ValueError, match=r"a reward out of clip, clip_score, .*, got 'hps'"):
        read_reward("hps", published.root / "hps_v2")
    broken = shutil.copytree(published.root / "hps_v2", tmp_path / "broken")
    (broken / "vocab.json").unlink()
    (broken / "merges.txt").unlink()
    with pytest.raises(ValueError, match=r"(?s)merges\.txt.*launch\.convert_metric hps_v2"):
        read_reward("hps_v2", broken)


def test_grey_images_are_grey_colours_and_others_are_refused(published):
    reward = read_reward("aesthetic", published.root / "aesthetic")
    grey = some_images()[..., :1]
    np.testing.assert_array_equal(reward(grey, TEXTS), reward(np.repeat(grey, 3, -1), TEXTS))
    with pytest.raises(ValueError, match=r"or grey ones for the reward aesthetic, got \(.*, 2\)"):
        reward(some_images()[..., :2], TEXTS)
    with pytest.raises(ValueError, match=r"of uint8, 0 \.\.\. 255, got float64"):
        reward(some_images() / 255, TEXTS)


def test_what_is_not_converted(published, tmp_path):
    out, root = tmp_path / "out", published.root
    with pytest.raises(ValueError, match="missing tensors"):
        conversion.convert("pick_score", [root / "hps.pt"], out, published.clip)
    with pytest.raises(ValueError, match=r"the tensors of hps_v2, from HPS_v2_compressed\.pt"):
        conversion.convert("hps_v2", [root / "image_reward.pt"], out, published.clip)
    with pytest.raises(ValueError, match=r"linear layers layers\.0"):
        conversion.convert("aesthetic", published.files["pick_score"], out)
    with pytest.raises(ValueError, match="each tensor in one file, got logit_scale"):
        conversion.convert("pick_score", published.files["pick_score"] * 2, out, published.clip)
    with pytest.raises(ValueError, match="the tokenizer of laion"):
        conversion.convert("hps_v2", published.files["hps_v2"], out)
    with pytest.raises(ValueError, match="expected no tokenizer for aesthetic"):
        conversion.convert("aesthetic", published.files["aesthetic"], out, published.clip)
    with pytest.raises(ValueError, match=r"vocab\.txt"):
        conversion.convert("hps_v2", published.files["hps_v2"], out, root / "transformers")
    with pytest.raises(ValueError, match="a network out of pick_score"):
        conversion.convert("clip_score", published.files["pick_score"], out, published.clip)
    (tmp_path / "text.pt").write_text("a page that says Not Found")
    with pytest.raises(ValueError, match=r"a state dict that PyTorch wrote in .*text\.pt"):
        conversion.convert("hps_v2", [tmp_path / "text.pt"], out, published.clip)
    torch.save({"state_dict": 3}, tmp_path / "number.pt")
    with pytest.raises(ValueError, match="a dict of tensors"):
        conversion.convert("hps_v2", [tmp_path / "number.pt"], out, published.clip)
    assert not out.exists()
    with pytest.raises(ValueError, match="nothing exists yet"):
        conversion.convert("hps_v2", [tmp_path / "none.pt"], root / "hps_v2", published.clip)  # before it reads


def test_the_command(published, tmp_path, monkeypatch, capsys):
    command, out = mains.command(monkeypatch, capsys), tmp_path / "out"
    code, said, _ = command("convert_metric", "aesthetic", *published.files["aesthetic"], f"--out={out}")
    assert code == 0
    assert f"read_reward('aesthetic', '{out}')" in said
    assert json.loads((out / "config.json").read_text())["_reward"] == "aesthetic"
    assert read_reward("aesthetic", out)(some_images(), TEXTS).shape == (3,)
    code, _, said = command("convert_metric", "aesthetic", *published.files["aesthetic"])
    assert code == 1
    assert "expected --out=FOLDER" in said
    code, _, said = command("convert_metric", "aesthetic")
    assert code == 1
    assert "expected NAME FILE... and flags" in said


def test_the_page_s_program(published, tmp_path, monkeypatch):
    page = Path(__file__).parent.parent / "docs" / "rewards.md"
    (program,) = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    shutil.copytree(published.root / "pick_score", tmp_path / "rewards" / "pick_score")
    monkeypatch.chdir(tmp_path)
    program, own = re.subn(r"^images, prompts = .*$", "images, prompts = given", program, flags=re.MULTILINE)
    assert own == 1
    known = {"given": (some_images(), TEXTS)}
    exec(program, known)  # code of this repository's own page
    assert known["total"].shape == (3,)
    assert abs(known["total"].mean()) < 1e-6
    assert known["total"].std() > 0.1


def test_full_sizes_are_the_public_ones():
    """Names and shapes of CLIP ViT-H as transformers has them, and known counts of parameters."""
    settings = conversion.SOURCES["hps_v2.1"].config
    with torch.device("meta"):
        parts = {name: settings[name] for name in ("text_config", "vision_config")}
        large = transformers.CLIPModel(transformers.CLIPConfig(**parts, projection_dim=settings["projection_dim"]))
    theirs = {name: tuple(tensor.shape) for name, tensor in large.state_dict().items()}
    assert names.match(names.torch_tensors(families.shapes(settings)), theirs).problems() == []
    assert counted(settings) == 986_109_441
    assert counted(_FULL["aesthetic"], "clip.") == 303_966_208
    assert counted(_FULL["image_reward"], "visual_encoder.") == 303_301_632


def counted(settings, prefix=""):
    slots = names.torch_tensors(families.shapes(settings))
    return sum(int(np.prod(slot.shape)) for name, slot in slots.items() if name.startswith(prefix))
