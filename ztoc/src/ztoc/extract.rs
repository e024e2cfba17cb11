//! A range of the tar, out of the spans that hold it.
//!
//! The caller's `fetch` is asked on the caller's thread, for one span after the other. Where there are several
//! spans, and enough in each, they are inflated on threads meanwhile, one thread a span, which end before
//! [`Ztoc::extract`] does. What is on the way is bounded: one span for each processor and one more, and no more
//! than [`AHEAD`] bytes unless a single span is longer. The answer, and of several errors the one that is told, do
//! not depend on the number of processors.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::thread::{self, Scope, ScopedJoinHandle};

use super::Ztoc;
use crate::error::Error;
use crate::units::{self, CompressedOffset, SpanId, UncompressedOffset};

/// Spans of fewer bytes than this, on average, are inflated in place: it takes about as long as to start and to
/// join a few threads.
const WORTH_A_THREAD: u64 = 128 * 1024;

/// The most that is inflated at one time, in bytes: two dozen spans of the usual size.
const AHEAD: u64 = 96 << 20;

/// Beyond this many threads it is the copying that takes the time.
const MOST_THREADS: usize = 16;

type Fetch<'f> = dyn FnMut(SpanId, Range<CompressedOffset>) -> io::Result<Vec<u8>> + 'f;

/// A span that was fetched: what it holds of the range.
type Part = Result<Vec<u8>, Error>;

/// A span that is being inflated.
struct UnderWay<'scope> {
    /// What it holds, as the ztoc says.
    len: u64,
    place: Place<'scope>,
}

enum Place<'scope> {
    There(ScopedJoinHandle<'scope, Part>),
    /// No thread could be had.
    Here(Part),
}

impl Ztoc {
    /// The uncompressed bytes of `range`. The compressed bytes of each span that is touched are asked of
    /// `fetch`, in order and once, verified and inflated; those of some spans behind a broken one may have been
    /// asked for when the error is found. A range that does not end within the archive is an error.
    pub fn extract(
        &self,
        range: Range<UncompressedOffset>,
        fetch: &mut dyn FnMut(SpanId, Range<CompressedOffset>) -> io::Result<Vec<u8>>,
    ) -> Result<Vec<u8>, Error> {
        if range.end.0 > self.uncompressed_size() {
            return Err(Error::corrupt("extract: the range ends behind the archive"));
        }
        let spans = self.spans().covering(range.clone()).len() as u64;
        if spans > 1 && units::length(&range) / spans >= WORTH_A_THREAD {
            let processors = thread::available_parallelism().map_or(1, usize::from);
            self.extract_on(processors.min(MOST_THREADS), range, fetch)
        } else {
            self.extract_on(1, range, fetch)
        }
    }

    /// [`Ztoc::extract`] with so many threads; none are started for 1.
    fn extract_on(
        &self,
        threads: usize,
        range: Range<UncompressedOffset>,
        fetch: &mut Fetch<'_>,
    ) -> Result<Vec<u8>, Error> {
        let mut bytes = Vec::new();
        if threads > 1 {
            self.side_by_side(threads, &range, fetch, &mut bytes)?;
        } else {
            self.one_by_one(&range, fetch, &mut bytes)?;
        }
        if bytes.len() as u64 != units::length(&range) {
            return Err(Error::corrupt("extract: the spans do not hold the range"));
        }
        Ok(bytes)
    }

    fn one_by_one(
        &self,
        range: &Range<UncompressedOffset>,
        fetch: &mut Fetch<'_>,
        bytes: &mut Vec<u8>,
    ) -> Result<(), Error> {
        let mut inflated = Vec::new();
        for span in self.spans().covering(range.clone()).map(SpanId) {
            let compressed = self.fetch(span, fetch)?;
            inflated.clear();
            self.inflate_span(span, &compressed, &mut inflated)?;
            let (from, to) = self.wanted(span, range);
            bytes.extend_from_slice(inflated.get(from..to).unwrap_or_default());
        }
        Ok(())
    }

