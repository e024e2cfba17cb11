//! A TCP proxy on loopback before a registry: the line that tests measure and break. It passes on what it gets,
//! byte for byte and with the `Host` header unchanged (the registry's absolute URLs then lead back through it),
//! and follows the HTTP/1.1 in it, so that it can tell what was asked for, count, and do a `Fault` to chosen
//! requests and their answers. It can be slow (one budget of bytes a second for all connections, half a round
//! trip each way, one more to connect), stand still, or be cut.

mod pump;
mod pace;
mod exchange;
mod fault;
mod http;

use std::collections::BTreeMap;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::lab::Lab;
use crate::process::wait_until;
use fault::Planned;
use pace::Bucket;

pub use fault::{Answer, Fault, Request, When};

/// For a request that follows at once from something that was done.
const HIT_LIMIT: Duration = Duration::from_secs(120);

/// One request and what became of it, as far as it has come.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Exchange {
    pub method: String,
    pub path: String,
    /// the header `Range`, as sent
    pub range: Option<String>,
    /// 0 until there is an answer
    pub status: u16,
    /// of the answer's body, so far
    pub body_bytes: u64,
}

/// What has gone through, headers included.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// from the clients to the registry
    pub up: u64,
    /// from the registry to the clients
    pub down: u64,
    pub connections: u64,
}

/// What the line is like.
#[derive(Debug, Clone, Copy, Default)]
pub struct Speed {
    /// in each direction, for all connections together; None: as fast as it goes
    pub bytes_per_second: Option<u64>,
    pub round_trip: Duration,
}

/// See the module. Closed with its lab.
#[derive(Debug)]
pub struct Link {
    address: String,
    shared: Arc<Shared>,
}

/// A fault in force. It stays so when this goes; [`Injected::lift`] ends it.
#[derive(Debug, Clone)]
pub struct Injected {
    id: u64,
    hits: Arc<AtomicU64>,
    shared: Arc<Shared>,
}

/// Asked about every request; an answer of its own goes back to the client, and the registry is not asked.
struct Gate(Box<Keeper>);

type Keeper = dyn Fn(&Request) -> Option<Answer> + Send + Sync;

impl std::fmt::Debug for Gate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Gate")
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Open,
    Stalled,
    Cut,
}

#[derive(Debug)]
struct Shared {
    target: String,
    speed: Speed,
    gate: Option<Gate>,
    up: Bucket,
    down: Bucket,
    counted_up: AtomicU64,
    counted_down: AtomicU64,
    counted_connections: AtomicU64,
    closed: AtomicBool,
    state: Mutex<State>,
    /// the mode, or a fault in force, has changed
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    mode: Mode,
    next: u64,
    /// both ends of each connection that stands
    sockets: BTreeMap<u64, [TcpStream; 2]>,
    exchanges: Vec<Exchange>,
    /// where they begin to count: an earlier one may still be under way
    shown_from: usize,
    /// in the order in which they were injected
    faults: Vec<(Planned, Arc<AtomicU64>)>,
    /// what befalls the answers that are still to come, by the place of their exchange
    faulty: BTreeMap<usize, Vec<(u64, Fault)>>,
}

impl Link {
    /// A fast line to `target` (`host:port`).
    pub fn new(lab: &Lab, target: &str) -> Result<Link> {
        Link::with_speed(lab, target, Speed::default())
    }

    pub fn with_speed(lab: &Lab, target: &str, speed: Speed) -> Result<Link> {
        Link::open(lab, target, "127.0.0.1:0", speed, None)
    }

    /// A fast line with an address of the caller's choice on the loopback: one on port 80 stands for a registry whose name
    /// has no port.
    pub fn at(lab: &Lab, target: &str, address: &str) -> Result<Link> {
        Link::open(lab, target, address, Speed::default(), None)
    }

