"""LEVI: label distributions as the latent variables of an auto-encoder of features and labels."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxmlcl.enhancement._base import Enhancer, require, softmax
from jaxmlcl.errors import ConfigError
from jaxmlcl.random import Rows, bernoulli, make_key, row_words, uniform

Layer = dict[str, jax.Array]
Parameters = dict[str, list[Layer]]
Dropout = Callable[[jax.Array, int], jax.Array]

# Numbers that fits trained together may hold at once: 1 GiB of them.
_HELD = 1 << 28
# What draws random numbers in a step.
_LATENT, _DROPOUT = 0, 1
# Which hidden layer is the first of its part; dropout follows all four.
_ENCODER, _DECODER = 0, 2


@dataclasses.dataclass(frozen=True)
class _Recipe:
    """What a compiled training depends on beside shapes."""

    hidden: int
    latent: int
    dropout: float
    alpha: float
    beta: float
    learning_rate: float
    weight_decay: float
    epochs: int
    milestones: tuple[int, ...]
    decay: float


class LEVI(Enhancer):
    """Variational label enhancement, the form with multilayer perceptrons (LEVI-MLP).

    An encoder of (x, l) gives mean and deviation of z, whose last L coordinates are the labels'
    logits; a decoder gives the features back:

        loss = mean BCE(sigmoid(z_last L), l) + alpha mean KL(N(mu, s^2) | N(0, 1))
               + beta mean (decoder(z) - x)^2,     z = mu + s e, e ~ N(0, 1)
        D = softmax(sigmoid(mu_last L)) by row

    Features are scaled by one minimum and one maximum of all fitted features. Encoder: hidden, ELU,
    dropout, hidden, tanh, dropout, (mu, softplus + 1e-8); decoder: hidden, tanh, dropout, hidden,
    ELU, dropout, features. Adam, full batch, rate times `decay` at the milestones; weight decay is
    added to the gradient.

    The sigmoid lies in (0, 1), so no degree is more than e = 2.718 times another of its row. Rows
    without labels are near uniform, and so are rows with all of them.

    Rows that were not fitted are recovered from their own (x, l) in `fit_many`.

    Args:
      hidden: width of the hidden layers.
      latent: width of z; L if there are more labels.
      dropout: share of hidden units left out.
      alpha: weight of the KL divergence.
      beta: weight of the features' reconstruction.
      learning_rate: of Adam.
      weight_decay: added to the gradient, times the weights.
      epochs: steps. The authors print no number; their milestones suggest 1000.
      milestones: epochs at which the rate falls.
      decay: what it is multiplied by there.
      random_state: seed of initial weights, dropout and latent draws.

    Example:
      >>> features, labels = [[0.0], [0.1], [2.0], [2.1]], [[1, 0], [1, 0], [0, 1], [0, 1]]
      >>> found = LEVI(hidden=8, latent=4, epochs=200).fit_transform(features, labels)
      >>> found.argmax(1).tolist()
      [0, 0, 1, 1]

    Source: Xu, Shu, Zheng, Geng, Meng & Qiao, "Variational Label Enhancement", TPAMI 2023, and its
    published program, whose constants these are.
    """

    title = "LEVI-MLP"
    out_of_sample = True
    seeded = True

    def __init__(
        self,
        hidden: int = 500,
        latent: int = 200,
        dropout: float = 0.1,
        alpha: float = 0.01,
        beta: float = 0.01,
        learning_rate: float = 1e-3,
        weight_decay: float = 1e-5,
        epochs: int = 1000,
        milestones: Sequence[int] = (500, 800, 900),
        decay: float = 0.2,
        random_state: int | None = 0,
    ) -> None:
        self.hidden = hidden
        self.latent = latent
        self.dropout = dropout
        self.alpha = alpha
        self.beta = beta
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.epochs = epochs
        self.milestones = milestones
        self.decay = decay
        self.random_state = random_state

    def fit_many(
        self,
        features: np.ndarray,
        labels: np.ndarray,
        rows: np.ndarray | Sequence[np.ndarray],
        seeds: Sequence[int],
    ) -> np.ndarray:
        """See `Enhancer.fit_many`: fits are trained together, as many as memory allows."""
        recipe = self._recipe(labels.shape[1])
        x = jnp.asarray(features, jnp.float32)
        y = jnp.asarray(labels, jnp.float32)
        longest = max(len(part) for part in rows)
        wide = x.shape[1] + y.shape[1] + 8 * (recipe.hidden + recipe.latent)
        together = max(1, _HELD // (longest * wide))
        keys = [make_key(seed) for seed in seeds]
        found = []
        for first in range(0, len(seeds), together):
            part = rows[first : first + together]
            # Short fits are filled up with row 0, of weight 0.
            chosen = np.zeros((len(part), longest), np.int32)
            held = np.zeros((len(part), longest), np.float32)
            for i, numbers in enumerate(part):
                chosen[i, : len(numbers)], held[i, : len(numbers)] = numbers, 1.0
            some = jnp.stack(keys[first : first + together])
            found.append(np.asarray(_fits(recipe, x, y, chosen, held, some), np.float64))
        return softmax(np.concatenate(found))

    def _recipe(self, labels: int) -> _Recipe:
        for name in ("hidden", "latent", "epochs"):
            require(self, name, low=1, whole=True)
        require(self, "dropout", high=np.nextafter(1.0, 0.0))
        for name in ("alpha", "beta", "learning_rate", "weight_decay", "decay"):
            require(self, name)
        try:
            milestones = tuple(int(epoch) for epoch in self.milestones)
        except (TypeError, ValueError):
            raise ConfigError(
                f"LEVI: milestones must be whole numbers, not {self.milestones!r}"
            ) from None
        return _Recipe(
            hidden=self.hidden,
            latent=max(self.latent, labels),
            dropout=float(self.dropout),
            alpha=float(self.alpha),
            beta=float(self.beta),
            learning_rate=float(self.learning_rate),
            weight_decay=float(self.weight_decay),
            epochs=self.epochs,
            milestones=milestones,
            decay=float(self.decay),
        )


@functools.partial(jax.jit, static_argnums=0)
def _fits(
    recipe: _Recipe,
    features: jax.Array,
    labels: jax.Array,
    chosen: jax.Array,
    held: jax.Array,
    keys: jax.Array,
) -> jax.Array:
    """sigmoid(mu_last L) [k, n, L] after training on the rows chosen [k, m], of weight held."""

    def one(rows: jax.Array, weight: jax.Array, key: jax.Array) -> jax.Array:
        inside = features[rows]
        low = jnp.min(jnp.where(weight[:, None] > 0, inside, jnp.inf))
        high = jnp.max(jnp.where(weight[:, None] > 0, inside, -jnp.inf))
        scale = jnp.where(high > low, 1.0 / (high - low), 0.0)
        parameters = _train(recipe, (inside - low) * scale, labels[rows], rows, weight, key)
        both = jnp.concatenate([(features - low) * scale, labels], axis=1)
        mean, _ = _encode(parameters["encoder"], both, None)
        return jax.nn.sigmoid(mean[:, -labels.shape[1] :])

    return jax.vmap(one)(chosen, held, keys)


def _train(
    recipe: _Recipe,
    x: jax.Array,
    y: jax.Array,
    rows: jax.Array,
    weight: jax.Array,
    key: jax.Array,
) -> Parameters:
    start, noise = jax.random.split(key)
    parameters = initial(start, x.shape[1], y.shape[1], recipe.hidden, recipe.latent)
    rate = optax.piecewise_constant_schedule(
        recipe.learning_rate, dict.fromkeys(recipe.milestones, recipe.decay)
    )
    # One vector for all parameters, again for the sake of the compiler.
    optimizer = optax.flatten(
        optax.chain(optax.add_decayed_weights(recipe.weight_decay), optax.adam(rate, eps=1e-8))
    )

    def step(carry: tuple, epoch: jax.Array) -> tuple[tuple, None]:
        current, state = carry
        gradient = jax.grad(loss)(current, recipe, x, y, rows, weight, noise, epoch)
        updates, state = optimizer.update(gradient, state, current)
        return (optax.apply_updates(current, updates), state), None

    carry = (parameters, optimizer.init(parameters))
    (parameters, _), _ = jax.lax.scan(step, carry, jnp.arange(recipe.epochs))
    return parameters


def loss(
    parameters: Parameters,
    recipe: _Recipe,
    x: jax.Array,
    y: jax.Array,
    rows: jax.Array,
    weight: jax.Array,
    key: jax.Array,
    epoch: jax.Array | int,
) -> jax.Array:
    """The loss of scaled features x [m, q] and labels y [m, L], means over rows of weight 1.

    Random numbers are keyed by epoch and the number of the row, so that it does not matter what
    else is in the batch.
    """
    words = row_words(key, epoch, _DROPOUT, rows)
    keep = jnp.split(bernoulli(words, 4 * recipe.hidden, 1 - recipe.dropout), 4, axis=1)

    def dropout(values: jax.Array, layer: int) -> jax.Array:
        return jnp.where(keep[layer], values / (1 - recipe.dropout), 0.0)

    mean, deviation = _encode(parameters["encoder"], jnp.concatenate([x, y], 1), dropout)
    z = mean + deviation * _normal(row_words(key, epoch, _LATENT, rows), mean.shape[1])
    logits = z[:, -y.shape[1] :]
    labels = (jax.nn.softplus(logits) - y * logits).mean(1)
    squares = deviation**2
    divergence = 0.5 * (mean**2 + squares - jnp.log(squares + 1e-12) - 1).mean(1)
    features = ((_decode(parameters["decoder"], z, dropout) - x) ** 2).mean(1)
    each = labels + recipe.alpha * divergence + recipe.beta * features
    return (each * weight).sum() / weight.sum()


def initial(key: jax.Array, features: int, labels: int, hidden: int, latent: int) -> Parameters:
    """Normal weights of variance 2 / (in + out), biases .01."""
    sizes = {
        "encoder": [(features + labels, hidden), (hidden, hidden), (hidden, 2 * latent)],
        "decoder": [(latent, hidden), (hidden, hidden), (hidden, features)],
    }
    # All numbers at once: the program is smaller, and compiles faster.
    count = sum(wide * narrow for shapes in sizes.values() for wide, narrow in shapes)
    drawn = _normal(row_words(key, jnp.arange(1)), count)[0]
    made: Parameters = {}
    taken = 0
    for name, shapes in sizes.items():
        made[name] = []
        for wide, narrow in shapes:
            own = drawn[taken : taken + wide * narrow].reshape(wide, narrow)
            taken += wide * narrow
            kernel = np.float32(np.sqrt(2 / (wide + narrow))) * own
            made[name].append({"kernel": kernel, "bias": jnp.full(narrow, 0.01, jnp.float32)})
    return made


def _normal(words: Rows, units: int) -> jax.Array:
    """Normal float32 numbers [B, units]."""
    # Between -1 and 1, neither of them, for which the inverse is infinite.
    even = uniform(words, units, float(np.nextafter(np.float32(-1), np.float32(0))))
    return np.float32(np.sqrt(2)) * jax.lax.erf_inv(even)


def _dense(layer: Layer, values: jax.Array) -> jax.Array:
    return values @ layer["kernel"] + layer["bias"]


def _encode(
    layers: list[Layer], inputs: jax.Array, dropout: Dropout | None
) -> tuple[jax.Array, jax.Array]:
    drop = dropout or (lambda values, _: values)
    hidden = drop(jax.nn.elu(_dense(layers[0], inputs)), _ENCODER)
    hidden = drop(jnp.tanh(_dense(layers[1], hidden)), _ENCODER + 1)
    mean, deviation = jnp.split(_dense(layers[2], hidden), 2, axis=1)
    return mean, jax.nn.softplus(deviation) + 1e-8


def _decode(layers: list[Layer], z: jax.Array, dropout: Dropout) -> jax.Array:
    hidden = dropout(jnp.tanh(_dense(layers[0], z)), _DECODER)
    hidden = dropout(jax.nn.elu(_dense(layers[1], hidden)), _DECODER + 1)
    return _dense(layers[2], hidden)