    fn side_by_side(
        &self,
        threads: usize,
        range: &Range<UncompressedOffset>,
        fetch: &mut Fetch<'_>,
        bytes: &mut Vec<u8>,
    ) -> Result<(), Error> {
        thread::scope(|scope| {
            let mut under_way: VecDeque<UnderWay<'_>> = VecDeque::new();
            let mut ahead: u64 = 0;
            let mut outcome = Ok(());
            for span in self.spans().covering(range.clone()).map(SpanId) {
                let compressed = self.fetch(span, fetch);
                let fetched = compressed.is_ok();
                let len = units::length(&self.spans().uncompressed(span));
                let mut done = Vec::new();
                while under_way.len() >= threads || ahead.saturating_add(len) > AHEAD {
                    let Some(first) = under_way.pop_front() else { break };
                    ahead -= first.len;
                    done.push(join(first));
                }
                // first the next one, so that it is inflated while others are copied
                let place = match compressed {
                    Ok(compressed) => self.start(scope, span, range, compressed),
                    Err(error) => Place::Here(Err(error)),
                };
                under_way.push_back(UnderWay { len, place });
                ahead += len;
                outcome = done.into_iter().fold(outcome, |outcome, part| append(outcome, part, bytes));
                if !fetched || outcome.is_err() {
                    break;
                }
            }
            // each is waited for, behind an error too: no thread outlives the call
            under_way.into_iter().fold(outcome, |outcome, last| append(outcome, join(last), bytes))
        })
    }

    /// Inflates a span on a thread, or here where there is none to be had.
    fn start<'scope>(
        &'scope self,
        scope: &'scope Scope<'scope, '_>,
        span: SpanId,
        range: &Range<UncompressedOffset>,
        compressed: Vec<u8>,
    ) -> Place<'scope> {
        // shared, so that it is not lost with the thread that does not start
        let compressed = Arc::new(compressed);
        let theirs = compressed.clone();
        let (from, to) = self.wanted(span, range);
        let work = move |compressed: Arc<Vec<u8>>| {
            let mut inflated = Vec::new();
            self.inflate_span(span, &compressed, &mut inflated)?;
            inflated.truncate(to);
            inflated.drain(..from.min(inflated.len()));
            Ok(inflated)
        };
        let thread = thread::Builder::new().name("ztoc-inflate".to_owned());
        let started = thread.spawn_scoped(scope, move || work(theirs));
        match started {
            Ok(handle) => Place::There(handle),
            Err(_) => Place::Here(work(compressed)),
        }
    }

    fn fetch(&self, span: SpanId, fetch: &mut Fetch<'_>) -> Result<Vec<u8>, Error> {
        fetch(span, self.spans().compressed(span))
            .map_err(|source| Error::io(format!("fetch span {span}"), source))
    }

    /// From where to where in an inflated span the bytes of `range` are.
    fn wanted(&self, span: SpanId, range: &Range<UncompressedOffset>) -> (usize, usize) {
        let held = self.spans().uncompressed(span);
        let within = |offset: UncompressedOffset| {
            let offset = offset.clamp(held.start, held.end.max(held.start));
            usize::try_from(offset - held.start).unwrap_or(usize::MAX)
        };
        (within(range.start), within(range.end))
    }
}

/// Waits for a span.
fn join(span: UnderWay<'_>) -> Part {
    match span.place {
        Place::There(handle) => handle.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
        Place::Here(part) => part,
    }
}