    /// A fast line with a gate, which may answer in the registry's place.
    pub fn with_gate(
        lab: &Lab,
        target: &str,
        gate: impl Fn(&Request) -> Option<Answer> + Send + Sync + 'static,
    ) -> Result<Link> {
        Link::open(lab, target, "127.0.0.1:0", Speed::default(), Some(Gate(Box::new(gate))))
    }

    fn open(lab: &Lab, target: &str, address: &str, speed: Speed, gate: Option<Gate>) -> Result<Link> {
        let listener = TcpListener::bind(address).context("listen for the link")?;
        let address = listener.local_addr()?;
        let state = State {
            mode: Mode::Open,
            next: 0,
            sockets: BTreeMap::new(),
            exchanges: Vec::new(),
            shown_from: 0,
            faults: Vec::new(),
            faulty: BTreeMap::new(),
        };
        let shared = Arc::new(Shared {
            target: target.to_owned(),
            speed,
            gate,
            up: Bucket::new(speed.bytes_per_second),
            down: Bucket::new(speed.bytes_per_second),
            counted_up: AtomicU64::new(0),
            counted_down: AtomicU64::new(0),
            counted_connections: AtomicU64::new(0),
            closed: AtomicBool::new(false),
            state: Mutex::new(state),
            changed: Condvar::new(),
        });
        let accepting = shared.clone();
        thread::spawn(move || accept(&listener, &accepting));
        let closing = shared.clone();
        lab.on_close(move || {
            closing.closed.store(true, Ordering::SeqCst);
            closing.set(Mode::Cut);
            // Wakes the thread that accepts.
            let _ = TcpStream::connect(address);
        })?;
        Ok(Link { address: address.to_string(), shared })
    }

    /// `127.0.0.1:PORT`: stands for the registry in image names.
    pub fn host(&self) -> &str {
        &self.address
    }

    pub fn traffic(&self) -> Traffic {
        Traffic {
            up: self.shared.counted_up.load(Ordering::SeqCst),
            down: self.shared.counted_down.load(Ordering::SeqCst),
            connections: self.shared.counted_connections.load(Ordering::SeqCst),
        }
    }

    /// Every request since the last reset, in the order they came.
    pub fn exchanges(&self) -> Vec<Exchange> {
        let state = self.shared.lock();
        state.exchanges[state.shown_from..].to_vec()
    }

    /// Counts from nothing again.
    pub fn reset(&self) {
        for counter in [&self.shared.counted_up, &self.shared.counted_down, &self.shared.counted_connections]
        {
            counter.store(0, Ordering::SeqCst);
        }
        let mut state = self.shared.lock();
        state.shown_from = state.exchanges.len();
    }

    /// Ends every connection, and every new one as soon as it stands.
    pub fn cut(&self) {
        self.shared.set(Mode::Cut);
    }

    /// Connections stand and are taken, but nothing moves.
    pub fn stall(&self) {
        self.shared.set(Mode::Stalled);
    }

    pub fn restore(&self) {
        self.shared.set(Mode::Open);
    }

    /// From now on does this to the requests that fit, until it is lifted.
    pub fn inject(&self, fault: Fault, when: When) -> Injected {
        let mut state = self.shared.lock();
        let id = state.next;
        state.next += 1;
        let hits = Arc::new(AtomicU64::new(0));
        state.faults.push((Planned::new(id, fault, when), hits.clone()));
        Injected { id, hits, shared: self.shared.clone() }
    }

    /// From now on inverts one byte of the body of every answer to a request whose path contains `path`: the
    /// `nth` of the whole resource, so that it is the same byte whichever range it comes in.
    pub fn flip_byte(&self, path: &str, nth: u64) {
        self.inject(Fault::Flip { nth }, When::path(path));
    }

    /// No fault is in force any more: the line tells the truth again.
    pub fn lift(&self) {
        self.shared.lock().faults.clear();
        self.shared.changed.notify_all();
    }
}

