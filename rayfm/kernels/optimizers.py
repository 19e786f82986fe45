"""Update rules, each for one parameter row, applied lazily: only to what a mini-batch touched.

A rule updates ``p[j]`` in place from the gradient ``g`` of the mini-batch and two state arrays of p's shape:

========  =======================================  =====================================
rule      first state                              second state
========  =======================================  =====================================
adam      m, mean of gradients                     s, mean of squared gradients
adagrad   not used (stays zero)                    n, sum of squared gradients
ftrl      z, linear term of the proximal problem   n, sum of squared gradients
========  =======================================  =====================================

Sources: Kingma & Ba, "Adam", ICLR 2015, in the lazy form of MXNet's row-sparse update (spec of SageMaker's
trainer); Duchi et al., "AdaGrad", JMLR 2011; McMahan et al., "Ad Click Prediction", KDD 2013, algorithm 1.
"""

from __future__ import annotations

import numpy as np

from rayfm.kernels.jit import kernel

ADAM, ADAGRAD, FTRL = 0, 1, 2
CODES = {"adam": ADAM, "adagrad": ADAGRAD, "ftrl": FTRL}

BETA1 = np.float32(0.9)
BETA2 = np.float32(0.999)
REST1 = np.float32(1) - BETA1
REST2 = np.float32(1) - BETA2


@kernel
def step(code, p, g, first, second, clip, lr, wd, l1, eps, beta, records):  # type: ignore[no-untyped-def]
    """Return (p, first, second) after one update of a single number.

    Parameters
    ----------
    g
        Gradient of the mini-batch, rescaled, without decay.
    clip
        Limit of the gradient; <= 0 is off. Decay is added before clipping in adam, as SageMaker does.
    lr
        Learning rate; for adam with the bias correction of the step already in it.
    records
        How many records of the mini-batch touched p. AdaGrad's decay counts once for each, so that it does not
        depend on the size of a mini-batch; adam's once, as SageMaker does; ftrl's sits in its closed form.
    """
    if code == ADAM:
        g += wd * p
        if clip > 0:
            g = min(max(g, -clip), clip)
        first = BETA1 * first + REST1 * g
        second = BETA2 * second + REST2 * g * g
        return p - lr * first / (np.sqrt(second) + eps), first, second
    if code == ADAGRAD:
        g += records * wd * p
        if clip > 0:
            g = min(max(g, -clip), clip)
        second += g * g
        return p - lr * g / (np.sqrt(second) + eps), first, second
    if clip > 0:
        g = min(max(g, -clip), clip)
    before = np.sqrt(second)
    second += g * g
    first += g - (np.sqrt(second) - before) / lr * p
    return ftrl_parameter(first, second, lr, wd, l1, beta), first, second


@kernel
def ftrl_parameter(z, n, lr, l2, l1, beta):  # type: ignore[no-untyped-def]
    """Return the minimiser of FTRL's proximal problem."""
    shrunk = max(abs(z) - l1, np.float32(0.0))
    return -np.copysign(shrunk, z) / ((beta + np.sqrt(n)) / lr + l2)


@kernel
def ftrl_linear_term(p, z, n, lr, l2, l1, beta):  # type: ignore[no-untyped-def]
    """Return the z whose minimiser is `p`; for p = 0 the nearest one to `z` that gives 0."""
    if p == 0 or lr == 0:
        return min(max(z, -l1), l1)
    return np.float32(-p * ((beta + np.sqrt(n)) / lr + l2) - np.copysign(l1, p))
