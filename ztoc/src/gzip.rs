//! Random access into gzip: finding the places where an inflater can start, and starting there.
//!
//! `Scanner` inflates a whole layer once, in pieces of any size, and stops where checkpoints belong. The first is after
//! the first header. Each other one is after the first block (or member header) with more than `span_size` bytes since
//! the last one. `Resumed` inflates from a checkpoint.
//!
//! A layer may be many gzip members one after another. The window of a checkpoint is the last 32768 bytes of the whole
//! output, not of its member, with zeros in front while there are fewer. Bytes in, bytes out: nothing here knows tars or
//! digests.

pub(crate) mod header;
mod inflate;

use std::mem;

use crate::error::Error;
use inflate::{At, Inflater, Stop, Wrapper};

pub(crate) use inflate::WINDOW;

/// The trailer of a gzip member: checksum and length.
const TRAILER: usize = 8;

/// How much is inflated before it is handed on: large enough to make calls rare, small enough for the caches.
const OUTPUT: usize = 256 * 1024;

/// A place where an inflater can start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Checkpoint {
    /// Compressed offset of the first byte of which nothing is used yet.
    pub(crate) input: u64,
    /// Uncompressed offset.
    pub(crate) output: u64,
    /// How many (high) bits of the byte before `input` are not used yet, 0 to 7.
    pub(crate) bits: u8,
}

impl Checkpoint {
    /// Where the compressed bytes of its span begin: a byte earlier if that byte is shared.
    pub(crate) fn first_byte(&self) -> u64 {
        self.input.saturating_sub(u64::from(self.bits != 0))
    }
}

/// What [`Scanner::advance`] came to.
pub(crate) enum Step {
    /// The output buffer is full: take what is in it, and exchange it.
    BufferFull,
    /// A checkpoint. Its `input` counts what was consumed up to here.
    Checkpoint(Checkpoint),
    /// All of the input is consumed.
    NeedsInput,
}

/// Inflates a layer from its start and stops at every checkpoint.
pub(crate) struct Scanner {
    inflater: Inflater,
    span_size: u64,
    total_in: u64,
    total_out: u64,
    checkpoints: u64,
    last_output: u64,
    between_members: bool,
    /// A member has ended, and nothing has come out of the one behind it.
    is_behind_member: bool,
    /// [`WINDOW`] bytes of history, then the output up to `filled`, of which the bytes up to `taken` were taken.
    buffer: Vec<u8>,
    taken: usize,
    filled: usize,
    /// The end of a buffer, while it is exchanged.
    history: Box<[u8]>,
}

impl Scanner {
    /// Where in a buffer the output begins.
    pub(crate) const OUTPUT_START: usize = WINDOW;

    pub(crate) fn new(span_size: u64) -> Scanner {
        Scanner {
            inflater: Inflater::new(Wrapper::Gzip),
            span_size,
            total_in: 0,
            total_out: 0,
            checkpoints: 0,
            last_output: 0,
            between_members: false,
            is_behind_member: false,
            buffer: vec![0; WINDOW + OUTPUT],
            taken: WINDOW,
            filled: WINDOW,
            history: vec![0; WINDOW].into(),
        }
    }

    /// Goes on with `input`, which is moved past what was consumed.
    pub(crate) fn advance(&mut self, input: &mut &[u8]) -> Result<Step, Error> {
        loop {
            if self.filled == self.buffer.len() {
                return Ok(Step::BufferFull);
            }
            if self.between_members && !input.is_empty() {
                self.inflater.reset(Wrapper::Gzip);
                self.between_members = false;
                self.is_behind_member = true;
            }
            let (stop, room) = self.stop_and_room();
            let output = &mut self.buffer[self.filled..self.filled + room];
            let progress = match self.inflater.inflate(input, output, stop) {
                Err(_) if self.is_behind_member => {
                    return Err(Error::corrupt(
                        "inflate: something that is not gzip follows the gzip stream",
                    ));
                }
                progress => progress?,
            };
            *input = &input[progress.consumed..];
            self.is_behind_member &= progress.produced == 0;
            self.filled += progress.produced;
            self.total_in += progress.consumed as u64;
            self.total_out += progress.produced as u64;
            match progress.at {
                At::Block { bits } if self.due() => return Ok(Step::Checkpoint(self.checkpoint(bits))),
                At::Block { .. } => {}
                At::StreamEnd => {
                    self.between_members = true;
                    if input.is_empty() {
                        return Ok(Step::NeedsInput);
                    }
                }
                // with room left, it is input that was missing
                At::Middle if progress.produced < room && input.is_empty() => return Ok(Step::NeedsInput),
                At::Middle if progress.produced == 0 && progress.consumed == 0 => {
                    return Err(Error::corrupt("inflate: no progress"));
                }
                At::Middle => {}
            }
        }
    }

