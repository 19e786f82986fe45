"""Rows of parameters as vector values of the processor.

Numba does not vectorise a loop over a row of one array that changes another, as it cannot know that the two do not
overlap. A `Row` is a value that LLVM knows as ``<width x float>``: it is loaded, computed with and stored as one, in as
many registers as it takes. The width is a `Constant`, an argument whose value is part of its type: each is compiled by
itself.

Arrays are flat here, float32 and contiguous; `index` counts floats. No bounds are checked.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.datamodel import models, register_default
from numba.core.imputils import lower_builtin
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import NativeValue, intrinsic, typeof_impl, unbox
from numba.np.arrayobj import make_array

from rayfm.kernels.jit import FAST

_FLOAT, _INT32, _INT64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)
_FLAGS = tuple(sorted(FAST))

_ESTIMATES = {
    "v8f32": ("llvm.x86.avx512.rsqrt14.ps.256", "+avx512vl"),
    "v16f32": ("llvm.x86.avx512.rsqrt14.ps.512", "+avx512f"),
}
"""What estimates 1 / √x to 2⁻¹⁴, and which feature of a processor that is, by the type of x."""

_SMALLEST_NORMAL = 2.0**-126


class Constant:
    """An integer that a kernel is compiled for."""

    def __init__(self, value: int) -> None:
        self.value = value


class ConstantType(types.Type):
    """The Numba type of a `Constant`, one for each value."""

    def __init__(self, value: int) -> None:
        self.value = value
        super().__init__(name=f"Constant({value})")


register_default(ConstantType)(models.OpaqueModel)


@typeof_impl.register(Constant)
def _typeof_constant(constant: Constant, context: Any) -> ConstantType:
    return ConstantType(constant.value)


@unbox(ConstantType)
def _unbox_constant(kind: Any, value: Any, context: Any) -> NativeValue:
    return NativeValue(context.context.get_dummy_value())


@intrinsic(prefer_literal=True)
def constant(typingctx, value):  # type: ignore[no-untyped-def]
    """Return the Constant of an integer that is known when the kernel is compiled.

    To take one from Python costs a call 4 microseconds, as Numba must ask what it is.
    """
    if not isinstance(value, types.IntegerLiteral):
        return None

    def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
        return context.get_dummy_value()

    return ConstantType(value.literal_value)(value), codegen


@intrinsic
def value_of(typingctx, number):  # type: ignore[no-untyped-def]
    """Return the value of a Constant, or an int64 as it is."""
    if not isinstance(number, ConstantType) and number != types.int64:
        return None

    def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
        kind = sig.args[0]
        return _INT64(kind.value) if isinstance(kind, ConstantType) else args[0]

    return types.int64(number), codegen


class Row(types.Type):
    """The Numba type of a vector of `width` float32 values."""

    def __init__(self, width: int) -> None:
        self.width = width
        super().__init__(name=f"Row({width})")


@register_default(Row)
class _RowModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Row) -> None:
        super().__init__(dmm, fe_type, ir.VectorType(_FLOAT, fe_type.width))


def _pointer(context: Any, builder: Any, array_type: Any, array: Any, index: Any, target: Any) -> Any:
    place = builder.gep(make_array(array_type)(context, builder, array).data, [index])
    return builder.bitcast(place, ir.PointerType(target))


def _call(builder: Any, name: str, result: Any, *arguments: Any, flags: tuple[str, ...] = ()) -> Any:
    function_type = ir.FunctionType(result, [argument.type for argument in arguments])
    function = cgutils.get_or_insert_function(builder.module, function_type, name)
    return builder.call(function, arguments, fastmath=flags)


def _splat(builder: Any, value: Any, width: int) -> Any:
    vector = builder.insert_element(ir.Constant(ir.VectorType(_FLOAT, width), ir.Undefined), value, _INT32(0))
    mask = ir.Constant(ir.VectorType(_INT32, width), [0] * width)
    return builder.shuffle_vector(vector, vector, mask)


def _like(builder: Any, value: Any, other: Any) -> Any:
    """Return a number as what `other` is, a number or a vector."""
    return _splat(builder, value, other.type.count) if isinstance(other.type, ir.VectorType) else value


def _suffix(value: Any) -> str:
    """Return what LLVM calls the type of a value in the names of its functions."""
    return f"v{value.type.count}f32" if isinstance(value.type, ir.VectorType) else "f32"


def _square_root(builder: Any, value: Any) -> Any:
    return _call(builder, f"llvm.sqrt.{_suffix(value)}", value.type, value, flags=_FLAGS)


def _is_octets(array: Any) -> bool:
    return isinstance(array, types.Array) and array.ndim == 1 and array.dtype == types.uint8


def _is_flat(array: Any) -> bool:
    return isinstance(array, types.Array) and array.ndim == 1 and array.layout == "C" and array.dtype == types.float32


@intrinsic
def load(typingctx, array, index, width):  # type: ignore[no-untyped-def]
    """Return the Row ``array[index : index + width]``."""
    if not (_is_flat(array) and isinstance(width, ConstantType)):
        return None
    row = Row(width.value)

    def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
        target = context.get_value_type(row)
        loaded = builder.load(_pointer(context, builder, sig.args[0], args[0], args[1], target))
        loaded.align = 4
        return loaded

    return row(array, types.int64, width), codegen


@intrinsic
def load_first(typingctx, array, index, count, width):  # type: ignore[no-untyped-def]
    """Return the Row of ``array[index : index + count]`` and zeros behind it."""
    if not (_is_flat(array) and isinstance(width, ConstantType)):
        return None
    row = Row(width.value)

    def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
        n = sig.args[3].value
        zeros = ir.Constant(context.get_value_type(row), [0.0] * n)
        pointer = _pointer(context, builder, sig.args[0], args[0], args[1], zeros.type)
        vector_type = ir.VectorType(_INT32, n)
        counts = builder.insert_element(
            ir.Constant(vector_type, ir.Undefined), builder.trunc(args[2], _INT32), _INT32(0)
        )
        counts = builder.shuffle_vector(counts, counts, ir.Constant(vector_type, [0] * n))
        mask = builder.icmp_signed("<", ir.Constant(vector_type, list(range(n))), counts)
        return _call(builder, f"llvm.masked.load.v{n}f32.p0", zeros.type, pointer, _INT32(4), mask, zeros)

    return row(array, types.int64, types.int64, width), codegen


@intrinsic
def item(typingctx, array, index):  # type: ignore[no-untyped-def]
    """Return ``array[index]`` of a flat array of any numbers; Numba's own subscript looks for negative indices."""
    if not (isinstance(array, types.Array) and array.ndim == 1 and array.layout == "C"):
        return None

    def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
        target = context.get_value_type(sig.args[0].dtype)
        return builder.load(_pointer(context, builder, sig.args[0], args[0], args[1], target))

    return array.dtype(array, types.int64), codegen


