"""Networks of C-GMVAE: Gaussians of samples and of labels, and the decoder that both share."""

from __future__ import annotations

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxmlcl.models.layers import Dropout, dense

SLOPE = 0.01


class GaussianHead(nn.Module):
    """Two linear layers from a representation to the mean and log variance of a Gaussian.

    Example:
      >>> head = GaussianHead(4)
      >>> mean, log_variance = head.init_with_output(jax.random.key(0), jnp.ones((2, 8)))[0]
      >>> mean.shape, log_variance.shape
      ((2, 4), (2, 4))

    Source: C-GMVAE, ICML 2022, section 3.
    """

    latent: int
    """Width d of the latent space (units)."""
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Mean and log variance [..., d] of representations [..., width]."""
        mean = dense(x.shape[-1], self.latent, self.dtype, name="mean")
        log_variance = dense(x.shape[-1], self.latent, self.dtype, name="log_variance")
        return mean(x), log_variance(x)


class LabelGaussians(nn.Module):
    """A learnt embedding of every label, and the Gaussian that an encoder makes of it.

    They do not depend on samples: L rows a step, however large the batch is.

    Example:
      >>> labels = LabelGaussians(num_labels=3, embedding=8, hidden=(6,), latent=4)
      >>> means, log_variances = labels.init_with_output(jax.random.key(0), False)[0]
      >>> means.shape, log_variances.shape
      ((3, 4), (3, 4))

    Source: C-GMVAE, ICML 2022, section 3.
    """

    num_labels: int
    embedding: int
    """Width E of the embeddings (units)."""
    hidden: tuple[int, ...]
    """Widths of the encoder's layers (units)."""
    latent: int
    """Width d of the latent space (units)."""
    dropout: float = 0.5
    activated: bool = True
    """Whether the encoder sees Dropout(ReLU(embedding + bias)), as in the authors' program, or the
    embeddings themselves."""
    dtype: Any = jnp.float32

    def setup(self) -> None:
        """The embeddings start as the weight of a linear layer from labels does in PyTorch."""
        kind = jnp.promote_types(self.dtype, jnp.float32)
        bound = 1 / math.sqrt(self.num_labels)

        def uniform(key: jax.Array, shape: Any) -> jax.Array:
            return jax.random.uniform(key, shape, kind, -bound, bound)

        self.embeddings = self.param("embeddings", uniform, (self.num_labels, self.embedding))
        if self.activated:
            self.bias = self.param("bias", uniform, (self.embedding,))
        widths = (self.embedding, *self.hidden)
        self.layers = [dense(i, o, self.dtype) for i, o in itertools.pairwise(widths)]
        self.head = GaussianHead(self.latent, self.dtype)
        self.drop = Dropout(self.dropout, samples=False)

    def __call__(self, train: bool) -> tuple[jax.Array, jax.Array]:
        """Means and log variances [L, d]."""
        x = self.embeddings.astype(self.dtype)
        if self.activated:
            x = self.drop(nn.relu(x + self.bias.astype(self.dtype)), train)
        for layer in self.layers:
            x = self.drop(nn.relu(layer(x)), train)
        return self.head(x)


class Decoder(nn.Module):
    """Points of the latent space, and the sample's features, to the labels' embedding space.

        w = LeakyReLU(W_2 ReLU(W_1 [x, z]))

    not yet of unit length. Several points of one sample share what its features add to the first
    layer.

    Example:
      >>> decoder = Decoder(embedding=8, hidden=(6,))
      >>> x, z = jnp.ones((2, 5)), jnp.ones((3, 2, 4))
      >>> decoder.init_with_output(jax.random.key(0), x, z)[0].shape
      (3, 2, 8)

    Source: C-GMVAE, ICML 2022, section 3 (input: authors' program).
    """

    embedding: int
    """Width E of the result (units)."""
    hidden: tuple[int, ...] = (512,)
    """Widths of the hidden layers (units)."""
    features: bool = True
    """Whether features stand beside the point, as in the authors' program."""
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, z: jax.Array) -> jax.Array:
        """Vectors [V, B, E] of features [B, D] and points [V, B, d]."""
        kind = jnp.promote_types(self.dtype, jnp.float32)
        beside = x.shape[-1] if self.features else 0
        inputs, width = beside + z.shape[-1], self.hidden[0]
        bound = 1 / math.sqrt(inputs)

        def uniform(key: jax.Array, shape: Any) -> jax.Array:
            return jax.random.uniform(key, shape, kind, -bound, bound)

        bias = self.param("bias", uniform, (width,)).astype(self.dtype)
        # One layer on [x, z], whose kernel is in two parts: each can be padded at its end.
        of_point = self.param("kernel_point", uniform, (z.shape[-1], width)).astype(self.dtype)
        h = z.astype(self.dtype) @ of_point + bias
        if self.features:
            shape = (x.shape[-1], width)
            of_features = self.param("kernel_features", uniform, shape).astype(self.dtype)
            h = h + x.astype(self.dtype) @ of_features
        for wider in (*self.hidden[1:], self.embedding):
            h = dense(h.shape[-1], wider, self.dtype)(nn.relu(h))
        return nn.leaky_relu(h, SLOPE)
