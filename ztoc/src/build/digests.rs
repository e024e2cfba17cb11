//! The digests of a layer (of all of it, of each span, and of what it inflates to), taken beside the
//! inflating, on a thread of their own.
//!
//! Hashing takes about half as long as inflating, and needs nothing but the bytes: [`Digests`] hands them over
//! in buffers and goes on. The thread begins with the second mebibyte, so small layers have none, and where
//! no thread can be had all is done in place; the results are the same. It ends with the value that owns it,
//! also when that is dropped half way. What is on the way is bounded: [`QUEUE`] buffers, then the caller waits.

use std::mem;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

use sha2::{Digest, Sha256};

use super::{Whole, WholeDigests};

/// Compressed bytes are handed over so many at a time.
const PIECE: usize = 128 * 1024;

/// Layers up to this are not worth a thread, in compressed bytes.
const SMALL: u64 = 1 << 20;

/// How many buffers may wait: enough to ride out a caller's pause, about a mebibyte.
const QUEUE: usize = 4;

/// What was taken.
pub(super) struct Taken {
    pub(super) whole: Option<WholeDigests>,
    pub(super) spans: Vec<[u8; 32]>,
}

/// Takes the digests of one layer.
pub(super) struct Digests {
    place: Place,
    whole: Whole,
    seen: u64,
    piece: Piece,
}

/// Compressed bytes, and where in them spans begin.
#[derive(Default)]
struct Piece {
    bytes: Vec<u8>,
    cuts: Vec<Cut>,
}

struct Cut {
    at: usize,
    /// Whether the span begins in the byte before.
    shared: bool,
}

enum Job {
    Compressed(Piece),
    /// The output is the buffer from this index on.
    Output(Vec<u8>, usize),
}

enum Place {
    Here(Box<Hashes>),
    There(Worker),
}

impl Digests {
    pub(super) fn new(whole: Whole) -> Digests {
        let hashes = Hashes {
            layer: match whole {
                Whole::Hashed => Some(Sha256::new()),
                Whole::Ignored => None,
            },
            ..Hashes::default()
        };
        Digests { place: Place::Here(Box::new(hashes)), whole, seen: 0, piece: Piece::default() }
    }

    /// The next bytes of the layer.
    pub(super) fn compressed(&mut self, bytes: &[u8]) {
        self.seen += bytes.len() as u64;
        self.piece.bytes.extend_from_slice(bytes);
        if self.piece.bytes.len() >= PIECE {
            let job = Job::Compressed(mem::take(&mut self.piece));
            self.run(job);
        }
    }

    /// A span begins here; in the byte before if that is `shared`.
    pub(super) fn cut(&mut self, shared: bool) {
        self.piece.cuts.push(Cut { at: self.piece.bytes.len(), shared });
    }

    /// The next bytes of output: the buffer from `start` on. Gives a buffer of the same length to go on with,
    /// with any content.
    pub(super) fn output(&mut self, buffer: Vec<u8>, start: usize) -> Vec<u8> {
        if self.whole == Whole::Ignored {
            return buffer;
        }
        let len = buffer.len();
        let returned = self.run(Job::Output(buffer, start));
        returned.filter(|buffer| buffer.len() == len).unwrap_or_else(|| vec![0; len])
    }

    fn run(&mut self, job: Job) -> Option<Vec<u8>> {
        if self.seen > SMALL
            && let Place::Here(hashes) = &mut self.place
        {
            self.place = Worker::start(mem::take(&mut **hashes));
        }
        match &mut self.place {
            Place::Here(hashes) => hashes.take(job),
            Place::There(worker) => worker.hand_over(job),
        }
    }

    /// The last bytes of output, and what became of all.
    pub(super) fn finish(mut self, output: &[u8]) -> Taken {
        let piece = mem::take(&mut self.piece);
        self.run(Job::Compressed(piece));
        let hashes = match self.place {
            Place::Here(hashes) => *hashes,
            Place::There(worker) => worker.join(),
        };
        hashes.finish(output)
    }
}

