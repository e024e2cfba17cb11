//! One connection's bytes: in each direction a thread that reads, follows, counts and corrupts, and one that
//! writes when the line's time has come. The queue between them is the line itself: what is on its way.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use super::http::{Follower, Length, Part, announced, header};
use super::pace::Bucket;
use super::{Exchange, Shared};

const PIECE: usize = 16 << 10;
/// Pieces on their way: 16 MiB, more than a fast line holds in a long round trip.
const ON_THE_WAY: usize = 1024;

/// Requests of one connection that have no whole answer yet: places in the list of exchanges.
type Open = Arc<Mutex<VecDeque<usize>>>;
type Piece = (Instant, Vec<u8>);

/// Carries both directions until both are over.
pub(super) fn run(id: u64, client: TcpStream, server: TcpStream, shared: &Arc<Shared>) {
    let open = Open::default();
    let mut requests = Requests { open: open.clone(), follower: Follower::new() };
    let mut answers = Answers { open, follower: Follower::new(), current: None };
    thread::scope(|scope| {
        let up = Direction { bucket: &shared.up, counted: &shared.counted_up, shared };
        let down = Direction { bucket: &shared.down, counted: &shared.counted_down, shared };
        scope.spawn(move || up.carry(&client, &server, |piece| requests.see(piece, shared)));
        // The same sockets the other way round: a clone names the same connection.
        let ends = shared
            .lock()
            .sockets
            .get(&id)
            .map(|[client, server]| (client.try_clone().ok(), server.try_clone().ok()));
        if let Some((Some(client), Some(server))) = ends {
            down.carry(&server, &client, |piece| answers.see(piece, shared));
        }
    });
    shared.forget(id);
}

struct Direction<'a> {
    bucket: &'a Bucket,
    counted: &'a AtomicU64,
    shared: &'a Shared,
}

impl Direction<'_> {
    fn carry(&self, mut from: &TcpStream, to: &TcpStream, mut see: impl FnMut(&mut [u8])) {
        let (sender, receiver) = sync_channel(ON_THE_WAY);
        thread::scope(|scope| {
            scope.spawn(move || self.write(to, &receiver));
            self.read(&mut from, &sender, &mut see);
            drop(sender);
        });
        // This direction is over; the other may go on.
        let _ = to.shutdown(Shutdown::Write);
    }

    fn read(&self, from: &mut &TcpStream, to: &SyncSender<Piece>, see: &mut impl FnMut(&mut [u8])) {
        let mut buffer = vec![0; PIECE];
        while let Ok(length) = from.read(&mut buffer) {
            if length == 0 || !self.shared.may_move() {
                return;
            }
            let piece = &mut buffer[..length];
            see(piece);
            self.bucket.take(length);
            let arrives = Instant::now() + self.shared.speed.round_trip / 2;
            if to.send((arrives, piece.to_vec())).is_err() {
                return;
            }
        }
    }

    fn write(&self, mut to: &TcpStream, pieces: &Receiver<Piece>) {
        for (arrives, piece) in pieces {
            thread::sleep(arrives.saturating_duration_since(Instant::now()));
            if !self.shared.may_move() || to.write_all(&piece).is_err() {
                return;
            }
            self.counted.fetch_add(piece.len() as u64, Ordering::SeqCst);
        }
    }
}

struct Requests {
    open: Open,
    follower: Follower,
}

impl Requests {
    fn see(&mut self, piece: &mut [u8], shared: &Shared) {
        let open = &self.open;
        let part = |part| {
            if let Part::Head(head) = part {
                let mut words = head.split(' ').map(str::to_owned);
                let exchange = Exchange {
                    method: words.next().unwrap_or_default(),
                    path: words.next().unwrap_or_default(),
                    range: header(&head, "range").map(str::to_owned),
                    ..Exchange::default()
                };
                let mut state = shared.lock();
                state.exchanges.push(exchange);
                let place = state.exchanges.len() - 1;
                open.lock().unwrap_or_else(PoisonError::into_inner).push_back(place);
            }
        };
        self.follower.follow(piece, |head| announced(head, Length::Bytes(0)), part);
    }
}

/// The answer that passes.
struct Answer {
    place: usize,
    /// the next body byte's place in the resource
    at: u64,
    flips: Vec<u64>,
    is_final: bool,
}

struct Answers {
    open: Open,
    follower: Follower,
    current: Option<Answer>,
}

impl Answers {
    fn see(&mut self, piece: &mut [u8], shared: &Shared) {
        let (open, current) = (&self.open, &mut self.current);
        let first = || open.lock().unwrap_or_else(PoisonError::into_inner).front().copied();
        let mut flips = Vec::new();
        let length = |head: &str| {
            let method =
                first().and_then(|place| shared.lock().exchanges.get(place).map(|e| e.method.clone()));
            let has_none = matches!(status(head), 100..200 | 204 | 304);
            match has_none || method.as_deref() == Some("HEAD") {
                true => Length::Bytes(0),
                false => announced(head, Length::UntilClose),
            }
        };
        self.follower.follow(piece, length, |part| match part {
            Part::Head(head) => *current = first().map(|place| begin(place, &head, shared)),
            Part::Body { start, length } => {
                let Some(answer) = current else { return };
                let range = answer.at..answer.at + length as u64;
                let hit = answer.flips.iter().filter(|nth| range.contains(nth));
                flips.extend(hit.map(|nth| start + (nth - answer.at) as usize));
                answer.at = range.end;
                if let Some(exchange) = shared.lock().exchanges.get_mut(answer.place) {
                    exchange.body_bytes += length as u64;
                }
            }
            Part::End => {
                if current.take().is_some_and(|answer| answer.is_final) {
                    open.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                }
            }
        });
        for place in flips {
            piece[place] ^= 0xff;
        }
    }
}

fn begin(place: usize, head: &str, shared: &Shared) -> Answer {
    let status = status(head);
    let mut state = shared.lock();
    let flips = std::mem::take(&mut state.flips);
    let mut path = String::new();
    if let Some(exchange) = state.exchanges.get_mut(place) {
        exchange.status = status;
        path.clone_from(&exchange.path);
    }
    let hit = flips.iter().filter(|(part, _)| path.contains(part)).map(|(_, nth)| *nth).collect();
    state.flips = flips;
    Answer { place, at: first_byte(head), flips: hit, is_final: status >= 200 }
}

/// `HTTP/1.1 206 Partial Content`
fn status(head: &str) -> u16 {
    head.split(' ').nth(1).and_then(|word| word.parse().ok()).unwrap_or_default()
}

/// `Content-Range: bytes 100-199/5000`
fn first_byte(head: &str) -> u64 {
    let range = header(head, "content-range").and_then(|value| value.strip_prefix("bytes "));
    range.and_then(|range| range.split('-').next()?.parse().ok()).unwrap_or(0)
}
