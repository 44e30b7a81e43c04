"""PyTorch's names and layouts: both ways, stacked layers, legacy names, and what does not fit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen as nn

from asyncpatch_jax.pretrained.folders import names


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        h = nn.Dense(6, name="mlp.0")(nn.LayerNorm(name="norm1")(x))
        return x + nn.Dense(4, name="mlp.2")(nn.relu(h)), None


class Net(nn.Module):
    """Every sort of leaf: embedding, convolutions of 1 and 2 axes, norm, linear, stacked linear, a parameter alone."""

    @nn.compact
    def __call__(self, x, ids):
        x = nn.Conv(4, (3, 1), name="conv_in")(x)
        x = x + nn.Embed(7, 4, name="embeddings.token")(ids)[:, None, None]
        x = x + nn.Conv(4, (3,), name="line")(x[:, 0])[:, None]
        x = x + self.param("pos_embed", nn.initializers.normal(), (1, 5, 4))[:, None]
        stack = nn.scan(Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
        return stack(name="blocks.1:4")(x, None)[0]


class TorchLayer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1 = torch.nn.LayerNorm(4, eps=1e-6)
        self.mlp = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 4))

    def forward(self, x):
        return x + self.mlp(self.norm1(x))


class TorchNet(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv_in = torch.nn.Conv2d(3, 4, (3, 1), padding="same")
        self.embeddings = torch.nn.ModuleDict({"token": torch.nn.Embedding(7, 4)})
        self.line = torch.nn.Conv1d(4, 4, 3, padding="same")
        self.pos_embed = torch.nn.Parameter(torch.randn(1, 5, 4))
        self.blocks = torch.nn.ModuleDict({str(i): TorchLayer() for i in (1, 2, 3)})

    def forward(self, x, ids):
        x = self.conv_in(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        x = x + self.embeddings["token"](ids)[:, None, None]
        x = x + self.line(x[:, 0].transpose(1, 2)).transpose(1, 2)[:, None]
        x = x + self.pos_embed[:, None]
        for block in self.blocks.values():
            x = block(x)
        return x


def _shapes():
    x, ids = jnp.zeros((2, 6, 5, 3)), jnp.zeros((2,), int)
    return jax.eval_shape(Net().init, jax.random.key(0), x, ids)["params"]


@pytest.fixture(name="pair")
def _pair():
    net = TorchNet()
    generator = torch.Generator().manual_seed(0)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, generator=generator)
    return net, {key: value.detach().numpy() for key, value in net.state_dict().items()}


def test_the_state_dict_computes_the_same(pair):
    net, state = pair
    x, ids = np.random.default_rng(0).normal(size=(2, 6, 5, 3)).astype(np.float32), np.array([3, 6])
    out = Net().apply({"params": names.from_torch(_shapes(), state)}, x, ids)
    expected = net(torch.from_numpy(x), torch.from_numpy(ids)).detach().numpy()
    np.testing.assert_allclose(out, expected, atol=2e-5, rtol=1e-5)


def test_names_and_shapes_are_the_state_dicts(pair):
    slots = names.torch_tensors(_shapes())
    assert {key: slot.shape for key, slot in slots.items()} == {key: value.shape for key, value in pair[1].items()}


def test_there_and_back_is_exact(pair):
    back = names.to_torch(names.from_torch(_shapes(), pair[1]))
    assert set(back) == set(pair[1])
    for key, value in pair[1].items():
        assert np.array_equal(back[key], value)


def test_a_state_dict_of_another_module_is_named(pair):
    state = dict(pair[1])
    del state["blocks.2.mlp.0.weight"]
    state["line.bias"] = np.zeros(3, np.float32)
    state["lora.alpha"] = np.zeros(3, np.float32)
    with pytest.raises(ValueError, match="expected exactly") as error:
        names.from_torch(_shapes(), state)
    for part in (
        "1 missing tensors (blocks.2.mlp.0.weight)",
        "1 unused tensors (lora.alpha)",
        "line.bias: [4] expected, [3] found",
    ):
        assert part in str(error.value)


def test_of_many_names_the_first_are_shown(pair):
    with pytest.raises(ValueError, match=rf"{len(pair[1])} missing tensors \(.*, \.\.\.\)"):
        names.from_torch(_shapes(), {})


def _leaf(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def test_clip_with_and_without_its_prefix():
    bare = {"final_layer_norm": {"scale": _leaf(2)}, "text_projection": {"kernel": _leaf(2, 3)}}
    weights = {"final_layer_norm.weight": np.arange(2.0), "text_projection.weight": np.ones((3, 2))}
    old = {f"text_model.{key}" if "norm" in key else key: value for key, value in weights.items()}
    old["text_model.embeddings.position_ids"] = np.arange(4)
    for state in (weights, old):
        assert np.array_equal(names.from_torch(bare, state)["final_layer_norm"]["scale"], np.arange(2.0))
    prefixed = {
        "text_model": {"final_layer_norm": bare["final_layer_norm"]},
        "text_projection": bare["text_projection"],
    }
    for state in (weights, old):
        params = names.from_torch(prefixed, state)
        assert np.array_equal(params["text_model"]["final_layer_norm"]["scale"], np.arange(2.0))


@pytest.mark.parametrize("pixel", [(), (1, 1)])
def test_attention_of_an_old_vae(pixel):
    attention = "mid_block.attentions.0"
    today = ("to_q", "to_k", "to_v", "to_out.0")
    shapes = {"decoder": {attention: {name: {"kernel": _leaf(2, 3), "bias": _leaf(3)} for name in today}}}
    state = {}
    for i, name in enumerate(("query", "key", "value", "proj_attn")):
        state[f"decoder.{attention}.{name}.weight"] = np.arange(6.0).reshape(3, 2, *pixel) + 10 * i
        state[f"decoder.{attention}.{name}.bias"] = np.full(3, float(i))
    params = names.from_torch(shapes, state)["decoder"][attention]
    for i, name in enumerate(today):
        assert np.array_equal(params[name]["kernel"], np.arange(6.0).reshape(3, 2).T + 10 * i)
        assert np.array_equal(params[name]["bias"], np.full(3, float(i)))


def test_tokens_of_t5_under_either_name_or_both():
    shared, tied = "shared.weight", "encoder.embed_tokens.weight"
    table = np.arange(6.0).reshape(3, 2)
    for keys in ((shared,), (tied,), (shared, tied)):
        state = dict.fromkeys(keys, table)
        assert np.array_equal(
            names.from_torch({"shared": {"embedding": _leaf(3, 2)}}, state)["shared"]["embedding"], table
        )
        ours = {"encoder": {"embed_tokens": {"embedding": _leaf(3, 2)}}}
        assert np.array_equal(names.from_torch(ours, state)["encoder"]["embed_tokens"]["embedding"], table)


def test_one_tensor_under_two_names_is_an_error():
    state = {"norm.weight": np.ones(2), "text_model.norm.weight": np.ones(2)}
    with pytest.raises(ValueError, match=r"1 tensors under two names \(text_model.norm.weight and norm.weight\)"):
        names.from_torch({"norm": {"scale": _leaf(2)}}, state)


def test_two_parameters_of_one_name_are_an_error():
    with pytest.raises(ValueError, match=r"expected one parameter for blocks.1.weight"):
        names.torch_tensors({"blocks.0:2": {"scale": _leaf(2, 3)}, "blocks.1": {"scale": _leaf(3)}})


def test_a_stack_has_the_layers_of_its_name():
    with pytest.raises(ValueError, match="to stack 3 layers"):
        names.torch_tensors({"blocks.0:3": {"scale": _leaf(2, 3)}})
