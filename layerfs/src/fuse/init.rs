//! FUSE_INIT by hand: the kernel's request, the reply to it, and a copy of the request for a later process.
//!
//! The kernel sends it once in the life of a connection, and what is agreed cannot be changed afterwards. The process
//! that mounts replies, keeps the agreed [`Parameters`], and hands them to each process that serves. The library that
//! serves expects the request, so it gets a copy that offers no more than was agreed. Bytes in, values out: no
//! descriptor here.

use fuser::{InitFlags, KernelConfig};
use serde::{Deserialize, Serialize};

/// Features that every process asks for, where the kernel has them.
const WANTED: InitFlags = InitFlags::FUSE_ASYNC_READ
    .union(InitFlags::FUSE_PARALLEL_DIROPS)
    .union(InitFlags::FUSE_DO_READDIRPLUS)
    .union(InitFlags::FUSE_CACHE_SYMLINKS)
    .union(InitFlags::FUSE_NO_OPEN_SUPPORT)
    .union(InitFlags::FUSE_NO_OPENDIR_SUPPORT)
    .union(InitFlags::FUSE_MAX_PAGES)
    .union(InitFlags::FUSE_ALLOW_IDMAP)
    .union(InitFlags::FUSE_HAS_RESEND);
/// Fewer, larger reads; the kernel allows 1 MiB without a sysctl.
pub(crate) const LARGEST_READ: u32 = 1 << 20;
/// The maximum: once this many reads wait for bytes, reads of stored bytes wait behind them.
const MAX_BACKGROUND: u16 = u16::MAX;
/// From this many on the kernel calls the connection congested; three quarters, as by default.
const CONGESTED: u16 = (MAX_BACKGROUND as u32 * 3 / 4) as u16;

const MAJOR: u32 = 7;
/// The newest minor version that `fuser` writes replies for.
const MINOR: u32 = 40;
/// From this version on INIT has the layout below.
const OLDEST_MINOR: u32 = 23;
const INIT: u32 = 26;
const REQUEST_HEADER: usize = 40;
const REPLY_HEADER: usize = 16;
const INIT_IN: usize = 64;
const INIT_OUT: usize = 64;
/// The number of the copied request.
pub(crate) const OWN: u64 = 1;

/// A notification: put every request that was read and not answered back into the queue. Since Linux 6.9.
pub(crate) const RESEND: [u8; 16] = {
    let (length, code) = (16_u32.to_ne_bytes(), 7_u32.to_ne_bytes());
    let mut message = [0; 16];
    let mut at = 0;
    while at < 4 {
        (message[at], message[at + 4]) = (length[at], code[at]);
        at += 1;
    }
    message
};

/// The parameters agreed with the kernel when the connection was made: all that a process needs beside the
/// descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parameters {
    /// The kernel's version of the protocol.
    major: u32,
    minor: u32,
    /// As the kernel offered it.
    max_readahead: u32,
    /// The features that were wanted and that the kernel has.
    flags: u32,
    flags2: u32,
}

impl Parameters {
    fn flags(&self) -> InitFlags {
        InitFlags::from_bits_retain(u64::from(self.flags) | u64::from(self.flags2) << 32)
    }

    /// Whether the kernel can queue again the requests that a dead process took.
    pub(crate) fn can_resend(&self) -> bool {
        self.flags().contains(InitFlags::FUSE_HAS_RESEND)
    }

    /// Wanted features that the kernel lacks.
    pub(crate) fn lacks(&self) -> InitFlags {
        WANTED - self.flags()
    }
}

/// Reads the kernel's request: its number, and the agreed parameters. `None`: it is no INIT, or one that is too old.
pub(crate) fn agree(request: &[u8]) -> Option<(u64, Parameters)> {
    let (header, body) = request.split_at_checked(REQUEST_HEADER)?;
    let (major, minor) = (word(body, 0)?, word(body, 1)?);
    if word(header, 1)? != INIT || major != MAJOR || minor < OLDEST_MINOR {
        return None;
    }
    let unique = u64::from_ne_bytes(header.get(8..16)?.try_into().ok()?);
    let offered = InitFlags::from_bits_retain(word(body, 3)?.into());
    let extended = offered.contains(InitFlags::FUSE_INIT_EXT);
    let more = if extended { word(body, 4)? } else { 0 };
    let offered = offered | InitFlags::from_bits_retain(u64::from(more) << 32);
    let agreed = (offered & (WANTED | InitFlags::FUSE_INIT_EXT)).bits();
    let parameters = Parameters {
        major,
        minor,
        max_readahead: word(body, 2)?,
        flags: agreed as u32,
        flags2: (agreed >> 32) as u32,
    };
    Some((unique, parameters))
}

