//! A blob in memory that fails on cue.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures::stream;

use crate::blob::{Blob, BoxFuture, ByteStream};
use crate::digest::Digest;
use crate::error::{Error, ErrorKind};

/// What goes wrong with one read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlobFault {
    /// the read does not begin
    Refuse(ErrorKind),
    /// this many bytes arrive, then an error
    BreakAfter(u64),
    /// every byte of the answer is another one
    Lie,
}

/// Bytes in memory as a [`Blob`]; reads are counted, and the faults queued are met one a read.
#[derive(Debug)]
pub struct FaultyBlob {
    digest: Digest,
    bytes: Bytes,
    chunk: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    faults: VecDeque<BlobFault>,
    reads: Vec<Range<u64>>,
}

impl FaultyBlob {
    /// A blob of these bytes that answers in chunks of `chunk` bytes.
    pub fn new(bytes: impl Into<Bytes>, chunk: usize) -> FaultyBlob {
        let bytes = bytes.into();
        let digest = Digest::sha256(&bytes);
        FaultyBlob { digest, bytes, chunk: chunk.max(1), state: Mutex::default() }
    }

    /// One read from now on meets this, after those queued before.
    pub fn fail_next(&self, fault: BlobFault) {
        self.state().faults.push_back(fault);
    }

    /// The ranges read so far.
    pub fn reads(&self) -> Vec<Range<u64>> {
        self.state().reads.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self, range: Range<u64>) -> Result<ByteStream, Error> {
        let doing = format!("read blob {}", self.digest);
        let fault = {
            let mut state = self.state();
            state.reads.push(range.clone());
            state.faults.pop_front()
        };
        if range.start > range.end || range.end > self.bytes.len() as u64 {
            return Err(Error::new(ErrorKind::Invalid, doing).because("the range lies outside"));
        }
        let mut answer = self.bytes.slice(range.start as usize..range.end as usize);
        let mut end = None;
        match fault {
            None => {}
            Some(BlobFault::Refuse(kind)) => return Err(Error::new(kind, doing)),
            Some(BlobFault::BreakAfter(bytes)) => {
                answer.truncate(bytes as usize);
                end = Some(Err(Error::new(ErrorKind::Unreachable, doing).because("connection lost")));
            }
            Some(BlobFault::Lie) => answer = answer.iter().map(|byte| byte ^ 0xff).collect(),
        }
        let mut chunks = Vec::new();
        while !answer.is_empty() {
            chunks.push(Ok(answer.split_to(self.chunk.min(answer.len()))));
        }
        Ok(Box::pin(stream::iter(chunks.into_iter().chain(end))))
    }
}

impl Blob for FaultyBlob {
    fn digest(&self) -> &Digest {
        &self.digest
    }

    fn size(&self) -> Option<u64> {
        Some(self.bytes.len() as u64)
    }

    fn read_range(&self, range: Range<u64>) -> BoxFuture<'_, Result<ByteStream, Error>> {
        Box::pin(std::future::ready(self.read(range)))
    }

    fn read_all(&self) -> BoxFuture<'_, Result<ByteStream, Error>> {
        Box::pin(std::future::ready(self.read(0..self.bytes.len() as u64)))
    }
}
