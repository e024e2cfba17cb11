//! The one raw zlib stream: a safe face over `libz-rs-sys`, and the only `unsafe` of this crate.
//!
//! What is needed here (stop at the end of a deflate block, report the bit position, enter a stream in its
//! middle) exists only in zlib's C interface. An [`Inflater`] owns its stream; no other value has a pointer to
//! it, and pointers into the caller's slices are cleared before a call returns.
//!
//! How much `inflate` reads or writes is bounded by the lengths of the slices given with each call.
#![allow(unsafe_code)]

use std::ffi::c_int;
use std::mem::MaybeUninit;

use libz_rs_sys as zlib;

use crate::error::Error;

/// How far back deflate can refer, and the length of a checkpoint's window.
pub(crate) const WINDOW: usize = 32768;

/// What is wrapped around the deflate stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wrapper {
    /// A gzip header before, and a trailer after that is compared with what was inflated.
    Gzip,
    /// Nothing: the bytes begin in the deflate stream, and what follows it is not read.
    Raw,
}

impl Wrapper {
    fn window_bits(self) -> c_int {
        match self {
            Wrapper::Gzip => 15 + 16,
            Wrapper::Raw => -15,
        }
    }
}

/// Where a call may stop beside the ends of its input and its output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// At the end of the stream only.
    StreamEnd,
    /// After a header and after every deflate block too.
    Block,
}

/// Where a call did stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum At {
    /// Out of input, or out of room.
    Middle,
    /// After a header, or after a block that is not the last of its stream: an inflater can start here.
    /// `bits` (0 to 7) of the last byte consumed are not used yet.
    Block { bits: u8 },
    /// After the last byte of a stream.
    StreamEnd,
}

/// What a call did.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Progress {
    pub(crate) consumed: usize,
    pub(crate) produced: usize,
    pub(crate) at: At,
}

/// An inflating stream.
pub(crate) struct Inflater {
    // boxed, because zlib's implementations may keep the address of the stream
    stream: Box<zlib::z_stream>,
}

// SAFETY: the raw pointers in the stream lead to the state that `inflateInit2_` allocated, which belongs to
// this value alone and has no tie to a thread; `next_in` and `next_out` are null between calls.
unsafe impl Send for Inflater {}
// SAFETY: no method takes `&self`.
unsafe impl Sync for Inflater {}

impl Inflater {
    pub(crate) fn new(wrapper: Wrapper) -> Inflater {
        let mut stream = Box::new(zlib::z_stream::default());
        // SAFETY: the stream is a valid `z_stream` with the default allocator; version and size are those of
        // the library it is linked with.
        let code = unsafe {
            zlib::inflateInit2_(
                &raw mut *stream,
                wrapper.window_bits(),
                zlib::zlibVersion(),
                const { size_of::<zlib::z_stream>() as u32 }.cast_signed(),
            )
        };
        // it can fail for want of memory, which ends a Rust program anyway, and for wrong arguments
        assert_eq!(code, zlib::Z_OK, "inflateInit2 with constant arguments");
        Inflater { stream }
    }

    /// Begins a new stream.
    pub(crate) fn reset(&mut self, wrapper: Wrapper) {
        // SAFETY: the stream was initialized by `new`.
        let code = unsafe { zlib::inflateReset2(&raw mut *self.stream, wrapper.window_bits()) };
        assert_eq!(code, zlib::Z_OK, "inflateReset2 with constant arguments");
    }

    /// Enters a raw stream in its middle: with the `bits` bits that precede the next byte (`value` in the low
    /// bits), and the last [`WINDOW`] bytes of output. To be called on a new or a reset raw stream.
    pub(crate) fn enter(&mut self, bits: u8, value: u8, window: &[u8]) -> Result<(), Error> {
        debug_assert!(bits < 8 && window.len() <= WINDOW);
        // SAFETY: the stream was initialized by `new`.
        let primed =
            unsafe { zlib::inflatePrime(&raw mut *self.stream, c_int::from(bits), c_int::from(value)) };
        // at most `WINDOW` bytes are used; the cast cannot truncate what is a constant at every caller
        let len = window.len().min(WINDOW) as u32;
        // SAFETY: as above, and `window` is readable for its length; it is copied during the call.
        let set = unsafe { zlib::inflateSetDictionary(&raw mut *self.stream, window.as_ptr(), len) };
        if primed == zlib::Z_OK && set == zlib::Z_OK {
            Ok(())
        } else {
            Err(Error::corrupt("resume inflating: checkpoint not accepted"))
        }
    }

