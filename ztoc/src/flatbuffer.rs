//! Reading FlatBuffers in place: one table, its slots, its strings and vectors, straight from the bytes.
//!
//! Nothing is copied and nothing is trusted: every position is checked against the end of the bytes each time
//! it is used. So a memory map whose file changes underneath yields wrong values, never a panic. `None` means
//! that the bytes are not a FlatBuffer here; a slot that is absent has its default. Alignment is not insisted
//! on, UTF-8 neither: strings are bytes.

/// One table at a known place.
#[derive(Clone, Copy)]
pub(crate) struct Table<'a> {
    bytes: &'a [u8],
    at: usize,
    vtable: usize,
    vtable_len: usize,
}

impl<'a> Table<'a> {
    /// The table that the first four bytes point to.
    pub(crate) fn root(bytes: &'a [u8]) -> Option<Table<'a>> {
        Table::at(bytes, u32_at(bytes, 0)? as usize)
    }

    /// The table at a position.
    pub(crate) fn at(bytes: &'a [u8], at: usize) -> Option<Table<'a>> {
        let distance = i64::from(i32::from_le_bytes(array(bytes, at)?));
        let vtable = usize::try_from(i64::try_from(at).ok()?.checked_sub(distance)?).ok()?;
        let vtable_len = usize::from(u16_at(bytes, vtable)?);
        let end = vtable.checked_add(vtable_len)?;
        (vtable_len >= 4 && end <= bytes.len()).then_some(Table { bytes, at, vtable, vtable_len })
    }

    /// Where the table is.
    pub(crate) fn position(&self) -> usize {
        self.at
    }

    /// The place of a slot's value; `Some(None)` when the slot is absent.
    fn slot(&self, slot: usize) -> Option<Option<usize>> {
        let entry = 4 + 2 * slot;
        if entry + 2 > self.vtable_len {
            return Some(None);
        }
        match u16_at(self.bytes, self.vtable + entry)? {
            0 => Some(None),
            offset => Some(Some(self.at.checked_add(usize::from(offset))?)),
        }
    }

    fn scalar<const N: usize>(&self, slot: usize) -> Option<Option<[u8; N]>> {
        match self.slot(slot)? {
            None => Some(None),
            Some(at) => Some(Some(array(self.bytes, at)?)),
        }
    }

    pub(crate) fn i8(&self, slot: usize, default: i8) -> Option<i8> {
        Some(self.scalar(slot)?.map_or(default, i8::from_le_bytes))
    }

    pub(crate) fn i32(&self, slot: usize) -> Option<i32> {
        Some(self.scalar(slot)?.map_or(0, i32::from_le_bytes))
    }

    pub(crate) fn u32(&self, slot: usize) -> Option<u32> {
        Some(self.scalar(slot)?.map_or(0, u32::from_le_bytes))
    }

    pub(crate) fn i64(&self, slot: usize) -> Option<i64> {
        Some(self.scalar(slot)?.map_or(0, i64::from_le_bytes))
    }

    /// What an offset slot points to.
    fn target(&self, slot: usize) -> Option<Option<usize>> {
        match self.slot(slot)? {
            None => Some(None),
            Some(at) => Some(Some(indirect(self.bytes, at)?)),
        }
    }

    /// A string, or a vector of bytes; empty when absent. Always a part of the bytes that are read, so that its
    /// place in them can be told.
    pub(crate) fn bytes(&self, slot: usize) -> Option<&'a [u8]> {
        self.target(slot)?.map_or(self.bytes.get(..0), |at| bytes_at(self.bytes, at))
    }

    /// A table; `Some(None)` when absent.
    pub(crate) fn table(&self, slot: usize) -> Option<Option<Table<'a>>> {
        match self.target(slot)? {
            None => Some(None),
            Some(at) => Some(Some(Table::at(self.bytes, at)?)),
        }
    }

    /// A vector of offsets; empty when absent.
    pub(crate) fn vector(&self, slot: usize) -> Option<Vector<'a>> {
        let Some(at) = self.target(slot)? else {
            return Some(Vector { bytes: self.bytes, at: 0, len: 0 });
        };
        let len = u32_at(self.bytes, at)? as usize;
        let start = at.checked_add(4)?;
        let end = start.checked_add(len.checked_mul(4)?)?;
        (end <= self.bytes.len()).then_some(Vector { bytes: self.bytes, at: start, len })
    }
}

/// A vector of offsets: to tables or to strings.
#[derive(Clone, Copy)]
pub(crate) struct Vector<'a> {
    bytes: &'a [u8],
    at: usize,
    len: usize,
}

impl<'a> Vector<'a> {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    fn target(&self, index: usize) -> Option<usize> {
        if index >= self.len {
            return None;
        }
        indirect(self.bytes, self.at + 4 * index)
    }

    pub(crate) fn table(&self, index: usize) -> Option<Table<'a>> {
        Table::at(self.bytes, self.target(index)?)
    }

    pub(crate) fn string(&self, index: usize) -> Option<&'a [u8]> {
        bytes_at(self.bytes, self.target(index)?)
    }
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk::<N>().copied()
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    array(bytes, at).map(u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    array(bytes, at).map(u32::from_le_bytes)
}

fn indirect(bytes: &[u8], at: usize) -> Option<usize> {
    at.checked_add(u32_at(bytes, at)? as usize)
}

fn bytes_at(bytes: &[u8], at: usize) -> Option<&[u8]> {
    let len = u32_at(bytes, at)? as usize;
    let start = at.checked_add(4)?;
    bytes.get(start..start.checked_add(len)?)
}