impl Injected {
    /// How many requests it has befallen.
    pub fn hits(&self) -> u64 {
        self.hits.load(Ordering::SeqCst)
    }

    /// Waits until it has befallen so many.
    pub fn wait_for(&self, hits: u64) -> Result<()> {
        let hit = || Ok((self.hits() >= hits).then_some(()));
        wait_until("the requests that a fault is for", HIT_LIMIT, hit)
            .with_context(|| format!("{} of {hits} came", self.hits()))
    }

    /// It is over. What stands still because of it goes on.
    pub fn lift(&self) {
        self.shared.lock().faults.retain(|(planned, _)| planned.id != self.id);
        self.shared.changed.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, mode: Mode) {
        let mut state = self.lock();
        state.mode = mode;
        if mode == Mode::Cut {
            for socket in std::mem::take(&mut state.sockets).values().flatten() {
                let _ = socket.shutdown(Shutdown::Both);
            }
        }
        drop(state);
        self.changed.notify_all();
    }

    /// Returns when bytes may move; false when they never will.
    fn may_move(&self) -> bool {
        let state = self.lock();
        let stalled = |state: &mut State| state.mode == Mode::Stalled;
        let state = self.changed.wait_while(state, stalled).unwrap_or_else(PoisonError::into_inner);
        state.mode == Mode::Open
    }

    /// Adds a request to the list; its place there, and what befalls it.
    fn note(&self, request: &Request) -> (usize, Vec<(u64, Fault)>) {
        let mut state = self.lock();
        state.exchanges.push(Exchange {
            method: request.method.clone(),
            path: request.path.clone(),
            range: request.header("range").map(str::to_owned),
            ..Exchange::default()
        });
        let hit = state.faults.iter_mut().filter_map(|(planned, hits)| {
            let befalls = planned.hits(request);
            hits.fetch_add(u64::from(befalls), Ordering::SeqCst);
            befalls.then(|| (planned.id, planned.fault.clone()))
        });
        let hit = hit.collect();
        (state.exchanges.len() - 1, hit)
    }

    fn is_planned(&self, fault: u64) -> bool {
        self.lock().faults.iter().any(|(planned, _)| planned.id == fault)
    }

    /// Waits until a fault is lifted, for `limit` at most. False when the line is cut meanwhile.
    fn wait_for_lift(&self, fault: u64, limit: Option<Duration>) -> bool {
        let lasts = |state: &mut State| {
            state.mode != Mode::Cut && state.faults.iter().any(|(planned, _)| planned.id == fault)
        };
        let state = self.lock();
        let state = match limit {
            None => self.changed.wait_while(state, lasts).unwrap_or_else(PoisonError::into_inner),
            Some(limit) => {
                let waited = self.changed.wait_timeout_while(state, limit, lasts);
                waited.unwrap_or_else(PoisonError::into_inner).0
            }
        };
        state.mode != Mode::Cut
    }

    fn forget(&self, connection: u64) {
        self.lock().sockets.remove(&connection);
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    for client in listener.incoming() {
        if shared.closed.load(Ordering::SeqCst) {
            return;
        }
        let Ok(client) = client else { continue };
        let shared = shared.clone();
        thread::spawn(move || {
            // Dropped on failure: the client sees its connection end.
            let _ = connect(&client, &shared);
        });
    }
}

fn connect(client: &TcpStream, shared: &Arc<Shared>) -> Result<()> {
    thread::sleep(shared.speed.round_trip);
    if !shared.may_move() {
        return Ok(());
    }
    let server = TcpStream::connect(&shared.target)?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let mut state = shared.lock();
    if state.mode == Mode::Cut {
        return Ok(());
    }
    let id = state.next;
    state.next += 1;
    state.sockets.insert(id, [client.try_clone()?, server.try_clone()?]);
    drop(state);
    shared.counted_connections.fetch_add(1, Ordering::SeqCst);
    pump::run(id, client, &server, shared);
    Ok(())
}