@intrinsic
def put(typingctx, array, index, value):  # type: ignore[no-untyped-def]
    """Set ``array[index]`` of a flat array of numbers, as `item` gets it."""
    if not (isinstance(array, types.Array) and array.ndim == 1 and array.layout == "C"):
        return None

    def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
        builder.store(args[2], _pointer(context, builder, sig.args[0], args[0], args[1], args[2].type))
        return context.get_dummy_value()

    return types.void(array, types.int64, array.dtype), codegen


@intrinsic
def integer(typingctx, array, index):  # type: ignore[no-untyped-def]
    """Return the bits of ``array[index]``, of a flat array of float32, as an int64 that an int32 holds."""
    if not _is_flat(array):
        return None

    def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
        return builder.sext(builder.load(_pointer(context, builder, sig.args[0], args[0], args[1], _INT32)), _INT64)

    return types.int64(array, types.int64), codegen


@intrinsic
def put_integer(typingctx, array, index, value):  # type: ignore[no-untyped-def]
    """Set the bits of ``array[index]``, of a flat array of float32, to those of an integer."""
    if not _is_flat(array):
        return None

    def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
        lower = builder.trunc(args[2], _INT32)
        builder.store(lower, _pointer(context, builder, sig.args[0], args[0], args[1], _INT32))
        return context.get_dummy_value()

    return types.void(array, types.int64, types.int64), codegen


@intrinsic
def word(typingctx, octets, position):  # type: ignore[no-untyped-def]
    """Return the 8 bytes at `position` of a flat array of bytes as one int64, the first as its lowest."""
    if not _is_octets(octets):
        return None

    def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
        loaded = builder.load(_pointer(context, builder, sig.args[0], args[0], args[1], _INT64))
        loaded.align = 1
        return loaded

    return types.int64(octets, types.int64), codegen


@intrinsic
def half_word(typingctx, octets, position):  # type: ignore[no-untyped-def]
    """Return the 4 bytes at `position` of a flat array of bytes as one uint32, the first as its lowest."""
    if not _is_octets(octets):
        return None

    def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
        loaded = builder.load(_pointer(context, builder, sig.args[0], args[0], args[1], _INT32))
        loaded.align = 1
        return loaded

    return types.uint32(octets, types.int64), codegen


