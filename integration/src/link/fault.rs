//! What can go wrong on the way, and which requests it befalls. Pure: requests go in, and what to do with them
//! comes out; `exchange` does it.

/// What happens to a request, or to the answer to it. Places are bytes of the answer's body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// The connection is reset as soon as the request is there.
    HangUp,
    /// The connection is reset behind this place; what had not arrived by then is lost.
    Reset { after: u64 },
    /// The connection ends behind this place, in order, and earlier than the answer's length says.
    Truncate { after: u64 },
    /// The answer says that it has so many bytes, and has no more.
    Shorten { to: u64 },
    /// Behind this place nothing moves until the fault is lifted.
    Stall { after: u64 },
    /// A byte a second until the fault is lifted.
    Trickle,
    /// A request for a range gets the whole with status 200.
    WholeBlob,
    /// The answer says that its range begins one byte later than it does.
    WrongRange,
    /// One byte is inverted: the `nth` of the whole resource, whichever range it comes in.
    Flip { nth: u64 },
    /// The registry is not asked; this is the answer.
    Answer(Answer),
    /// As [`Fault::Answer`]: 307, and the place to go to is this same one.
    RedirectLoop,
}

/// An answer of our own. The connection ends after it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

/// Which requests: those that fit everything said here.
#[derive(Debug, Clone, Default)]
pub struct When {
    path: String,
    method: Option<String>,
    ranged: Option<bool>,
    /// of the fitting requests so many are spared first
    spared: u64,
    /// and then so many are hit
    times: Option<u64>,
}

/// A request as it was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    pub method: String,
    pub path: String,
    /// the first line and the headers
    pub(super) head: String,
}

/// A fault in force.
#[derive(Debug)]
pub(super) struct Planned {
    pub(super) id: u64,
    pub(super) fault: Fault,
    when: When,
    seen: u64,
}

impl Fault {
    /// This status instead of an answer.
    pub fn status(status: u16) -> Fault {
        Fault::Answer(Answer::new(status))
    }

    /// This status, and the wish to be left alone for so long.
    pub fn busy(status: u16, seconds: u64) -> Fault {
        Fault::Answer(Answer::new(status).header("Retry-After", &seconds.to_string()))
    }

    /// 307 to this URL.
    pub fn redirect(url: &str) -> Fault {
        Fault::Answer(Answer::new(307).header("Location", url))
    }
}

impl Answer {
    pub fn new(status: u16) -> Answer {
        Answer { status, ..Answer::default() }
    }

    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Answer {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    #[must_use]
    pub fn body(mut self, text: &str) -> Answer {
        text.clone_into(&mut self.body);
        self
    }

    /// As it is sent in answer to `method`.
    pub(super) fn bytes(&self, method: &str) -> Vec<u8> {
        let mut text = format!("HTTP/1.1 {} Own\r\nConnection: close\r\n", self.status);
        for (name, value) in &self.headers {
            text += &format!("{name}: {value}\r\n");
        }
        text += &format!("Content-Length: {}\r\n\r\n", self.body.len());
        if method != "HEAD" {
            text += &self.body;
        }
        text.into_bytes()
    }
}

impl When {
    /// Requests whose path contains this.
    pub fn path(part: impl Into<String>) -> When {
        When { path: part.into(), ..When::default() }
    }

    #[must_use]
    pub fn method(mut self, method: &str) -> When {
        self.method = Some(method.to_owned());
        self
    }

    /// Only those that ask for a range.
    #[must_use]
    pub fn ranged(mut self) -> When {
        self.ranged = Some(true);
        self
    }

    /// Only those that do not.
    #[must_use]
    pub fn whole(mut self) -> When {
        self.ranged = Some(false);
        self
    }

    /// From the `nth` on; the first is 1.
    #[must_use]
    pub fn from(mut self, nth: u64) -> When {
        self.spared = nth.saturating_sub(1);
        self
    }

    /// No more than this many.
    #[must_use]
    pub fn times(mut self, count: u64) -> When {
        self.times = Some(count);
        self
    }

    fn fits(&self, request: &Request) -> bool {
        request.path.contains(&self.path)
            && self.method.as_ref().is_none_or(|method| *method == request.method)
            && self.ranged.is_none_or(|ranged| ranged == request.header("range").is_some())
    }
}

impl Request {
    pub(super) fn new(head: String) -> Request {
        let mut words = head.split(' ').map(str::to_owned);
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        Request { method, path, head }
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        super::http::header(&self.head, name)
    }
}

impl Planned {
    pub(super) fn new(id: u64, fault: Fault, when: When) -> Planned {
        Planned { id, fault, when, seen: 0 }
    }

    /// Whether it befalls this request. To be asked once a request.
    pub(super) fn hits(&mut self, request: &Request) -> bool {
        if !self.when.fits(request) {
            return false;
        }
        self.seen += 1;
        let nth = self.seen.saturating_sub(self.when.spared);
        nth > 0 && self.when.times.is_none_or(|times| nth <= times)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_chosen() {
        let request = |line: &str| Request::new(format!("{line} HTTP/1.1\r\nRange: bytes=0-1\r\n\r\n"));
        let blob = request("GET /v2/a/blobs/sha256:1");
        let check = |when: When, hits: &[bool]| {
            let mut planned = Planned::new(0, Fault::HangUp, when.clone());
            let found: Vec<bool> = hits.iter().map(|_| planned.hits(&blob)).collect();
            assert_eq!(found, hits, "{when:?}");
        };
        check(When::default(), &[true, true]);
        check(When::path("blobs/"), &[true]);
        check(When::path("manifests/"), &[false]);
        check(When::path("a/").method("GET").ranged(), &[true]);
        check(When::path("a/").method("HEAD"), &[false]);
        check(When::path("a/").whole(), &[false]);
        check(When::path("a/").from(2).times(2), &[false, true, true, false, false]);
    }
}