    /// Stopping at blocks costs time, so it is done only where a checkpoint can be: before the first byte of
    /// output, and from `span_size` bytes after the last checkpoint on.
    fn stop_and_room(&self) -> (Stop, usize) {
        let room = self.buffer.len() - self.filled;
        let before_due = self.span_size.saturating_sub(self.total_out - self.last_output);
        if self.total_out == 0 || before_due == 0 {
            return (Stop::Block, room);
        }
        (Stop::StreamEnd, room.min(usize::try_from(before_due).unwrap_or(usize::MAX)))
    }

    fn due(&self) -> bool {
        self.total_out == 0 || self.total_out - self.last_output > self.span_size
    }

    fn checkpoint(&mut self, bits: u8) -> Checkpoint {
        self.last_output = self.total_out;
        self.checkpoints += 1;
        Checkpoint { input: self.total_in, output: self.total_out, bits }
    }

    /// The 32768 bytes before the place reached.
    pub(crate) fn window(&self) -> &[u8] {
        &self.buffer[self.filled - WINDOW..self.filled]
    }

    /// The bytes inflated since the last call.
    pub(crate) fn take_output(&mut self) -> &[u8] {
        let start = mem::replace(&mut self.taken, self.filled);
        &self.buffer[start..self.filled]
    }

    /// Goes on with another buffer of the same length, which `give` gives for the full one.
    pub(crate) fn exchange(&mut self, give: impl FnOnce(Vec<u8>) -> Vec<u8>) {
        let len = self.buffer.len();
        self.history.copy_from_slice(&self.buffer[self.filled - WINDOW..self.filled]);
        self.buffer = give(mem::take(&mut self.buffer));
        self.buffer.resize(len, 0);
        self.buffer[..WINDOW].copy_from_slice(&self.history);
        (self.taken, self.filled) = (WINDOW, WINDOW);
    }

    /// All the output that is in the buffer, taken or not.
    pub(crate) fn output(&self) -> &[u8] {
        &self.buffer[WINDOW..self.filled]
    }

    /// Makes sure that the input ended where a member ends.
    pub(crate) fn finish(&self) -> Result<(), Error> {
        if self.between_members {
            Ok(())
        } else {
            Err(Error::corrupt("inflate: unexpected end of the stream"))
        }
    }
}

/// Where [`Resumed`] ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Until {
    /// After so many bytes; fewer are an error.
    Bytes(u64),
    /// At the end of the input, which must be the end of a member; more bytes than this are an error.
    End { limit: u64 },
}

/// Inflating from a checkpoint on, piece by piece.
pub(crate) struct Resumed<'a> {
    inflater: Inflater,
    input: &'a [u8],
    until: Until,
    /// Bytes that may still come.
    left: u64,
    /// Entered raw, the first member leaves its trailer; the others are checked and eat theirs.
    trailer: usize,
    done: bool,
}

impl<'a> Resumed<'a> {
    /// `compressed` begins at [`Checkpoint::first_byte`].
    pub(crate) fn new(
        checkpoint: Checkpoint,
        window: &[u8],
        compressed: &'a [u8],
        until: Until,
    ) -> Result<Self, Error> {
        let left = match until {
            Until::Bytes(bytes) => bytes,
            // one byte more than allowed, to notice it
            Until::End { limit } => limit.saturating_add(1),
        };
        let mut input = compressed;
        let mut inflater = Inflater::new(Wrapper::Raw);
        if left > 0 {
            let mut value = 0;
            if checkpoint.bits != 0 {
                let (first, rest) = input.split_first().ok_or_else(short)?;
                value = first >> (8 - checkpoint.bits);
                input = rest;
            }
            inflater.enter(checkpoint.bits, value, window)?;
        }
        Ok(Self { inflater, input, until, left, trailer: TRAILER, done: left == 0 })
    }

    /// Appends what comes next to `out`, at most what it has room for (some is made where it has none). False
    /// when all has come.
    pub(crate) fn more(&mut self, out: &mut Vec<u8>) -> Result<bool, Error> {
        if self.done {
            return Ok(false);
        }
        let progress = self.inflater.append(self.input, out, self.left)?;
        self.input = &self.input[progress.consumed..];
        self.left -= progress.produced as u64;
        if self.left == 0 {
            self.done = true;
            return match self.until {
                Until::Bytes(_) => Ok(false),
                Until::End { .. } => Err(Error::too_large("inflate span: more bytes than the limit")),
            };
        }
        if progress.at == At::StreamEnd {
            self.input = self.input.get(self.trailer..).ok_or_else(short)?;
            self.trailer = 0;
            if self.input.is_empty() {
                self.done = true;
                return if matches!(self.until, Until::End { .. }) { Ok(false) } else { Err(short()) };
            }
            self.inflater.reset(Wrapper::Gzip);
        } else if progress.consumed == 0 && progress.produced == 0 {
            return Err(short());
        }
        Ok(true)
    }
}

fn short() -> Error {
    Error::corrupt("inflate span: the stream ends early")
}

#[cfg(test)]
mod tests;
