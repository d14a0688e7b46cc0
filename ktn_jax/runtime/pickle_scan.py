"""Looks through a pickle's instructions before they are run.

Python's unpickler is safe from damage but not from malice: nine bytes make it reserve gigabytes
for its memo, and a dict key of tuples that share their parts is hashed part by part, which never
ends, or, if deep, ends the process. So the instructions are followed here first, without making
anything: all that is kept of a value is whether it can be a key.
"""

import mmap
import pickle
import struct
from collections.abc import Callable
from typing import TypeAlias

# What a value is worth as a key of a dict or a member of a set: cheap to hash and compare; only
# so many (its hash can be chosen so that all collide); or not at all.
_CHEAP, _FEW, _NEVER = range(3)
MAX_COSTLY_KEYS = 10_000
MAX_KEY_ITEMS = 16
_MAX_MEMO = 1 << 24
# Whole numbers of more bytes are not keys: their hashes are chosen easily.
_MAX_KEY_BYTES = 8
# Longer ones are refused: an array's numbers are stored as bytes.
_MAX_NUMBER_BYTES = 1024


Data: TypeAlias = bytes | mmap.mmap


class _Scan:
    """The unpickler's stack and memo, with the worth of each value in its place."""

    def __init__(self, data: Data):
        self.data = data
        self.stack: list[int] = []
        self.marks: list[list[int]] = []
        self.memo: dict[int, int] = {}
        self.costly_keys = 0

    def run(self, position: int) -> int:
        # One loop with the frequent instructions first: files have tens of thousands.
        data, memo, stack = self.data, self.memo, self.stack
        end = len(data)
        while position < end:
            code = data[position]
            position += 1
            if code in _PUSHES:
                size, worth = _PUSHES[code]
                stack.append(worth)
                position += size
            elif code == _MEMOIZE:
                memo[len(memo)] = stack[-1]
            elif code == _BINPUT:
                memo[data[position]] = stack[-1]
                position += 1
            elif code == _BINGET:
                stack.append(memo[data[position]])
                position += 1
            elif code == _MARK:
                self.marks.append(stack)
                self.stack = stack = []
            elif code in _COUNTED:
                layout, size, worth, limit = _COUNTED[code]
                (count,) = layout.unpack_from(data, position)
                if count < 0 or (limit is not None and count > limit):
                    raise pickle.UnpicklingError(f"a number of {count} bytes")
                position += size + count
                is_long_number = limit is not None and count > _MAX_KEY_BYTES
                stack.append(_NEVER if is_long_number else worth)
            elif code in _ENDS:
                return position
            else:
                position = _OTHERS[code](self, position) if code in _OTHERS else _unknown(code)
                stack = self.stack
        raise EOFError("cut short")

    def items(self) -> list[int]:
        """Takes what lies above the last mark."""
        items, self.stack = self.stack, self.marks.pop()
        return items

    def take(self, count: int) -> list[int]:
        items = self.stack[-count:]
        if len(items) < count:
            raise IndexError
        del self.stack[-count:]
        return items

    def check_keys(self, keys: list[int]) -> None:
        if any(keys):
            if _NEVER in keys:
                raise pickle.UnpicklingError(
                    "a key of a dict or member of a set that is neither text nor a number nor a "
                    "short tuple of them"
                )
            self.costly_keys += sum(keys)
            if self.costly_keys > MAX_COSTLY_KEYS:
                raise pickle.UnpicklingError(
                    f"more than {MAX_COSTLY_KEYS} keys that are neither text nor numbers"
                )

    def line(self, position: int) -> tuple[bytes, int]:
        end = self.data.find(b"\n", position)
        if end < 0:
            raise EOFError("cut short in a line")
        return self.data[position:end], end + 1


def check(data: Data, start: int = 0) -> int:
    """Follows the instructions of a pickle up to its end, without making anything.

    Args:
        data: the file, in memory or mapped. Bytes after the pickle are not looked at.
        start: where the pickle begins.

    Returns:
        Where it ends.

    Raises:
        pickle.UnpicklingError, EOFError, IndexError, KeyError, struct.error, ValueError: running
            them could take endless time or memory, or they are damaged. A pickle that passes can
            still be damaged: the unpickler will say so.
    """
    return _Scan(data).run(start)


def _unknown(code: int) -> int:
    raise pickle.UnpicklingError(f"an unknown instruction ({code:#04x})")


def _worth_of_tuple(items: list[int]) -> int:
    return _NEVER if any(items) or len(items) > MAX_KEY_ITEMS else _FEW