@intrinsic
def put_half_word(typingctx, octets, position, value):  # type: ignore[no-untyped-def]
    """Write a uint32 to the 4 bytes at `position`, its lowest first."""
    if not _is_octets(octets):
        return None

    def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
        stored = builder.store(args[2], _pointer(context, builder, sig.args[0], args[0], args[1], _INT32))
        stored.align = 1
        return context.get_dummy_value()

    return types.void(octets, types.int64, types.uint32), codegen


@intrinsic
def store(typingctx, array, index, row):  # type: ignore[no-untyped-def]
    """Write a Row to ``array[index : index + width]``."""
    if not (_is_flat(array) and isinstance(row, Row)):
        return None

    def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
        stored = builder.store(args[2], _pointer(context, builder, sig.args[0], args[0], args[1], args[2].type))
        stored.align = 4
        return context.get_dummy_value()

    return types.void(array, types.int64, row), codegen


@intrinsic
def full(typingctx, value, width):  # type: ignore[no-untyped-def]
    """Return a Row of one value."""
    if not isinstance(width, ConstantType):
        return None

    def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
        return _splat(builder, args[0], sig.args[1].value)

    return Row(width.value)(types.float32, width), codegen


@intrinsic
def four(typingctx, first, second, third, fourth):  # type: ignore[no-untyped-def]
    """Return a Row of four float32 values."""
    if any(kind != types.float32 for kind in (first, second, third, fourth)):
        return None
    row = Row(4)

    def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
        vector = ir.Constant(context.get_value_type(row), ir.Undefined)
        for place, value in enumerate(args):
            vector = builder.insert_element(vector, value, _INT32(place))
        return vector

    return row(first, second, third, fourth), codegen


@intrinsic
def as_float(typingctx, number):  # type: ignore[no-untyped-def]
    """Return the float32 of the same bits as the lower half of an int64."""
    if number != types.int64:
        return None

    def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
        return builder.bitcast(builder.trunc(args[0], _INT32), _FLOAT)

    return types.float32(number), codegen


@intrinsic
def fused(typingctx, a, b, c):  # type: ignore[no-untyped-def]
    """Return ``a * b + c`` of numbers or Rows, `b` also a number beside Rows, rounded once where the processor can.

    Of Rows, and of numbers in an exact part, it gives the same bits in whatever kernel it is.
    """
    if not isinstance(a, Row) and a != types.float32:
        return None
    if a != c or b not in (a, types.float32):
        return None

    def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
        factor = args[1] if sig.args[1] == a else _like(builder, args[1], args[0])
        return _call(builder, f"llvm.fmuladd.{_suffix(args[0])}", args[0].type, args[0], factor, args[2])

    return a(a, b, c), codegen


@intrinsic
def total(typingctx, row):  # type: ignore[no-untyped-def]
    """Return the sum of a Row."""
    if not isinstance(row, Row):
        return None

    def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
        name = f"llvm.vector.reduce.fadd.v{sig.args[0].width}f32"
        return _call(builder, name, _FLOAT, ir.Constant(_FLOAT, 0.0), args[0], flags=_FLAGS)

    return types.float32(row), codegen


@intrinsic
def square_root(typingctx, x):  # type: ignore[no-untyped-def]
    """Return the square root of a float32 or of each of a Row."""
    if not (isinstance(x, Row) or x == types.float32):
        return None

    def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
        return _square_root(builder, args[0])

    return x(x), codegen


@intrinsic
def near_square_root(typingctx, x):  # type: ignore[no-untyped-def]
    """Return the square root of each of a Row to within 2⁻²² of itself; of a float32 the exact one.

    Where the processor has an estimate of 1 / √x, it is that and one step of Newton's method: AdaGrad on one row at a
    time takes 0.9 times as long. Infinity then gives NaN, and what is below the smallest normal number too little.
    """
    if not (isinstance(x, Row) or x == types.float32):
        return None

    def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
        value = args[0]
        name, feature = _ESTIMATES.get(_suffix(value), ("", ""))
        if not name or feature not in context.codegen().magic_tuple()[2].split(","):
            return _square_root(builder, value)
        zero, smallest, half = (_like(builder, _FLOAT(number), value) for number in (0.0, _SMALLEST_NORMAL, 0.5))
        normal = builder.select(builder.fcmp_ordered("<", value, smallest), smallest, value)
        inverse = _call(builder, name, value.type, normal, zero, ir.IntType(value.type.count)(-1))
        root = builder.fmul(value, inverse, flags=_FLAGS)
        rest = builder.fsub(value, builder.fmul(root, root, flags=_FLAGS), flags=("contract",))
        step = builder.fmul(rest, builder.fmul(inverse, half, flags=_FLAGS), flags=("contract",))
        return builder.fadd(root, step, flags=("contract",))

    return x(x), codegen