#[derive(Default)]
struct Hashes {
    /// Nothing if the layer as a whole is ignored.
    layer: Option<Sha256>,
    output: Option<Sha256>,
    /// The span that is open; nothing in front of the first one.
    span: Option<Sha256>,
    /// The last compressed byte.
    last: u8,
    spans: Vec<[u8; 32]>,
}

impl Hashes {
    /// Gives back the buffer of an output.
    fn take(&mut self, job: Job) -> Option<Vec<u8>> {
        match job {
            Job::Output(buffer, start) => {
                self.output.get_or_insert_default().update(&buffer[start..]);
                return Some(buffer);
            }
            Job::Compressed(piece) => {
                if let Some(layer) = &mut self.layer {
                    layer.update(&piece.bytes);
                }
                let mut reached = 0;
                for cut in piece.cuts {
                    self.span(&piece.bytes[reached..cut.at]);
                    reached = cut.at;
                    let mut next = Sha256::new();
                    if cut.shared {
                        next.update([self.last]);
                    }
                    let done = self.span.replace(next);
                    self.spans.extend(done.map(|done| <[u8; 32]>::from(done.finalize())));
                }
                self.span(&piece.bytes[reached..]);
            }
        }
        None
    }

    fn span(&mut self, bytes: &[u8]) {
        self.last = *bytes.last().unwrap_or(&self.last);
        if let Some(span) = &mut self.span {
            span.update(bytes);
        }
    }

    fn finish(mut self, output: &[u8]) -> Taken {
        self.spans.extend(self.span.take().map(|done| <[u8; 32]>::from(done.finalize())));
        let whole = self.layer.map(|hash| {
            let layer = hash.finalize().into();
            // A layer without other output is its own.
            let diff_id = match self.output {
                None if output.is_empty() => layer,
                hash => hash.unwrap_or_default().chain_update(output).finalize().into(),
            };
            WholeDigests { layer, diff_id }
        });
        Taken { whole, spans: self.spans }
    }
}

/// The thread, and the two ways to it.
struct Worker {
    /// Nothing once it was told to end.
    jobs: Option<SyncSender<Job>>,
    /// Buffers of outputs that are done with.
    buffers: Receiver<Vec<u8>>,
    thread: Option<JoinHandle<Hashes>>,
}

impl Worker {
    /// Goes on with `hashes` elsewhere, or here if there is no thread to be had.
    fn start(hashes: Hashes) -> Place {
        let (jobs, to_do) = sync_channel::<Job>(QUEUE);
        let (done, buffers) = sync_channel(QUEUE);
        // handed over behind the start, so that it is still ours if that fails
        let (first, state) = sync_channel::<Hashes>(1);
        let work = move || {
            let mut hashes = state.recv().unwrap_or_default();
            for job in to_do {
                if let Some(buffer) = hashes.take(job) {
                    // nothing waits for it: dropped where there is no room
                    drop(done.try_send(buffer));
                }
            }
            hashes
        };
        match thread::Builder::new().name("ztoc-digests".to_owned()).spawn(work) {
            Ok(thread) => match first.send(hashes) {
                Ok(()) => Place::There(Worker { jobs: Some(jobs), buffers, thread: Some(thread) }),
                Err(unsent) => Place::Here(Box::new(unsent.0)),
            },
            Err(_) => Place::Here(Box::new(hashes)),
        }
    }

    fn hand_over(&mut self, job: Job) -> Option<Vec<u8>> {
        let sent = self.jobs.as_ref().map(|jobs| jobs.send(job));
        debug_assert!(matches!(sent, Some(Ok(()))), "the thread lives as long as the sender");
        self.buffers.try_recv().ok()
    }

    fn join(mut self) -> Hashes {
        self.jobs = None;
        let thread = self.thread.take().expect("taken here and in drop only");
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            // what is queued takes a millisecond; its result is not wanted
            drop(thread.join());
        }
    }
}
