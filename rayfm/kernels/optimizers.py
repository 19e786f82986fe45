"""Update rules, applied lazily: only to what a mini-batch touched.

A rule updates a parameter from the gradient ``g`` of the mini-batch and up to two numbers of state:

===============  =======================================  ==========================================
rule             first state                              second state
===============  =======================================  ==========================================
adam             m, mean of gradients                     s, mean of squared gradients
adagrad          none                                     n, sum of squared gradients
rowwise_adagrad  none                                     n; for factors one number a feature, the
                                                          sum of the mean over the squared gradients
ftrl             z, linear term of the proximal problem   root of the sum of squared gradients
===============  =======================================  ==========================================

Each is written once, for single numbers and for `Row` values alike, but for what the two have no common operation for.

Sources: Kingma & Ba, "Adam", ICLR 2015, in the lazy form of MXNet's row-sparse update (spec of SageMaker's
trainer); Duchi et al., "AdaGrad", JMLR 2011; Mudigere et al., "Software-Hardware Co-design for Fast and Scalable
Training of Deep Learning Recommendation Models", ISCA 2022, section 4 (row-wise AdaGrad); McMahan et al., "Ad Click
Prediction", KDD 2013, algorithm 1.
"""

from __future__ import annotations

import numpy as np

from rayfm.kernels.jit import part
from rayfm.kernels.vectors import clipped, near_square_root, shrunk, square_root, where_zero

BETA1 = np.float32(0.9)
BETA2 = np.float32(0.999)
REST1 = np.float32(1) - BETA1
REST2 = np.float32(1) - BETA2


@part
def adam(p, g, m, s, clip, lr, wd, eps):  # type: ignore[no-untyped-def]
    """Return (p, m, s) after an update; `lr` has the bias correction in it. Decay is clipped too, as in SageMaker."""
    g = g + p * wd
    if clip > 0:
        g = clipped(g, clip)
    m = m * BETA1 + g * REST1
    s = s * BETA2 + g * g * REST2
    return p - m * lr / (square_root(s) + eps), m, s


@part
def decayed(p, g, clip, decay):  # type: ignore[no-untyped-def]
    """Return AdaGrad's gradient.

    `decay` is the rate of it times the records of the mini-batch that touched p, so that it does not depend on the
    size of a mini-batch.
    """
    g = g + p * decay
    if clip > 0:
        g = clipped(g, clip)
    return g


@part
def adagrad(p, g, n, lr, eps):  # type: ignore[no-untyped-def]
    """Return (p, n) after an update by a `decayed` gradient."""
    n = n + g * g
    return p - g * lr / (near_square_root(n) + eps), n


@part
def ftrl(p, g, z, root, clip, lr, l2, l1, beta):  # type: ignore[no-untyped-def]
    """Return (p, z, root) after an update; the root is kept because taking it costs as much as all the rest."""
    if clip > 0:
        g = clipped(g, clip)
    after = square_root(root * root + g * g)
    rate = np.float32(1.0) / lr
    z = z + g - (after - root) * rate * p
    return -shrunk(z, l1) / ((after + beta) * rate + l2), z, after


@part
def ftrl_linear_term(p, z, root, lr, l2, l1, beta):  # type: ignore[no-untyped-def]
    """Return the z whose minimiser is `p`; for p = 0 the nearest one to `z` that gives 0."""
    nearest = clipped(z, l1)
    if lr == 0:
        return nearest
    rate = np.float32(1.0) / lr
    return where_zero(p, nearest, -shrunk(p * ((root + beta) * rate + l2), -l1))  # undoes what `ftrl` does
