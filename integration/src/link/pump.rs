//! One connection's bytes: in each direction a thread that reads and hands what it read to `exchange`, and one
//! that does the steps that come back when the line's time has come. The queue between them is the line itself:
//! what is on its way.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use super::Shared;
use super::exchange::{Step, both};
use super::pace::Bucket;

const PIECE: usize = 16 << 10;
/// Pieces on their way: 16 MiB, more than a fast line holds in a long round trip.
const ON_THE_WAY: usize = 1024;
/// Of a line that trickles.
const DRIP: Duration = Duration::from_secs(1);

type Piece = (Instant, Step);

/// Carries both directions until both are over.
pub(super) fn run(id: u64, client: &TcpStream, server: &TcpStream, shared: &Arc<Shared>) {
    let (mut requests, mut answers) = both();
    thread::scope(|scope| {
        let up = Direction { from: client, to: server, client, bucket: &shared.up, shared };
        let down = Direction { from: server, to: client, client, bucket: &shared.down, shared };
        scope.spawn(move || up.carry(&shared.counted_up, |piece| requests.see(piece, shared)));
        down.carry(&shared.counted_down, |piece| answers.see(piece, shared));
    });
    shared.forget(id);
}

struct Direction<'a> {
    from: &'a TcpStream,
    to: &'a TcpStream,
    client: &'a TcpStream,
    bucket: &'a Bucket,
    shared: &'a Shared,
}

impl Direction<'_> {
    fn carry(&self, counted: &AtomicU64, mut see: impl FnMut(&[u8]) -> Vec<Step>) {
        let (sender, receiver) = sync_channel(ON_THE_WAY);
        thread::scope(|scope| {
            scope.spawn(move || self.write(counted, &receiver));
            self.read(&sender, &mut see);
            drop(sender);
        });
        // This direction is over; the other may go on.
        let _ = self.to.shutdown(Shutdown::Write);
    }

    fn read(&self, to: &SyncSender<Piece>, see: &mut impl FnMut(&[u8]) -> Vec<Step>) {
        let mut buffer = vec![0; PIECE];
        let mut from = self.from;
        while let Ok(length) = from.read(&mut buffer) {
            if length == 0 || !self.shared.may_move() {
                return;
            }
            for step in see(&buffer[..length]) {
                if let Step::Bytes(bytes) = &step {
                    self.bucket.take(bytes.len());
                }
                let arrives = Instant::now() + self.shared.speed.round_trip / 2;
                let is_last = step.is_last();
                if to.send((arrives, step)).is_err() || is_last {
                    return;
                }
            }
        }
    }

    fn write(&self, counted: &AtomicU64, pieces: &Receiver<Piece>) {
        let mut slow = None;
        for (arrives, step) in pieces {
            thread::sleep(arrives.saturating_duration_since(Instant::now()));
            if !self.shared.may_move() {
                return;
            }
            let goes_on = match step {
                Step::Bytes(bytes) => self.put(&bytes, slow, counted),
                Step::Hold(fault) => self.shared.wait_for_lift(fault, None),
                Step::Trickle(fault) => {
                    slow = fault;
                    true
                }
                Step::Reply(bytes) => {
                    // As long as it would have taken to the registry and back.
                    thread::sleep(self.shared.speed.round_trip / 2);
                    let mut client = self.client;
                    let _ = client.write_all(&bytes);
                    self.shared.counted_down.fetch_add(bytes.len() as u64, Ordering::SeqCst);
                    self.end()
                }
                Step::Close => self.end(),
                Step::Reset => {
                    // Dissolving the association is how a socket with clones is made to send a reset.
                    let _ = rustix::net::connect_unspec(self.client);
                    self.end()
                }
            };
            if !goes_on {
                return;
            }
        }
    }

    /// False when the connection is over.
    fn put(&self, bytes: &[u8], slow: Option<u64>, counted: &AtomicU64) -> bool {
        let mut to = self.to;
        let mut rest = bytes;
        while let Some(fault) = slow.filter(|fault| !rest.is_empty() && self.shared.is_planned(*fault)) {
            if !self.shared.wait_for_lift(fault, Some(DRIP)) || to.write_all(&rest[..1]).is_err() {
                return false;
            }
            counted.fetch_add(1, Ordering::SeqCst);
            rest = &rest[1..];
        }
        if to.write_all(rest).is_err() {
            return false;
        }
        counted.fetch_add(rest.len() as u64, Ordering::SeqCst);
        true
    }

    /// Both sides see the end; always false.
    fn end(&self) -> bool {
        for socket in [self.from, self.to] {
            let _ = socket.shutdown(Shutdown::Both);
        }
        false
    }
}
