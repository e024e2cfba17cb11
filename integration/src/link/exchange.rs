//! What passes in either direction of a connection, as messages: requests are noted and judged, answers are
//! changed where a fault befell their request. Bytes go in, and steps for the line come out; where no fault is,
//! these are the same bytes.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use super::Shared;
use super::fault::{Answer, Fault, Request};
use super::http::{Follower, Length, Part, announced, content_range, header, status, text, with, without};

/// What the line does, in order.
#[derive(Debug)]
pub(super) enum Step {
    Bytes(Vec<u8>),
    /// Nothing moves while this fault lasts.
    Hold(u64),
    /// From here on a byte a second, while this fault lasts; none: at full speed again.
    Trickle(Option<u64>),
    /// Not to the registry but back to the client; then the connection ends.
    Reply(Vec<u8>),
    /// The connection ends in order.
    Close,
    /// The connection ends with a reset.
    Reset,
}

impl Step {
    /// Nothing comes behind it.
    pub(super) fn is_last(&self) -> bool {
        matches!(self, Step::Reply(_) | Step::Close | Step::Reset)
    }
}

/// Steps, with bytes that follow each other in one.
#[derive(Debug, Default)]
struct Steps {
    steps: Vec<Step>,
    is_over: bool,
}

impl Steps {
    fn add(&mut self, step: Step) {
        if self.is_over {
            return;
        }
        self.is_over = step.is_last();
        self.steps.push(step);
    }

    fn bytes(&mut self, bytes: &[u8]) {
        match self.steps.last_mut() {
            Some(Step::Bytes(last)) => last.extend_from_slice(bytes),
            _ if bytes.is_empty() => {}
            _ => self.add(Step::Bytes(bytes.to_vec())),
        }
    }
}

/// Requests of one connection that have no whole answer yet: places in the list of exchanges.
type Open = Arc<Mutex<VecDeque<usize>>>;

/// The two directions of a new connection.
pub(super) fn both() -> (Requests, Answers) {
    let open = Open::default();
    let requests = Requests { open: open.clone(), follower: Follower::new() };
    (requests, Answers { open, follower: Follower::new(), current: None })
}

pub(super) struct Requests {
    open: Open,
    follower: Follower,
}

impl Requests {
    pub(super) fn see(&mut self, piece: &[u8], shared: &Shared) -> Vec<Step> {
        let open = &self.open;
        let mut steps = Steps::default();
        self.follower.follow(
            piece,
            |head| announced(head, Length::Bytes(0)),
            |part| match part {
                Part::Head(raw) => request(&raw, open, shared, &mut steps),
                Part::Body { start, length } => steps.bytes(&piece[start..start + length]),
                Part::Other(bytes) => steps.bytes(&bytes),
                Part::End => {}
            },
        );
        steps.steps
    }
}

fn request(raw: &[u8], open: &Open, shared: &Shared, steps: &mut Steps) {
    let head = text(raw);
    let request = Request::new(head.clone().into_owned());
    let own = shared.gate.as_ref().and_then(|gate| (gate.0)(&request));
    let (place, faults) = shared.note(&request);
    let own = own.or_else(|| {
        faults.iter().find_map(|(_, fault)| match fault {
            Fault::Answer(answer) => Some(answer.clone()),
            Fault::RedirectLoop => Some(Answer::new(307).header("Location", &request.path)),
            _ => None,
        })
    });
    if let Some(answer) = own {
        if let Some(exchange) = shared.lock().exchanges.get_mut(place) {
            exchange.status = answer.status;
            exchange.body_bytes = answer.body.len() as u64;
        }
        return steps.add(Step::Reply(answer.bytes(&request.method)));
    }
    let is = |wanted: Fault| faults.iter().any(|(_, fault)| *fault == wanted);
    if is(Fault::HangUp) {
        return steps.add(Step::Reset);
    }
    match is(Fault::WholeBlob) {
        true => steps.bytes(without(&head, "range").as_bytes()),
        false => steps.bytes(raw),
    }
    open.lock().unwrap_or_else(PoisonError::into_inner).push_back(place);
    shared.lock().faulty.insert(place, faults);
}

/// The answer that passes.
struct Passing {
    place: usize,
    /// the next body byte's place in the resource
    at: u64,
    flips: Vec<u64>,
    /// body bytes until that happens
    left: Option<u64>,
    then: Option<Step>,
    is_slow: bool,
    is_final: bool,
}

