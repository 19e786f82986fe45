"""The slow, obvious versions of what rayfm computes, in plain loops and float64, by the definitions."""

import math


def raw_score(bias, linear, factors, row):
    """Score one row, a dict feature -> value, by the sum over all pairs of different features."""
    total = bias + sum(linear[i] * x for i, x in row.items())
    features = sorted(row)
    for a, i in enumerate(features):
        for j in features[a + 1 :]:
            total += sum(vi * vj for vi, vj in zip(factors[i], factors[j], strict=True)) * row[i] * row[j]
    return float(total)


def sigmoid(raw):
    return 1 / (1 + math.exp(-raw)) if raw >= 0 else math.exp(raw) / (1 + math.exp(raw))


def loss(bias, linear, factors, row, label, classifier):
    """Half the squared error, or the log loss: those whose derivative by the raw score is score - label."""
    raw = raw_score(bias, linear, factors, row)
    if not classifier:
        return (raw - label) ** 2 / 2
    return math.log1p(math.exp(-abs(raw))) + max(raw, 0) - label * raw


def gradients(bias, linear, factors, row, label, classifier):
    """∂loss/∂parameter as (bias, {feature: linear}, {feature: [factors]}), from the definition of the pair sum."""
    raw = raw_score(bias, linear, factors, row)
    error = (sigmoid(raw) if classifier else raw) - label
    k = len(factors[0])
    return (
        error,
        {i: error * x for i, x in row.items()},
        {i: [error * x * sum(factors[j][f] * y for j, y in row.items() if j != i) for f in range(k)]
         for i, x in row.items()},
    )  # fmt: skip


class LazyAdam:
    """SageMaker's optimizer over dictionaries of floats: only what a mini-batch touched moves."""

    def __init__(self, lr, wd, eps, clip):
        self.lr, self.wd, self.eps, self.clip = lr, wd, eps, clip
        self.first, self.second, self.steps = {}, {}, 0

    def update(self, parameters, gradients, records):
        self.steps += 1
        rate = self.lr * math.sqrt(1 - 0.999**self.steps) / (1 - 0.9**self.steps)
        for name, g in gradients.items():
            g += self.wd * parameters[name]
            if self.clip > 0:
                g = min(max(g, -self.clip), self.clip)
            self.first[name] = m = 0.9 * self.first.get(name, 0.0) + 0.1 * g
            self.second[name] = s = 0.999 * self.second.get(name, 0.0) + 0.001 * g * g
            parameters[name] -= rate * m / (math.sqrt(s) + self.eps)


class AdaGrad:
    def __init__(self, lr, wd, eps, clip):
        self.lr, self.wd, self.eps, self.clip = lr, wd, eps, clip
        self.second = {}

    def update(self, parameters, gradients, records):
        for name, g in gradients.items():
            g += records[name] * self.wd * parameters[name]
            if self.clip > 0:
                g = min(max(g, -self.clip), self.clip)
            self.second[name] = n = self.second.get(name, 0.0) + g * g
            parameters[name] -= self.lr * g / (math.sqrt(n) + self.eps)


class RowwiseAdaGrad:
    """AdaGrad whose factors share one accumulator a feature; names of factors are (feature, number)."""

    def __init__(self, lr, wd, eps, clip):
        self.lr, self.wd, self.eps, self.clip = lr, wd, eps, clip
        self.second = {}

    def update(self, parameters, gradients, records):
        groups = {}
        for name, g in gradients.items():
            g += records[name] * self.wd * parameters[name]
            if self.clip > 0:
                g = min(max(g, -self.clip), self.clip)
            groups.setdefault(name[0] if isinstance(name, tuple) else name, {})[name] = g
        for group, members in groups.items():
            n = self.second.get(group, 0.0) + sum(g * g for g in members.values()) / len(members)
            self.second[group] = n
            for name, g in members.items():
                parameters[name] -= self.lr * g / (math.sqrt(n) + self.eps)


class Ftrl:
    """FTRL-proximal, as in algorithm 1 of McMahan et al. (KDD 2013)."""

    def __init__(self, lr, l2, l1, beta, clip):
        self.lr, self.l2, self.l1, self.beta, self.clip = lr, l2, l1, beta, clip
        self.z, self.n = {}, {}

    def update(self, parameters, gradients, records):
        for name, g in gradients.items():
            w = parameters[name]
            n = self.n.get(name, 0.0)
            z = self.z.get(name, 0.0)
            if self.clip > 0:
                g = min(max(g, -self.clip), self.clip)
            sigma = (math.sqrt(n + g * g) - math.sqrt(n)) / self.lr
            z, n = z + g - sigma * w, n + g * g
            self.z[name], self.n[name] = z, n
            shrunk = max(abs(z) - self.l1, 0.0)
            parameters[name] = -math.copysign(shrunk, z) / ((self.beta + math.sqrt(n)) / self.lr + self.l2)


def train(bias, linear, factors, rows, labels, weights, *, classifier, batch, rescale, optimizers):
    """Train on rows (dicts) in order; `optimizers` are three, for bias, linear and factors.

    Returns (bias, linear, factors, raw scores before each mini-batch's update).
    """
    k = len(factors[0])
    b, w = {0: bias}, dict(enumerate(linear))
    v = {(i, f): factors[i][f] for i in range(len(factors)) for f in range(k)}
    raws = []
    for begin in range(0, len(rows), batch):
        gradient, records = ({}, {}, {}), ({}, {}, {})
        matrix = [[v[i, f] for f in range(k)] for i in range(len(factors))]
        for index in range(begin, min(begin + batch, len(rows))):
            arguments = (b[0], w, matrix, rows[index])
            raws.append(raw_score(*arguments))
            g0, g1, g2 = gradients(*arguments, labels[index], classifier)
            parts = ({0: g0}, g1, {(i, f): g for i, row in g2.items() for f, g in enumerate(row)})
            for total, seen, part in zip(gradient, records, parts, strict=True):
                for name, g in part.items():
                    total[name] = total.get(name, 0.0) + rescale * weights[index] * g
                    seen[name] = seen.get(name, 0) + 1
        for optimizer, values, total, seen in zip(optimizers, (b, w, v), gradient, records, strict=True):
            optimizer.update(values, total, seen)
    return b[0], [w[i] for i in range(len(linear))], [[v[i, f] for f in range(k)] for i in range(len(factors))], raws
