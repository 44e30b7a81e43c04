"""Training the localised autoencoder: what is decoded in it is what inpainting decodes.

Each image comes with a mask. The latents of known cells are those of the image with a hole in it, told the mask; those
of the hole are the whole image's, as a sampler would put them there. From both together the decoder, told the mask,
makes the whole image. So the encoder learns to keep known latents where they are whatever was taken away, and the
decoder to leave no seam.

The loss is VQGAN's (Esser et al. 2021, arXiv 2012.09841): the mean absolute difference and a perceptual distance, the
codebook and the commitment, and a hinge loss of a discriminator of patches, weighted so that the last layer feels it as
much as the differences (eq. 7).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Key

from asyncpatch_jax import checks, sharding, timefield
from asyncpatch_jax.models import quantiser
from asyncpatch_jax.models.localised import LocalisedAutoencoder
from asyncpatch_jax.training.step import Metrics, TrainState, ema_decay
from asyncpatch_jax.types import Image

# (parameters, images, originals) in [-1, 1] of three channels -> [b]
Perceptual = Callable[[Any, jax.Array, jax.Array], jax.Array]

LARGEST = 1e4  # that the adversarial loss is ever weighted with, before its own weight
_LEAST = 1e-4  # of its gradient


@dataclass(frozen=True)
class Objective:
    """What an autoencoder learns for.

    Attributes:
        perceptual: weight of the perceptual distance, against 1 of the mean absolute difference.
        codebook: weight of what pulls codes to latents; of no account with `means`.
        commitment: weight of what pulls latents to their codes.
        adversarial: weight of the discriminator's loss, on top of the adaptive one; 0: there is no discriminator.
        start: the step at which it begins.
        means: codes are running means of their latents instead of learning by gradient.
        decay: of these means, and of how much each code is used.
        restart: share of its fair use below which a code begins again; 0: never.

    Raises:
        ValueError: a setting out of range.
    """

    perceptual: float = 1.0
    codebook: float = 1.0
    commitment: float = 0.25
    adversarial: float = 0.75
    start: int = 0
    means: bool = False
    decay: float = 0.99
    restart: float = 0.01

    def __post_init__(self) -> None:
        for name in ("perceptual", "codebook", "commitment", "adversarial"):
            checks.number(name, getattr(self, name), 0)
        checks.whole("start", self.start, 0)
        checks.number("decay", self.decay, 0, below=1)
        checks.number("restart", self.restart, 0, below=1)


def create(params: Any, discriminator: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step; `ema` is the autoencoder's average alone.

    Args:
        discriminator: its parameters, None without one.
    """
    codes, width = params["quantiser"]["codebook"].shape
    learned = {"model": params} if discriminator is None else {"model": params, "discriminator": discriminator}
    return TrainState(
        jnp.zeros((), jnp.int32),
        {**learned, "usage": quantiser.unused(codes, width)._asdict()},
        jax.tree.map(jnp.copy, params),
        {name: optimizer.init(tree) for name, tree in learned.items()},
    )


def mixed(
    model: LocalisedAutoencoder, params: Any, images: Image, mask: Float[Array, "b h w 1"]
) -> tuple[Float[Array, "b _gh _gw z"], Float[Array, "b _gh _gw z"], Bool[Array, "b _gh _gw 1"]]:
    """Latents of whole images, the same with those of known cells as they are when the hole is not seen, and the hole.

    A cell with any pixel of the hole is the hole's.
    """
    encode = partial(model.apply, {"params": params}, method="encode")
    whole: Any = encode(images)
    masked: Any = encode(images, mask)
    hole = timefield.unknown(mask, timefield.grid_of(whole)) > 0.5
    return whole, jnp.where(hole, whole, masked), hole


def moved_beyond(
    whole: Float[Array, "b gh gw z"], mixed: Float[Array, "b gh gw z"], hole: Bool[Array, "b gh gw 1"]
) -> Float[Array, ""]:
    """How far latents that are two cells or more away from the hole move, as `metrics.leakage` says it; 0 of none."""
    near = nn.max_pool(hole.astype(jnp.float32), (3, 3), (1, 1), "SAME")
    counts = near.max((1, 2, 3), keepdims=True) * (1 - near)  # of an image without a hole no cell is near one
    spread = jnp.maximum(whole.std((0, 1, 2), keepdims=True), 1e-12)
    moved = jnp.mean(((mixed - whole) / spread) ** 2, -1, keepdims=True)
    return jnp.sqrt(jnp.sum(moved * counts) / jnp.maximum(counts.sum(), 1))