def _tuple_of(count: int) -> Callable[[_Scan, int], int]:
    def run(scan: _Scan, position: int) -> int:
        scan.stack.append(_worth_of_tuple(scan.take(count)))
        return position

    return run


def _marked_tuple(scan: _Scan, position: int) -> int:
    items = scan.items()
    scan.stack.append(_worth_of_tuple(items))
    return position


def _marked_list(scan: _Scan, position: int) -> int:
    scan.items()
    scan.stack.append(_NEVER)
    return position


def _marked_dict(scan: _Scan, position: int) -> int:
    scan.check_keys(scan.items()[::2])
    scan.stack.append(_NEVER)
    return position


def _marked_frozenset(scan: _Scan, position: int) -> int:
    scan.check_keys(scan.items())
    scan.stack.append(_NEVER)
    return position


def _set_item(scan: _Scan, position: int) -> int:
    scan.check_keys(scan.take(2)[:1])
    return position


def _set_items(scan: _Scan, position: int) -> int:
    scan.check_keys(scan.items()[::2])
    return position


def _add_items(scan: _Scan, position: int) -> int:
    scan.check_keys(scan.items())
    return position


def _drop_items(scan: _Scan, position: int) -> int:
    scan.items()
    return position


def _pop(scan: _Scan, position: int) -> int:
    # Without a value above it, this takes the mark away.
    if scan.stack:
        scan.stack.pop()
    else:
        scan.stack = scan.marks.pop()
    return position


def _duplicate(scan: _Scan, position: int) -> int:
    scan.stack.append(scan.stack[-1])
    return position


def _drop(scan: _Scan, position: int) -> int:
    scan.take(1)
    return position


def _called(count: int) -> Callable[[_Scan, int], int]:
    """Replaces `count` values by what a call makes of them."""

    def run(scan: _Scan, position: int) -> int:
        scan.take(count)
        scan.stack.append(_FEW)
        return position

    return run


def _referred(scan: _Scan, position: int) -> int:
    """Replaces a reference by what it stands for."""
    scan.take(1)
    scan.stack.append(_NEVER)
    return position


def _called_with_marked(scan: _Scan, position: int) -> int:
    scan.items()
    scan.stack.append(_FEW)
    return position


def _named(scan: _Scan, position: int) -> int:
    for _ in range(2):  # module, name
        _, position = scan.line(position)
    scan.stack.append(_FEW)
    return position


def _named_and_called(scan: _Scan, position: int) -> int:
    scan.items()
    return _named(scan, position)


def _number_line(scan: _Scan, position: int) -> int:
    line, position = scan.line(position)
    if len(line) > _MAX_NUMBER_BYTES:
        raise pickle.UnpicklingError(f"a number of {len(line)} digits")
    scan.stack.append(_CHEAP if len(line) <= 2 * _MAX_KEY_BYTES else _NEVER)
    return position


def _float_line(scan: _Scan, position: int) -> int:
    position = _number_line(scan, position)
    scan.stack[-1] = _CHEAP
    return position


def _text_line(scan: _Scan, position: int) -> int:
    _, position = scan.line(position)
    scan.stack.append(_CHEAP)
    return position


def _put(scan: _Scan, index: int, position: int) -> int:
    # Every entry took an instruction to make, so an honest index is below its place in the file.
    if not 0 <= index < min(position, _MAX_MEMO):
        raise pickle.UnpicklingError(f"the memo's entry {index} in byte {position}")
    scan.memo[index] = scan.stack[-1]
    return position


def _long_put(scan: _Scan, position: int) -> int:
    return _put(scan, _UINT32.unpack_from(scan.data, position)[0], position + 4)


def _put_line(scan: _Scan, position: int) -> int:
    line, position = scan.line(position)
    return _put(scan, int(line[:20]), position)


def _long_get(scan: _Scan, position: int) -> int:
    scan.stack.append(scan.memo[_UINT32.unpack_from(scan.data, position)[0]])
    return position + 4


def _get_line(scan: _Scan, position: int) -> int:
    line, position = scan.line(position)
    scan.stack.append(scan.memo[int(line[:20])])
    return position


def _frame(scan: _Scan, position: int) -> int:
    # A whole frame is read at once, so its size is a request for memory.
    (size,) = _UINT64.unpack_from(scan.data, position)
    if size > len(scan.data) - position:
        raise EOFError("cut short in a frame")
    return position + 8


def _skip(size: int) -> Callable[[_Scan, int], int]:
    return lambda scan, position: position + size


