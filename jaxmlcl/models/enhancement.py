"""Networks of label enhancement."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxmlcl.models.layers import dense


class TwoLayers(nn.Module):
    """Linear, leaky ReLU (slope .01), linear: what F1, F2 and F3 of ConLE are."""

    hidden: int
    outputs: int
    dtype: Any = jnp.float32
    starts_at_zero: bool = False
    """Whether the last layer's weights are zeros at first, and with them all outputs."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """From [..., inputs] to [..., outputs]."""
        hidden = nn.leaky_relu(dense(x.shape[-1], self.hidden, self.dtype)(x), 0.01)
        if self.starts_at_zero:
            kind, zeros = jnp.promote_types(self.dtype, jnp.float32), nn.initializers.zeros
            return nn.Dense(self.outputs, dtype=self.dtype, param_dtype=kind, kernel_init=zeros)(
                hidden
            )
        return dense(self.hidden, self.outputs, self.dtype)(hidden)


class ConLENetwork(nn.Module):
    """Features and labels to two embeddings of the same width, and both of them to logits.

        z = F1(x),     q = F2(l),     logits = F3([z, q])

    All logits are 0 before training: distributions start as the uniform one, whatever the seed, so
    that the mass of a row's labels starts at |l| / L and grows.

    Example:
      >>> network = ConLENetwork(num_labels=3)
      >>> x, labels = jnp.ones((2, 5)), jnp.ones((2, 3))
      >>> z, q, logits = network.init_with_output(jax.random.key(0), x, labels)[0]
      >>> z.shape, q.shape, logits.shape
      ((2, 64), (2, 64), (2, 3))

    Source: ConLE, IJCAI 2023, section 3, which leaves depth and widths open.
    """

    num_labels: int
    hidden: int = 64
    width: int = 64
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Embeddings z, q [n, width] and logits [n, L] of features [n, q] and labels [n, L]."""
        z = TwoLayers(self.hidden, self.width, self.dtype, name="F1")(x)
        q = TwoLayers(self.hidden, self.width, self.dtype, name="F2")(labels)
        both = jnp.concatenate([z, q], axis=-1)
        last = TwoLayers(self.hidden, self.num_labels, self.dtype, True, name="F3")
        return z, q, last(both)
