//! One direction of an HTTP/1.1 connection, followed piece by piece as it passes: where a head ends, which bytes
//! are body, when the message is over. Every byte that goes in comes out again in some part, a head's only once it
//! is complete. What it does not understand it stops following.

use std::borrow::Cow;

/// A head longer than this is none.
const HEAD_BYTES_MAX: usize = 64 << 10;

/// What passes.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// a head, complete: the first line and the headers
    Head(Vec<u8>),
    /// this many bytes of body, from this place in the piece
    Body { start: usize, length: usize },
    /// bytes around the body, or of what is not understood
    Other(Vec<u8>),
    /// the message is over
    End,
}

/// How long a body is, which only the caller knows: an answer to HEAD has none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Length {
    Bytes(u64),
    Chunked,
    UntilClose,
}

#[derive(Debug)]
enum State {
    Head(Vec<u8>),
    Body(u64),
    UntilClose,
    /// the line with a chunk's size
    ChunkSize(Vec<u8>),
    Chunk(u64),
    /// the two bytes behind a chunk
    ChunkEnd(u8),
    /// the lines behind the last chunk: how many bytes the current one has
    Trailer(usize),
    Lost,
}

#[derive(Debug)]
pub(super) struct Follower {
    state: State,
}

impl Follower {
    pub(super) fn new() -> Follower {
        Follower { state: State::Head(Vec::new()) }
    }

    /// Goes through a piece. `length` is asked when a head is complete.
    pub(super) fn follow(
        &mut self,
        piece: &[u8],
        mut length: impl FnMut(&str) -> Length,
        mut part: impl FnMut(Part),
    ) {
        let mut at = 0;
        while at < piece.len() {
            let rest = &piece[at..];
            match &mut self.state {
                State::Head(head) => {
                    head.push(rest[0]);
                    at += 1;
                    if head.ends_with(b"\r\n\r\n") {
                        let head = std::mem::take(head);
                        self.begin(length(&text(&head)), head, &mut part);
                    } else if head.len() > HEAD_BYTES_MAX {
                        part(Part::Other(std::mem::take(head)));
                        self.state = State::Lost;
                    }
                }
                State::Body(left) | State::Chunk(left) => {
                    let taken = usize::try_from(*left).unwrap_or(usize::MAX).min(rest.len());
                    *left -= taken as u64;
                    let is_over = *left == 0;
                    part(Part::Body { start: at, length: taken });
                    at += taken;
                    match (&self.state, is_over) {
                        (State::Chunk(_), true) => self.state = State::ChunkEnd(2),
                        (_, true) => self.end(&mut part),
                        (_, false) => {}
                    }
                }
                State::UntilClose => {
                    part(Part::Body { start: at, length: rest.len() });
                    at = piece.len();
                }
                State::Lost => {
                    part(Part::Other(rest.to_vec()));
                    at = piece.len();
                }
                _ => {
                    part(Part::Other(vec![rest[0]]));
                    self.frame(rest[0], &mut part);
                    at += 1;
                }
            }
        }
    }

    fn begin(&mut self, length: Length, head: Vec<u8>, part: &mut impl FnMut(Part)) {
        part(Part::Head(head));
        match length {
            Length::Bytes(0) => self.end(part),
            Length::Bytes(count) => self.state = State::Body(count),
            Length::Chunked => self.state = State::ChunkSize(Vec::new()),
            Length::UntilClose => self.state = State::UntilClose,
        }
    }

    fn end(&mut self, part: &mut impl FnMut(Part)) {
        part(Part::End);
        self.state = State::Head(Vec::new());
    }

    /// One byte of what stands around chunks.
    fn frame(&mut self, byte: u8, part: &mut impl FnMut(Part)) {
        match &mut self.state {
            State::ChunkSize(line) if byte == b'\n' => {
                let text = text(line);
                let digits = text.split(';').next().unwrap_or_default().trim();
                self.state = match u64::from_str_radix(digits, 16) {
                    Ok(0) => State::Trailer(0),
                    Ok(size) => State::Chunk(size),
                    Err(_) => State::Lost,
                };
            }
            State::ChunkSize(line) => line.push(byte),
            State::ChunkEnd(left) => {
                *left -= 1;
                if *left == 0 {
                    self.state = State::ChunkSize(Vec::new());
                }
            }
            State::Trailer(0) if byte == b'\n' => self.end(part),
            State::Trailer(count) if byte == b'\n' => *count = 0,
            State::Trailer(count) if byte != b'\r' => *count += 1,
            _ => {}
        }
    }
}

pub(super) fn text(head: &[u8]) -> Cow<'_, str> {
    String::from_utf8_lossy(head)
}

/// A header's value.
pub(super) fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let mut lines = head.lines().skip(1).filter_map(|line| line.split_once(':'));
    lines.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
}

/// The same head without a header.
pub(super) fn without(head: &str, name: &str) -> String {
    let is_it = |line: &str| line.split_once(':').is_some_and(|(key, _)| key.eq_ignore_ascii_case(name));
    head.split_inclusive("\r\n").filter(|line| !is_it(line)).collect()
}

/// The same head with another value of a header.
pub(super) fn with(head: &str, name: &str, value: &str) -> String {
    let rest = without(head, name);
    let (first, rest) = rest.split_once("\r\n").unwrap_or((&rest, "\r\n"));
    format!("{first}\r\n{name}: {value}\r\n{rest}")
}

/// What the headers say of the body; `otherwise` where they say nothing.
pub(super) fn announced(head: &str, otherwise: Length) -> Length {
    if header(head, "transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked")) {
        return Length::Chunked;
    }
    let length = header(head, "content-length").and_then(|value| value.parse().ok());
    length.map_or(otherwise, Length::Bytes)
}

/// `HTTP/1.1 206 Partial Content`
pub(super) fn status(head: &str) -> u16 {
    head.split(' ').nth(1).and_then(|word| word.parse().ok()).unwrap_or_default()
}

/// `Content-Range: bytes 100-199/5000`
pub(super) fn content_range(head: &str) -> Option<(u64, u64, &str)> {
    let (range, total) = header(head, "content-range")?.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    Some((first.parse().ok()?, last.parse().ok()?, total))
}