def hinge(real: Float[Array, "..."], fake: Float[Array, "..."]) -> Float[Array, ""]:
    """The discriminator's loss of its logits (Lim & Ye 2017, arXiv 1705.02894): real ones above 1, others below -1."""
    return 0.5 * (jnp.mean(nn.relu(1 - real)) + jnp.mean(nn.relu(1 + fake)))


def adaptive(of_image: Float[Array, "..."], of_discriminator: Float[Array, "..."]) -> Float[Array, ""]:
    """The weight at which both losses have gradients of one size at the last layer's kernel."""
    norm = jnp.linalg.norm
    weight = norm(of_image.reshape(-1)) / (norm(of_discriminator.reshape(-1)) + _LEAST)
    return jnp.minimum(weight, LARGEST)


@dataclass(frozen=True)
class Step:
    """One training step as a pure function `(state, frozen, batch, key) -> (state, metrics)`; see `jit_step`.

    A step whose losses or gradients are not finite is refused on the device, as in `step.train_step`.

    Attributes:
        model: the autoencoder.
        discriminator: None without one.
        optimizer: of both.
        ema: decay of the autoencoder's average, warmed up by `step.ema_decay`.
        perceptual: with the parameters `frozen`; None for none.
    """

    model: LocalisedAutoencoder
    discriminator: nn.Module | None
    objective: Objective
    optimizer: optax.GradientTransformation
    ema: float
    perceptual: Perceptual | None = None

    def __call__(
        self, state: TrainState, frozen: Any, batch: dict[str, jax.Array], key: Key[Array, ""]
    ) -> tuple[TrainState, Metrics]:
        """
        Args:
            batch: "image" [b, h, w, c] in [-1, 1] and "mask" [b, h, w, 1], 1 in the hole.
            key: the run's seed, the same at every step.
        """
        images, mask = batch["image"], batch["mask"]
        params, active = state.params, (state.step >= self.objective.start).astype(jnp.float32)
        (features, _), back, coded = jax.vjp(
            partial(self._coded, images=images, mask=mask), params["model"], has_aux=True
        )
        made, to_features = jax.vjp(self._last, params["model"]["out"], features)
        (_, losses), of_image = jax.value_and_grad(self._differences, has_aux=True)(made, frozen, images)
        # linear in what comes back: both losses' gradients at the last layer, each once
        out, towards = to_features(of_image)
        grads, metrics = {}, {**losses, **coded["metrics"], **_apart(made, images, mask)}
        if self.discriminator is not None:
            fooled, of_discriminator = jax.value_and_grad(self._fooled)(made, params["discriminator"])
            other_out, other_towards = to_features(of_discriminator)
            weight = adaptive(out["kernel"], other_out["kernel"])
            share = active * self.objective.adversarial * weight
            out, towards = jax.tree.map(
                lambda a, b: a + share.astype(b.dtype) * b, (out, towards), (other_out, other_towards)
            )
            loss, grads["discriminator"] = jax.value_and_grad(self._judged)(params["discriminator"], images, made)
            grads["discriminator"] = jax.tree.map(lambda g: active * g, grads["discriminator"])
            metrics |= {"fooled": fooled, "adaptive_weight": weight, "discriminator_loss": loss}
        (through,) = back((towards, jnp.ones(())))
        grads["model"] = {**through, "out": jax.tree.map(jnp.add, through["out"], out)}
        metrics["loss"] = sum((weight * metrics[name] for name, weight in self._weights().items()), start=jnp.zeros(()))
        return self._moved(state, grads, coded, metrics, key)

    def _weights(self) -> dict[str, float]:
        objective = self.objective
        found = {"difference": 1.0, "commitment": objective.commitment}
        if not objective.means:
            found["codebook"] = objective.codebook
        if self.perceptual is not None:
            found["perceptual"] = objective.perceptual
        return found

    def _coded(self, params: Any, images: Image, mask: jax.Array) -> Any:
        """Features and the codebook's losses, which are differentiated; latents and codes, which are not."""
        model = self.model
        params = sharding.gather(params, model.logical_axes(params), model.dtype)
        whole, latents, hole = mixed(model, params, images, mask)
        found: Any = model.apply({"params": params}, latents, method="quantise")
        features = model.apply({"params": params}, found.latents, mask, method="features")
        losses = {"codebook": found.codebook, "commitment": found.commitment}
        weights = self._weights()
        share, perplexity = quantiser.used(found.index, model.codes)
        metrics = {**losses, "codes_used": share, "perplexity": perplexity}
        metrics["leakage"] = moved_beyond(whole, latents, hole)
        total = sum((weights[name] * loss for name, loss in losses.items() if name in weights), start=jnp.zeros(()))
        return (features, total), {"latents": latents, "index": found.index, "metrics": metrics}

    def _last(self, out: Any, features: jax.Array) -> Any:
        return self.model.apply({"params": {"out": out}}, features, method="last")

    def _differences(self, made: Image, frozen: Any, images: Image) -> tuple[Float[Array, ""], Metrics]:
        metrics = {"difference": jnp.mean(jnp.abs(made - images))}
        if self.perceptual is not None:
            pair = (jnp.broadcast_to(x, (*x.shape[:3], 3)) for x in (made, images))
            metrics["perceptual"] = jnp.mean(self.perceptual(frozen, *pair))
        weights = self._weights()
        return sum((weights[name] * value for name, value in metrics.items()), start=jnp.zeros(())), metrics

    def _fooled(self, made: Image, params: Any) -> Any:
        return -jnp.mean(self._logits(params, made))

    def _judged(self, params: Any, images: Image, made: Image) -> Float[Array, ""]:
        return hinge(self._logits(params, images), self._logits(params, jax.lax.stop_gradient(made)))

    def _logits(self, params: Any, images: Image) -> Any:
        if self.discriminator is None:
            raise ValueError("expected a discriminator, got none")
        return self.discriminator.apply({"params": params}, images)

    def _moved(
        self, state: TrainState, grads: dict[str, Any], coded: dict[str, Any], metrics: Metrics, key: Key[Array, ""]
    ) -> tuple[TrainState, Metrics]:
        """The next state, and whether it was taken."""
        params, opt_state = dict(state.params), dict(state.opt_state)
        for name, grad in grads.items():
            updates, opt_state[name] = self.optimizer.update(grad, state.opt_state[name], state.params[name])
            params[name] = optax.apply_updates(state.params[name], updates)
        average = self._averaged(state, params, coded, key)
        metrics["grad_norm"] = optax.global_norm(grads["model"])
        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(optax.global_norm(grads))
        fresh, old = (params, average, opt_state), (state.params, state.ema, state.opt_state)
        params, average, opt_state = jax.tree.map(lambda a, b: jnp.where(finite, a, b), fresh, old)
        metrics["finite"] = finite.astype(jnp.float32)
        return TrainState(state.step + 1, params, average, opt_state), metrics

    def _averaged(self, state: TrainState, params: dict[str, Any], coded: dict[str, Any], key: Key[Array, ""]) -> Any:
        """Renew the codebook in `params`; the autoencoder's average, whose codes begin again with the codebook's."""
        objective = self.objective
        codebook, usage, again = quantiser.renewed(
            params["model"]["quantiser"]["codebook"],
            quantiser.Usage(**state.params["usage"]),
            coded["latents"],
            coded["index"],
            jax.random.fold_in(key, state.step),
            decay=objective.decay,
            mean=objective.means,
            restart=objective.restart,
        )
        params["model"] = {**params["model"], "quantiser": {"codebook": codebook}}
        params["usage"] = usage._asdict()
        decay = ema_decay(self.ema, state.step)
        average = jax.tree.map(lambda a, b: a + (1.0 - decay) * (b - a), state.ema, params["model"])
        kept = jnp.where(again[:, None], codebook, average["quantiser"]["codebook"])
        return {**average, "quantiser": {"codebook": kept}}


