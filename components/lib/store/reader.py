"""A seekable file over an object, for decoders that jump around in it.

Blocks are fetched by ranged requests. A read that continues where the last one ended makes the
next blocks come ahead of time; a jump costs one block. A handful of blocks is kept, so memory
stays at `KEEP` x `BLOCK` per open file whatever the object's size. When an object is read from
start to end without a jump its sha256 is checked at the end; after a jump it cannot be.
"""

from __future__ import annotations

import hashlib
import io
from collections import OrderedDict
from concurrent.futures import Future
from typing import Any

from components.lib.store.errors import StoreError, corrupt
from components.lib.store.session import ObjectInfo, Session

BLOCK = 4 << 20
AHEAD = 2
KEEP = 6


class ObjectReader(io.RawIOBase):
    """Raw reader over one object; `open_reader` adds buffering for small reads."""

    def __init__(self, session: Session, info: ObjectInfo) -> None:
        super().__init__()
        self.session, self.info = session, info
        self.name = info.uri
        self.position = 0
        self.blocks: OrderedDict[int, Future[bytes]] = OrderedDict()
        self.last_block = -1
        self.digest: Any = hashlib.sha256() if info.sha256 else None
        self.hashed = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.info.bytes}[whence]
        if base + offset < 0:
            raise ValueError("seek before the start of the object")
        self.position = base + offset
        return self.position

    def readinto(self, target: Any) -> int:
        if self.closed:
            raise ValueError("read of a closed object")
        if self.position >= self.info.bytes or len(target) == 0:
            return 0
        index, offset = divmod(self.position, BLOCK)
        block = self._block(index)
        piece = memoryview(block)[offset : offset + len(target)]
        target[: len(piece)] = piece
        self._hash(piece)
        self.position += len(piece)
        return len(piece)

    def _hash(self, piece: memoryview) -> None:
        if self.digest is None or self.position > self.hashed:
            self.digest = None
            return
        fresh = piece[self.hashed - self.position :]
        self.digest.update(fresh)
        self.hashed += len(fresh)
        if self.hashed == self.info.bytes:
            got, self.digest = self.digest.hexdigest(), None
            if got != self.info.sha256:
                raise corrupt(self.info.uri, str(self.info.sha256), got)

    def _block(self, index: int) -> bytes:
        wanted = [index]
        if index == self.last_block + 1 or index == self.last_block:
            last = (self.info.bytes - 1) // BLOCK
            wanted += [ahead for ahead in range(index + 1, index + 1 + AHEAD) if ahead <= last]
        self.last_block = index
        for each in wanted:
            if each not in self.blocks:
                self.blocks[each] = self.session.leaf.submit(self._fetch, each)
            self.blocks.move_to_end(each)
        while len(self.blocks) > KEEP:
            self.blocks.popitem(last=False)[1].cancel()
        try:
            with self.session.interruptible():
                return self.blocks[index].result()
        except StoreError:
            del self.blocks[index]
            raise

    def _fetch(self, index: int) -> bytes:
        start = index * BLOCK
        length = min(BLOCK, self.info.bytes - start)
        return self.session.read_range(self.info.uri, start, length, self.info.etag)

    def close(self) -> None:
        for future in self.blocks.values():
            future.cancel()
        self.blocks.clear()
        super().close()


def open_reader(session: Session, info: ObjectInfo) -> io.BufferedReader:
    """A buffered reader over the object that ``info`` describes."""
    return io.BufferedReader(ObjectReader(session, info), buffer_size=256 << 10)