@intrinsic
def clipped(typingctx, x, limit):  # type: ignore[no-untyped-def]
    """Return ``min(max(x, -limit), limit)`` of a float32 or of each of a Row; of NaN it is NaN."""
    if not (isinstance(x, Row) or x == types.float32):
        return None

    def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
        high = _like(builder, args[1], args[0])
        low = builder.fneg(high)
        above = builder.select(builder.fcmp_ordered("<", args[0], low), low, args[0])
        return builder.select(builder.fcmp_ordered(">", above, high), high, above)

    return x(x, types.float32), codegen


@intrinsic
def shrunk(typingctx, x, threshold):  # type: ignore[no-untyped-def]
    """Return ``sign(x) max(|x| - threshold, 0)`` of a float32 or of each of a Row; of NaN it is NaN."""
    if not (isinstance(x, Row) or x == types.float32):
        return None

    def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
        kind, suffix = args[0].type, _suffix(args[0])
        size = _call(builder, f"llvm.fabs.{suffix}", kind, args[0])
        size = builder.fsub(size, _like(builder, args[1], args[0]))
        zero = _like(builder, _FLOAT(0.0), args[0])
        size = builder.select(builder.fcmp_ordered("<", size, zero), zero, size)
        return _call(builder, f"llvm.copysign.{suffix}", kind, size, args[0])

    return x(x, types.float32), codegen


@intrinsic
def where_zero(typingctx, x, chosen, other):  # type: ignore[no-untyped-def]
    """Return `chosen` where `x` is 0, else `other`, of three float32 or of each of three Rows."""
    if not (isinstance(x, Row) or x == types.float32):
        return None

    def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
        is_zero = builder.fcmp_ordered("==", args[0], ir.Constant(args[0].type, None))
        return builder.select(is_zero, args[1], args[2])

    return x(x, x, x), codegen


def _prefetch(array: Any, to_write: bool) -> Any:
    if not (isinstance(array, types.Array) and array.ndim == 1):
        return None

    def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
        pointer = _pointer(context, builder, sig.args[0], args[0], args[1], ir.IntType(8))
        _call(builder, "llvm.prefetch.p0", ir.VoidType(), pointer, _INT32(int(to_write)), _INT32(3), _INT32(1))
        return context.get_dummy_value()

    return types.void(array, types.int64), codegen


@intrinsic
def prefetch(typingctx, array, index):  # type: ignore[no-untyped-def]
    """Ask for the cache line of ``array[index]``, of an array of any type, which need not exist."""
    return _prefetch(array, to_write=False)


@intrinsic
def prefetch_to_write(typingctx, array, index):  # type: ignore[no-untyped-def]
    """Do what `prefetch` does, and have the line taken from the other processors too."""
    return _prefetch(array, to_write=True)


def _arithmetic(operation: Callable[[Any, Any], Any], instruction: str) -> None:
    """Let an operator take two Rows, or a Row and a number on either side."""

    class Typing(AbstractTemplate):
        key = operation

        def generic(self, args: Any, kws: Any) -> Any:
            rows = [arg for arg in args if isinstance(arg, Row)]
            if len(args) != 2 or not rows or (len(rows) == 2 and rows[0] != rows[1]):
                return None
            return signature(rows[0], *(arg if isinstance(arg, Row) else types.float32 for arg in args))

    infer_global(operation)(Typing)

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        rows = [
            value if isinstance(kind, Row) else _splat(builder, value, sig.return_type.width)
            for kind, value in zip(sig.args, args, strict=True)
        ]
        return getattr(builder, instruction)(*rows)  # with the freedoms of the function that it is in

    for kinds in ((Row, Row), (Row, types.Float), (types.Float, Row)):
        lower_builtin(operation, *kinds)(lower)


@infer_global(operator.neg)
class _Negation(AbstractTemplate):
    key = operator.neg

    def generic(self, args: Any, kws: Any) -> Any:
        return signature(args[0], args[0]) if isinstance(args[0], Row) else None


@lower_builtin(operator.neg, Row)
def _negated(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    return builder.fneg(args[0])


for _operation, _instruction in (
    (operator.add, "fadd"),
    (operator.sub, "fsub"),
    (operator.mul, "fmul"),
    (operator.truediv, "fdiv"),
    (operator.iadd, "fadd"),
):
    _arithmetic(_operation, _instruction)