def _apart(made: Image, images: Image, mask: Float[Array, "b h w 1"]) -> Metrics:
    """Mean squared differences of what is known and of what the hole had; 0 where there is none."""
    squares, hole = (made - images) ** 2, (mask > 0.5).astype(jnp.float32)
    squares = squares.mean(-1, keepdims=True)
    return {
        name: jnp.sum(squares * where) / jnp.maximum(where.sum(), 1)
        for name, where in (("squared_known", 1 - hole), ("squared_hole", hole))
    }


def jit_step(step: Step, mesh: jax.sharding.Mesh, state: Any) -> Callable[..., tuple[TrainState, Metrics]]:
    """A `Step` compiled for a mesh: `(state, frozen, batch, key)`; the old state is donated.

    Args:
        state: shardings of the state, a `TrainState` of them. `frozen` is whole on every device.
    """

    def laid_out(now: TrainState, frozen: Any, batch: Any, key: Key[Array, ""]) -> tuple[TrainState, Metrics]:
        with sharding.using(mesh):
            return step(now, frozen, batch, key)

    everywhere = sharding.replicated(mesh)
    return jax.jit(
        laid_out,
        in_shardings=(state, everywhere, sharding.batch(mesh), everywhere),
        out_shardings=(state, everywhere),
        donate_argnums=0,
    )