    /// Inflates from `input` to `output` as far as either reaches.
    pub(crate) fn inflate(&mut self, input: &[u8], output: &mut [u8], stop: Stop) -> Result<Progress, Error> {
        // SAFETY: initialized bytes are a special case of perhaps initialized bytes, and zlib writes only
        // initialized ones.
        let room = unsafe { &mut *(std::ptr::from_mut(output) as *mut [MaybeUninit<u8>]) };
        self.run(input, room, stop)
    }

    /// Inflates at most `limit` bytes more to the end of `output`, growing it as bytes come, not before.
    pub(crate) fn append(
        &mut self,
        input: &[u8],
        output: &mut Vec<u8>,
        limit: u64,
    ) -> Result<Progress, Error> {
        if output.capacity() == output.len() {
            output.reserve(64 * 1024);
        }
        let room = output.spare_capacity_mut();
        let room_len = room.len().min(usize::try_from(limit).unwrap_or(usize::MAX));
        let progress = self.run(input, &mut room[..room_len], Stop::StreamEnd)?;
        // SAFETY: the stream has written `produced` bytes to the front of the spare capacity.
        unsafe { output.set_len(output.len() + progress.produced) };
        Ok(progress)
    }

    fn run(&mut self, input: &[u8], room: &mut [MaybeUninit<u8>], stop: Stop) -> Result<Progress, Error> {
        // zlib counts in 32 bits; what is cut off here is left for the next call
        let input_len = u32::try_from(input.len()).unwrap_or(u32::MAX);
        let room_len = u32::try_from(room.len()).unwrap_or(u32::MAX);
        let stream = &mut *self.stream;
        stream.next_in = input.as_ptr();
        stream.avail_in = input_len;
        stream.next_out = room.as_mut_ptr().cast();
        stream.avail_out = room_len;
        let flush = match stop {
            Stop::StreamEnd => zlib::Z_NO_FLUSH,
            Stop::Block => zlib::Z_BLOCK,
        };
        // SAFETY: the stream was initialized by `new`; `next_in` is readable and `next_out` writable for the
        // lengths given, which are at most those of the slices.
        let code = unsafe { zlib::inflate(stream, flush) };
        stream.next_in = std::ptr::null();
        stream.next_out = std::ptr::null_mut();
        let consumed = (input_len - stream.avail_in) as usize;
        let produced = (room_len - stream.avail_out) as usize;
        let at = match code {
            zlib::Z_STREAM_END => At::StreamEnd,
            // bit 7: after a header or a block; bit 6: in the last block; the low bits: how many are unused.
            // Without `Z_BLOCK` bit 7 can mean that the input ended before a block: not a place to stop. A
            // block may end in bits consumed by an earlier call: that is "no progress" and a place to stop.
            zlib::Z_OK | zlib::Z_BUF_ERROR if stop == Stop::Block && stream.data_type & 0xc0 == 0x80 => {
                At::Block { bits: (stream.data_type & 7) as u8 }
            }
            // "no progress" otherwise says that input or room is missing
            zlib::Z_OK | zlib::Z_BUF_ERROR => At::Middle,
            _ => return Err(Error::corrupt("inflate: not a gzip stream, or a damaged one")),
        };
        Ok(Progress { consumed, produced, at })
    }
}

impl Drop for Inflater {
    fn drop(&mut self) {
        // SAFETY: the stream was initialized by `new` and is not used afterwards.
        unsafe { zlib::inflateEnd(&raw mut *self.stream) };
    }
}