def _code(opcode: bytes) -> int:
    return opcode[0]


_UINT32, _UINT64 = struct.Struct("<I"), struct.Struct("<Q")
_MARK = _code(pickle.MARK)
# At a persistent reference by a line our unpicklers refuse the file, and get no further.
_ENDS = {_code(opcode) for opcode in (pickle.STOP, pickle.PERSID)}
_MEMOIZE, _BINPUT, _BINGET = map(_code, (pickle.MEMOIZE, pickle.BINPUT, pickle.BINGET))
# Instructions that push a value: {code: (bytes of its argument, its worth)}.
_PUSHES = {
    **{_code(c): (0, _CHEAP) for c in (pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE)},
    **{_code(c): (0, _NEVER) for c in (pickle.EMPTY_LIST, pickle.EMPTY_DICT, pickle.EMPTY_SET)},
    _code(pickle.EMPTY_TUPLE): (0, _FEW),
    _code(pickle.BININT): (4, _CHEAP),
    _code(pickle.BININT1): (1, _CHEAP),
    _code(pickle.BININT2): (2, _CHEAP),
    _code(pickle.BINFLOAT): (8, _CHEAP),
    **{_code(c): (n, _FEW) for c, n in ((pickle.EXT1, 1), (pickle.EXT2, 2), (pickle.EXT4, 4))},
    _code(pickle.NEXT_BUFFER): (0, _NEVER),
}
# Instructions that push as many bytes as they say: {code: (how, in how many bytes, worth, limit)}.
_COUNTED: dict[int, tuple[struct.Struct, int, int, int | None]] = {
    **{
        _code(opcode): (struct.Struct(layout), struct.calcsize(layout), worth, limit)
        for layout, worth, limit, opcodes in (
            ("<B", _CHEAP, None, (pickle.SHORT_BINSTRING, pickle.SHORT_BINBYTES)),
            ("<B", _CHEAP, None, (pickle.SHORT_BINUNICODE,)),
            ("<I", _CHEAP, None, (pickle.BINUNICODE, pickle.BINBYTES)),
            ("<i", _CHEAP, None, (pickle.BINSTRING,)),
            ("<Q", _CHEAP, None, (pickle.BINUNICODE8, pickle.BINBYTES8)),
            ("<Q", _NEVER, None, (pickle.BYTEARRAY8,)),
            ("<B", _CHEAP, _MAX_NUMBER_BYTES, (pickle.LONG1,)),
            ("<i", _CHEAP, _MAX_NUMBER_BYTES, (pickle.LONG4,)),
        )
        for opcode in opcodes
    }
}
_OTHERS: dict[int, Callable[[_Scan, int], int]] = {
    _code(opcode): run
    for opcode, run in (
        (pickle.TUPLE1, _tuple_of(1)),
        (pickle.TUPLE2, _tuple_of(2)),
        (pickle.TUPLE3, _tuple_of(3)),
        (pickle.TUPLE, _marked_tuple),
        (pickle.LIST, _marked_list),
        (pickle.DICT, _marked_dict),
        (pickle.FROZENSET, _marked_frozenset),
        (pickle.SETITEM, _set_item),
        (pickle.SETITEMS, _set_items),
        (pickle.ADDITEMS, _add_items),
        (pickle.APPEND, _drop),
        (pickle.APPENDS, _drop_items),
        (pickle.POP, _pop),
        (pickle.POP_MARK, _drop_items),
        (pickle.DUP, _duplicate),
        (pickle.REDUCE, _called(2)),
        (pickle.BUILD, _drop),
        (pickle.BINPERSID, _referred),
        (pickle.NEWOBJ, _called(2)),
        (pickle.NEWOBJ_EX, _called(3)),
        (pickle.OBJ, _called_with_marked),
        (pickle.INST, _named_and_called),
        (pickle.GLOBAL, _named),
        (pickle.STACK_GLOBAL, _called(2)),
        (pickle.INT, _number_line),
        (pickle.LONG, _number_line),
        (pickle.FLOAT, _float_line),
        (pickle.STRING, _text_line),
        (pickle.UNICODE, _text_line),
        (pickle.PUT, _put_line),
        (pickle.LONG_BINPUT, _long_put),
        (pickle.GET, _get_line),
        (pickle.LONG_BINGET, _long_get),
        (pickle.PROTO, _skip(1)),
        (pickle.FRAME, _frame),
        (pickle.READONLY_BUFFER, _skip(0)),
    )
}