/// Appends a span if nothing in front of it failed.
fn append(before: Result<(), Error>, part: Part, bytes: &mut Vec<u8>) -> Result<(), Error> {
    before?;
    bytes.extend_from_slice(&part?);
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::build::{Options, build};
    use crate::error::ErrorKind;
    use crate::zinfo::Compression;

    /// A tar of one file in many spans, as it is and gzipped; the layer, the tar, the ztoc.
    fn layers() -> Vec<(Vec<u8>, Vec<u8>, Ztoc)> {
        let mut state = 1u32;
        let words = std::iter::repeat_with(|| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            format!("{:x} ", state >> (state >> 29))
        });
        let text: Vec<u8> = words.flat_map(String::into_bytes).take(400_000).collect();
        let mut header = vec![0; 512];
        for (at, field) in [(0, "f"), (100, "644"), (124, "1415200"), (148, "        "), (156, "0")] {
            header[at..at + field.len()].copy_from_slice(field.as_bytes());
        }
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        let tar = [header, text, vec![0; 384 + 1024]].concat();
        // a member ends sooner than a block would
        let member = |part: &[u8]| {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(1));
            encoder.write_all(part).unwrap();
            encoder.finish().unwrap()
        };
        let gzip = tar.chunks(15_000).flat_map(member).collect();
        let layers = [(tar.clone(), Compression::Uncompressed), (gzip, Compression::Gzip)];
        let open = |(layer, compression): (Vec<u8>, _)| {
            let options = Options { span_size: 20_000, ..Options::default() };
            let built = build(&layer[..], compression, &options).unwrap();
            let ztoc = Ztoc::from_vec(built.ztoc).unwrap();
            assert!(ztoc.spans().len() > 8, "{} spans", ztoc.spans().len());
            (layer, tar.clone(), ztoc)
        };
        layers.into_iter().map(open).collect()
    }

    fn slice(layer: &[u8], range: Range<CompressedOffset>) -> Vec<u8> {
        layer[range.start.0 as usize..range.end.0 as usize].to_vec()
    }

    /// With any number of threads: the same bytes, each span fetched once, in order.
    #[test]
    fn side_by_side_is_one_by_one() {
        for (layer, tar, ztoc) in layers() {
            let size = ztoc.uncompressed_size();
            for (start, end) in [(0, size), (1, size - 1), (30_000, 200_001), (399_999, size), (7, 7), (0, 1)]
            {
                for threads in [1, 2, 3, 16] {
                    let range = UncompressedOffset(start)..UncompressedOffset(end);
                    let mut fetched = Vec::new();
                    let bytes = ztoc.extract_on(threads, range.clone(), &mut |span, range| {
                        fetched.push(span.0);
                        Ok(slice(&layer, range))
                    });
                    assert!(bytes.unwrap() == tar[start as usize..end as usize], "{start}..{end}");
                    assert_eq!(fetched, ztoc.spans().covering(range).collect::<Vec<_>>());
                }
            }
        }
    }

    /// Of several errors the first in the range is told, whatever was fetched meanwhile.
    #[test]
    fn the_first_error_is_told() {
        const NONE: u32 = u32::MAX;
        for (layer, _, ztoc) in layers() {
            let range = UncompressedOffset(0)..UncompressedOffset(ztoc.uncompressed_size());
            let last = ztoc.spans().len() - 1;
            for (broken, gone, kind) in [
                (3, NONE, ErrorKind::Corrupt),
                (3, 4, ErrorKind::Corrupt),
                (0, 1, ErrorKind::Corrupt),
                (last, NONE, ErrorKind::Corrupt),
                (4, 3, ErrorKind::Io),
                (NONE, 0, ErrorKind::Io),
                (NONE, last, ErrorKind::Io),
            ] {
                for threads in [1, 2, 5] {
                    let error = ztoc.extract_on(threads, range.clone(), &mut |span, range| {
                        let mut bytes = slice(&layer, range);
                        if span.0 == broken {
                            bytes[1] ^= 1;
                        }
                        if span.0 == gone { Err(io::Error::other("gone")) } else { Ok(bytes) }
                    });
                    let error = error.unwrap_err();
                    assert_eq!(error.kind(), kind, "{broken} broken, {gone} gone: {error}");
                    assert!(error.to_string().contains(&format!("span {}", broken.min(gone))), "{error}");
                }
            }
        }
    }

    /// Of spans behind a broken one few are fetched: one for each thread.
    #[test]
    fn what_is_fetched_ahead_is_bounded() {
        for (layer, _, ztoc) in layers() {
            let range = UncompressedOffset(0)..UncompressedOffset(ztoc.uncompressed_size());
            let mut fetched = 0;
            let error = ztoc.extract_on(3, range, &mut |_, range| {
                fetched += 1;
                let mut bytes = slice(&layer, range);
                bytes[1] ^= 1;
                Ok(bytes)
            });
            error.unwrap_err();
            assert!(fetched <= 1 + 3, "{fetched}");
        }
    }

    /// Threads are gone, with all that is theirs, when the call is over: also when it failed half way.
    #[test]
    fn no_thread_outlives_the_call() {
        use std::sync::atomic::{AtomicUsize, Ordering};
        use std::thread::ThreadId;

        static ALIVE: AtomicUsize = AtomicUsize::new(0);
        struct Guard;
        impl Drop for Guard {
            fn drop(&mut self) {
                // a caller that does not wait is faster
                (0..10_000).for_each(|_| thread::yield_now());
                ALIVE.fetch_sub(1, Ordering::SeqCst);
            }
        }
        thread_local! {
            static HERE: Guard = {
                ALIVE.fetch_add(1, Ordering::SeqCst);
                Guard
            };
        }
        struct Watched(Vec<u8>, ThreadId);
        impl AsRef<[u8]> for Watched {
            fn as_ref(&self) -> &[u8] {
                if thread::current().id() != self.1 {
                    HERE.with(|_| ());
                }
                &self.0
            }
        }
        let (layer, _, ztoc) = layers().pop().unwrap();
        let bytes = Watched(ztoc.as_bytes().to_vec(), thread::current().id());
        let ztoc = Ztoc::open(Arc::new(bytes)).unwrap();
        for broken in [0, 3, u32::MAX] {
            let range = UncompressedOffset(0)..UncompressedOffset(ztoc.uncompressed_size());
            let bytes = ztoc.extract_on(4, range, &mut |span, range| {
                let mut bytes = slice(&layer, range);
                bytes[1] ^= u8::from(span.0 == broken);
                Ok(bytes)
            });
            assert_eq!(bytes.is_err(), broken < u32::MAX);
            assert_eq!(ALIVE.load(Ordering::SeqCst), 0);
        }
    }
}
