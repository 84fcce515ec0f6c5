"""The bank: every tenant's row in one block of bytes, addressed by slot; slot 0 is the base model.

Little endian, and everything begins at a multiple of 64 bytes:
header int64 [8]: magic "PTRNBANK", version, slots, sites, bytes, row table offset, 0, 0;
row table int64 [slots]: byte offset of each slot's directory, 0 for an empty slot;
rows as in compiler/row.py, with offsets from the start of the bank, and blocks shared by rows.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from compiler.row import (
    ALIGNMENT,
    OFFSETS,
    Bytes,
    Floats,
    Integers,
    LoweredSite,
    Row,
    Site,
    aligned,
    check_row,
    directory_bytes,
    directory_of,
    pack_row,
    unpack_row,
)
from planner.errors import IncompatibleError, UsageError

__all__ = ["AdapterBank", "LoweredSite", "Row", "Site", "pack_row", "unpack_row"]

MAGIC = int.from_bytes(b"PTRNBANK", "little")
VERSION = 1
HEADER_BYTES = 64
SLOTS, BYTES, TABLE = 2, 4, 5
"""Header positions of what changes when the bank grows."""

BlockKey = tuple[str, tuple[int, ...]]


class AdapterBank:
    """Tenants in and out by one copy each; not to be changed while a run reads `array`."""

    def __init__(
        self, sites: Sequence[Site], slot_capacity: int = 16, capacity_bytes: int = 1 << 20
    ) -> None:
        self.sites = tuple(sites)
        self._slots: dict[str, int] = {}
        self._rows: dict[str, tuple[int, int, tuple[BlockKey, ...]]] = {}
        self._blocks: dict[BlockKey, tuple[int, int]] = {}
        self._users: dict[BlockKey, int] = {}
        base_directory = HEADER_BYTES
        first = base_directory + directory_bytes(self.sites)
        size = aligned(max(capacity_bytes, first + 8 * slot_capacity))
        self._array = _zeros(size)
        self._free = [(first, size - first)]
        header = [MAGIC, VERSION, 0, len(self.sites), size, 0, 0, 0]
        self._array[:HEADER_BYTES].view(np.int64)[:] = header
        self._move_table(max(slot_capacity, 1))
        self._table[0] = base_directory

    @property
    def array(self) -> Bytes:
        """The bytes the op reads; a new object after the bank has grown."""
        return self._array

    @property
    def tenants(self) -> tuple[str, ...]:
        return tuple(self._slots)

    def slot(self, name: str) -> int:
        if name not in self._slots:
            raise UsageError(
                f"unknown tenant '{name}'; tenants are {', '.join(self._slots) or 'none'}"
            )
        return self._slots[name]

    def add(self, name: str, lowered: Mapping[str, LoweredSite]) -> int:
        """The tenant's slot; raises IncompatibleError for a name, site or shape that cannot be."""
        return self.add_row(name, pack_row(self.sites, lowered))

    def add_row(self, name: str, row: Row) -> int:
        """As `add`, for a row that is packed already, perhaps memory-mapped from a file."""
        if name in self._slots:
            raise IncompatibleError(f"tenant '{name}' is in the bank already")
        check_row(self.sites, row)
        keys = tuple((key, row.shared[key].shape) for key in sorted(row.shared))
        for key in keys:
            if key in self._blocks and not np.array_equal(self._block(key), row.shared[key[0]]):
                raise IncompatibleError(f"the shared block '{key[0]}' is not the one in the bank")
        shared = [self._retain(key, row.shared[key[0]]) for key in keys]
        start = self._allocate(row.data.size)
        self._array[start : start + row.data.size] = row.data
        self._relocate(start, shared)
        slot = self._empty_slot()
        self._table[slot] = start
        self._slots[name] = slot
        self._rows[name] = (start, row.data.size, keys)
        return slot

    def remove(self, name: str) -> None:
        """Empties the slot and erases what no other tenant uses."""
        self._table[self.slot(name)] = 0
        start, size, keys = self._rows.pop(name)
        del self._slots[name]
        self._release(start, size)
        for key in keys:
            self._users[key] -= 1
            if not self._users[key]:
                del self._users[key]
                self._release(*self._blocks.pop(key))

    def lowered(self, name: str) -> dict[str, LoweredSite]:
        """What the bank holds for the tenant, as it was added."""
        self.slot(name)
        start, size, keys = self._rows[name]
        data = self._array[start : start + size].copy()
        directory = directory_of(data, len(self.sites))
        offsets = directory[:, OFFSETS]
        offsets[offsets != 0] -= start
        blocks = {self._blocks[key][0] - start: -1 - i for i, key in enumerate(keys)}
        for place, mark in blocks.items():
            offsets[offsets == place] = mark
        directory[:, OFFSETS] = offsets
        shared = {key[0]: self._block(key).copy() for key in keys}
        return unpack_row(self.sites, Row(data, shared))

    @property
    def _header(self) -> Integers:
        return self._array[:HEADER_BYTES].view(np.int64)

    @property
    def _table(self) -> Integers:
        slots, start = int(self._header[SLOTS]), int(self._header[TABLE])
        return self._array[start : start + 8 * slots].view(np.int64)

    def _block(self, key: BlockKey) -> Floats:
        start, _ = self._blocks[key]
        rows, width = key[1]
        return self._array[start : start + 4 * rows * width].view(np.float32).reshape(rows, width)

    def _retain(self, key: BlockKey, block: Floats) -> int:
        """Where the shared block lies, put there when this is its first user."""
        if key not in self._blocks:
            size = aligned(block.nbytes)
            self._blocks[key] = (self._allocate(size), size)
            self._block(key)[...] = block
        self._users[key] = self._users.get(key, 0) + 1
        return self._blocks[key][0]

    def _relocate(self, start: int, shared: Sequence[int]) -> None:
        """Turns the row's own offsets, and its shared block numbers, into offsets in the bank."""
        directory = directory_of(self._array, len(self.sites), start)
        offsets = directory[:, OFFSETS]
        places = np.asarray([*shared, 0], np.int64)
        own = np.where(offsets > 0, offsets + start, 0)
        directory[:, OFFSETS] = np.where(offsets < 0, places[np.maximum(-1 - offsets, 0)], own)

    def _empty_slot(self) -> int:
        empty = np.flatnonzero(self._table == 0)
        if not empty.size:
            self._move_table(2 * len(self._table))
            empty = np.flatnonzero(self._table == 0)
        return int(empty[0])

    def _move_table(self, slots: int) -> None:
        """Gives the row table that many slots, elsewhere in the bank."""
        old, place = self._table.copy(), int(self._header[TABLE])
        start = self._allocate(aligned(8 * slots))
        self._header[SLOTS], self._header[TABLE] = slots, start
        self._table[: len(old)] = old
        if place:
            self._release(place, aligned(8 * len(old)))

    def _allocate(self, size: int) -> int:
        """The first free run that is long enough, in a larger array when there is none."""
        for index, (start, length) in enumerate(self._free):
            if length >= size:
                self._free[index : index + 1] = (
                    [(start + size, length - size)] if length > size else []
                )
                return start
        self._grow(size)
        return self._allocate(size)

    def _grow(self, size: int) -> None:
        old = self._array
        self._array = _zeros(aligned(max(2 * old.size, old.size + size)))
        self._array[: old.size] = old
        self._header[BYTES] = self._array.size
        self._mark_free(old.size, self._array.size - old.size)

    def _release(self, start: int, size: int) -> None:
        # Zeros, so that a removed tenant's weights do not stay in memory.
        self._array[start : start + size] = 0
        self._mark_free(start, size)

    def _mark_free(self, start: int, size: int) -> None:
        merged: list[tuple[int, int]] = []
        for begin, length in sorted([*self._free, (start, size)]):
            if merged and sum(merged[-1]) == begin:
                merged[-1] = (merged[-1][0], merged[-1][1] + length)
            else:
                merged.append((begin, length))
        self._free = merged


def _zeros(size: int) -> Bytes:
    """uint8 [size] that begins at a multiple of 64."""
    raw = np.zeros(size + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size]
