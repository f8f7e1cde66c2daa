"""Memory of a ResNet's forward and backward pass with and without rematerialisation, on a TPU.

    pip install libtpu
    JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1 python -m benchmarks.remat

Compiles for one TPU v5e chip, which need not be there, and prints what the compiler says: bytes
beside the arguments, and FLOPs. Nothing is run. On a CPU the figures would say nothing: XLA
schedules for concurrency there, not for memory.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import jax
import jax.numpy as jnp

from jaxmlcl.models import ResNet

POLICIES = ("none", "convolutions", "blocks")


def measure(policy: Any, size: int, device: Any) -> tuple[float, float]:
    """Megabytes of temporaries and GFLOP of one pass over `size` images of 32 x 32."""
    module = ResNet((8, 8), 64, "basic", "small", remat=policy).build(jnp.float32)
    here = jax.sharding.SingleDeviceSharding(device)

    def placed(tree: Any) -> Any:
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), tree
        )

    x = jax.ShapeDtypeStruct((size, 32, 32, 3), jnp.float32)
    variables = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, False), x)

    def loss(params: Any, stats: Any, x: jax.Array) -> Any:
        given = {"params": params, "batch_stats": stats}
        y, changed = module.apply(given, x, True, mutable=["batch_stats"])
        return (y**2).sum(), changed

    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    arguments = placed((variables["params"], variables["batch_stats"], x))
    compiled = step.lower(*arguments).compile()
    memory: Any = compiled.memory_analysis()
    costs: Any = compiled.cost_analysis()
    return memory.temp_size_in_bytes / 1e6, costs["flops"] / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=256, help="images in a batch")
    parser.add_argument("--policies", nargs="+", choices=POLICIES, default=list(POLICIES))
    options = parser.parse_args()
    from jax.experimental import topologies

    try:
        chip = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices[0]
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        sys.exit(f"no compiler for TPUs ({reason}): pip install libtpu")
    print(f"JAX {jax.__version__}, TPU v5e, {options.images} images of 32 x 32, float32")
    for policy in options.policies:
        megabytes, gflop = measure(policy, options.images, chip)
        print(f"{policy:12}  {megabytes:7.0f} MB  {gflop:7.1f} GFLOP", flush=True)


if __name__ == "__main__":
    main()