/// The reply to the kernel.
pub(crate) fn answer(unique: u64, agreed: &Parameters) -> Vec<u8> {
    let max_readahead = agreed.max_readahead.min(LARGEST_READ);
    let pages = u32::try_from(rustix::param::page_size()).unwrap_or(4096);
    let largest = u16::try_from(LARGEST_READ.div_ceil(pages)).unwrap_or(u16::MAX);
    let mut message = Vec::with_capacity(REPLY_HEADER + INIT_OUT);
    words(&mut message, &[(REPLY_HEADER + INIT_OUT) as u32, 0]);
    message.extend_from_slice(&unique.to_ne_bytes());
    words(&mut message, &[MAJOR, MINOR, max_readahead, agreed.flags]);
    halves(&mut message, &[MAX_BACKGROUND, CONGESTED]);
    // Files are not written; the largest read follows from the pages. Times have nanoseconds.
    words(&mut message, &[LARGEST_READ, 1]);
    halves(&mut message, &[largest, 0]);
    words(&mut message, &[agreed.flags2]);
    message.resize(REPLY_HEADER + INIT_OUT, 0);
    message
}

/// A copy of the kernel's request that offers no more than was agreed.
pub(crate) fn question(agreed: &Parameters) -> Vec<u8> {
    let mut message = Vec::with_capacity(REQUEST_HEADER + INIT_IN);
    words(&mut message, &[(REQUEST_HEADER + INIT_IN) as u32, INIT]);
    message.extend_from_slice(&OWN.to_ne_bytes());
    message.resize(REQUEST_HEADER, 0);
    words(&mut message, &[agreed.major, agreed.minor, agreed.max_readahead, agreed.flags, agreed.flags2]);
    message.resize(REQUEST_HEADER + INIT_IN, 0);
    message
}

/// Configures the library that serves, so that its reply is that of [`answer`].
pub(super) fn configure(config: &mut KernelConfig) {
    let _ = config.add_capabilities(WANTED & config.capabilities());
    let _ = config.set_max_write(LARGEST_READ);
    if let Err(largest) = config.set_max_readahead(LARGEST_READ) {
        let _ = config.set_max_readahead(largest);
    }
    let _ = config.set_max_background(MAX_BACKGROUND);
    let _ = config.set_congestion_threshold(CONGESTED);
}

fn word(bytes: &[u8], index: usize) -> Option<u32> {
    let at = index * 4;
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn words(message: &mut Vec<u8>, words: &[u32]) {
    words.iter().for_each(|word| message.extend_from_slice(&word.to_ne_bytes()));
}

fn halves(message: &mut Vec<u8>, halves: &[u16]) {
    halves.iter().for_each(|half| message.extend_from_slice(&half.to_ne_bytes()));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A request as a kernel sends it, offering these features.
    fn request(minor: u32, offered: u64, length: usize) -> Vec<u8> {
        let kernel = Parameters {
            major: MAJOR,
            minor,
            max_readahead: 128 << 10,
            flags: offered as u32,
            flags2: (offered >> 32) as u32,
        };
        let mut message = question(&kernel);
        message[8..16].copy_from_slice(&77_u64.to_ne_bytes());
        message.truncate(length);
        message
    }

    #[test]
    fn wanted_features_that_the_kernel_offers_are_agreed() {
        let all = WANTED.bits();
        let extended = InitFlags::FUSE_INIT_EXT.bits();
        let beyond = InitFlags::FUSE_WRITEBACK_CACHE.bits();
        let low = all & u64::from(u32::MAX);
        let rows = [
            ("all", request(40, all | extended | beyond, 104), Some(all | extended)),
            ("a newer kernel", request(45, all | extended, 104), Some(all | extended)),
            ("without the second word", request(36, all, 104), Some(low)),
            ("a short request", request(31, low, 56), Some(low)),
            ("nothing", request(31, 0, 56), Some(0)),
            ("too old", request(22, low, 56), None),
            ("cut", request(31, low, 50), None),
            ("no request", Vec::new(), None),
        ];
        for (name, request, expected) in rows {
            let agreed = agree(&request);
            assert_eq!(agreed.map(|(_, agreed)| agreed.flags().bits()), expected, "{name}");
            assert!(agreed.is_none_or(|(unique, agreed)| unique == 77 && agreed.max_readahead == 128 << 10));
        }
        let mut other = request(40, all, 104);
        other[4] = 1;
        assert_eq!(agree(&other), None, "another request");
    }

    #[test]
    fn agreed_parameters_are_agreed_again() {
        let (_, agreed) = agree(&request(40, u64::MAX, 104)).unwrap();
        assert_eq!(agree(&question(&agreed)), Some((OWN, agreed)));
        let stored = serde_json::to_string(&agreed).unwrap();
        assert_eq!(serde_json::from_str::<Parameters>(&stored).unwrap(), agreed);
        assert!(agreed.can_resend() && agreed.lacks().is_empty());
    }
}
