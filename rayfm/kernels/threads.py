"""What threads of one kernel need of each other: counters in memory, and to wait at them."""

from __future__ import annotations

from typing import Any

from numba.core import types
from numba.extending import intrinsic
from numba.np.arrayobj import make_array

from rayfm.kernels.jit import part

SPINS_BEFORE_YIELD = 2000
"""About 20 microseconds: what another thread takes longer for is more than its share of a mini-batch."""

_yield_processor = types.ExternalFunction("sched_yield", types.int32())


def _counter(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    return builder.gep(make_array(sig.args[0])(context, builder, args[0]).data, [args[1]])


@intrinsic
def add_and_fetch(typingctx, counters, index, value):  # type: ignore[no-untyped-def]
    """Add to an int64 as one step, and return what it is then."""

    def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
        before = builder.atomic_rmw("add", _counter(context, builder, sig, args), args[2], "seq_cst")
        return builder.add(before, args[2])

    return types.int64(counters, types.int64, types.int64), codegen


@intrinsic
def fetch(typingctx, counters, index):  # type: ignore[no-untyped-def]
    """Return an int64 that other threads change."""

    def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
        return builder.load_atomic(_counter(context, builder, sig, args), "seq_cst", 8)

    return types.int64(counters, types.int64), codegen


@part
def meet(counters, index, threads):  # type: ignore[no-untyped-def]
    """Wait until all threads have come here as often as this one; the counter starts at 0 and is for this alone."""
    came = add_and_fetch(counters, index, 1)
    goal = (came + threads - 1) // threads * threads
    spins = 0
    while fetch(counters, index) < goal:
        spins += 1
        if spins % SPINS_BEFORE_YIELD == 0:
            _yield_processor()