pub(super) struct Answers {
    open: Open,
    follower: Follower,
    current: Option<Passing>,
}

impl Answers {
    pub(super) fn see(&mut self, piece: &[u8], shared: &Shared) -> Vec<Step> {
        let (open, current) = (&self.open, &mut self.current);
        let first = || open.lock().unwrap_or_else(PoisonError::into_inner).front().copied();
        let mut steps = Steps::default();
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
            Part::Head(raw) => match first() {
                Some(place) => *current = Some(begin(place, &raw, shared, &mut steps)),
                None => steps.bytes(&raw),
            },
            Part::Body { start, length } => {
                let body = &piece[start..start + length];
                match current {
                    Some(passing) => passing.body(body.to_vec(), shared, &mut steps),
                    None => steps.bytes(body),
                }
            }
            Part::Other(bytes) => steps.bytes(&bytes),
            Part::End => {
                let Some(over) = current.take() else { return };
                if over.is_slow {
                    steps.add(Step::Trickle(None));
                }
                if over.is_final {
                    open.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                    shared.lock().faulty.remove(&over.place);
                }
            }
        });
        steps.steps
    }
}

impl Passing {
    fn body(&mut self, mut body: Vec<u8>, shared: &Shared, steps: &mut Steps) {
        let range = self.at..self.at + body.len() as u64;
        for nth in self.flips.iter().filter(|nth| range.contains(nth)) {
            body[(nth - range.start) as usize] ^= 0xff;
        }
        self.at = range.end;
        let mut passed = body.len();
        let hit = self.left.filter(|left| *left <= body.len() as u64);
        if let Some(left) = hit {
            self.left = None;
            let (before, behind) = body.split_at(left as usize);
            steps.bytes(before);
            steps.add(self.then.take().expect("set together with `left`"));
            steps.bytes(if steps.is_over { &[] } else { behind });
            passed = if steps.is_over { before.len() } else { passed };
        } else {
            self.left = self.left.map(|left| left - body.len() as u64);
            steps.bytes(if steps.is_over { &[] } else { &body });
        }
        if let Some(exchange) = shared.lock().exchanges.get_mut(self.place) {
            exchange.body_bytes += passed as u64;
        }
    }
}

/// Hands on an answer's head, changed where a fault says so, and says what is to happen to its body.
fn begin(place: usize, raw: &[u8], shared: &Shared, steps: &mut Steps) -> Passing {
    let mut head = text(raw).into_owned();
    let status = status(&head);
    let at = content_range(&head).map_or(0, |(first, _, _)| first);
    let is_final = status >= 200;
    let mut passing =
        Passing { place, at, flips: Vec::new(), left: None, then: None, is_slow: false, is_final };
    let faults = {
        let mut state = shared.lock();
        if let Some(exchange) = state.exchanges.get_mut(place) {
            exchange.status = status;
        }
        state.faulty.get(&place).cloned().unwrap_or_default()
    };
    let mut slow = None;
    for (id, fault) in faults {
        let (after, then) = match fault {
            Fault::Flip { nth } => {
                passing.flips.push(nth);
                continue;
            }
            Fault::WrongRange => {
                if let Some((first, last, total)) = content_range(&head) {
                    let shifted = format!("bytes {}-{}/{total}", first + 1, last + 1);
                    head = with(&head, "Content-Range", &shifted);
                }
                continue;
            }
            Fault::Trickle => {
                slow = Some(id);
                continue;
            }
            Fault::Shorten { to } => {
                let length = header(&head, "content-length").and_then(|value| value.parse().ok());
                head = with(&head, "Content-Length", &to.min(length.unwrap_or(to)).to_string());
                (to, Step::Close)
            }
            Fault::Reset { after } => (after, Step::Reset),
            Fault::Truncate { after } => (after, Step::Close),
            Fault::Stall { after } => (after, Step::Hold(id)),
            _ => continue,
        };
        (passing.left, passing.then) = (Some(after), Some(then));
    }
    match head.as_bytes() == text(raw).as_bytes() {
        true => steps.bytes(raw),
        false => steps.bytes(head.as_bytes()),
    }
    if slow.is_some() {
        passing.is_slow = true;
        steps.add(Step::Trickle(slow));
    }
    passing
}
