"""Grad-CAM: where in a picture a network saw what speaks for a class (Selvaraju et al. 2017, arXiv:1610.02391)."""

import functools

import jax
import jax.numpy as jnp

from tl_jax.tasks.objectives import Maps, Network


@functools.cache
def make_grad_cam(net: Network, name: str = ""):
    """Return the function (variables, batch) -> maps float32 (N, h, w), 0 and more, of the class that "label" has.

    Channel k of the endpoint weighs the mean over positions of the gradient of the class' logit; the map is the
    weighted sum of the channels, negative values put to zero. The network is split at the endpoint as the feature cache
    splits it: its second half is differentiated with respect to what comes in, which is exact and needs no hooks. With
    a linear head on the global average this is 1 / (h w) times the class activation map (Zhou et al. 2016,
    arXiv:1512.04150).

    Args:
        net: any image network.
        name: of the endpoint, a part of the network with maps (N, h, w, D); empty takes the last.
    """
    name = name or net.model.part_names()[-1]
    rest = net._replace(model=net.model.clone(start=name), inputs=Maps())

    def grad_cam(variables, batch):
        maps = net.predict(variables, batch["image"])[1][name]

        def logit(maps):
            logits = rest.predict(variables, maps)[0]
            return jnp.take_along_axis(logits, batch["label"][:, None], 1).sum()  # each depends on its own maps

        weights = jax.grad(logit)(maps).astype(jnp.float32).mean((1, 2), keepdims=True)
        return jax.nn.relu((weights * maps.astype(jnp.float32)).sum(-1))

    return grad_cam
