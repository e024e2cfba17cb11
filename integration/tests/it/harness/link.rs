//! Every fault of the line as a client sees it, byte for byte, and the look-alike of ECR.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use integration::ecr::Ecr;
use integration::images::{Image, Layer, Tar, push_image, tar::Entry};
use integration::lab::Lab;
use integration::link::{Answer, Fault, Link, When};
use integration::registry::Registry;

use super::LIMIT;

const RANGE: &str = "Range: bytes=1000-1999\r\n";

/// A registry with one blob, and the line to it.
struct Scene {
    link: Link,
    registry: Registry,
    blob: Vec<u8>,
    path: String,
    lab: Lab,
}

/// What came, until the connection ended.
struct Seen {
    head: String,
    body: Vec<u8>,
    is_reset: bool,
}

fn scene() -> Result<Scene> {
    let lab = Lab::new("self")?;
    let registry = Registry::start(&lab)?;
    let link = Link::new(&lab, registry.host())?;
    let layer = Layer::plain(Tar::new([Entry::file("file", b"0123456789".repeat(1000))]).bytes());
    push_image(registry.host(), "a:b", &Image::new(vec![layer.clone()]))?;
    let path = format!("/v2/a/blobs/{}", layer.digest);
    Ok(Scene { link, registry, blob: layer.bytes.to_vec(), path, lab })
}

fn ask(host: &str, path: &str, headers: &str) -> Result<Seen> {
    let mut socket = TcpStream::connect(host)?;
    socket.set_read_timeout(Some(LIMIT))?;
    write!(socket, "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{headers}\r\n")?;
    let mut answer = Vec::new();
    let is_reset = socket.read_to_end(&mut answer).is_err();
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n").map_or(0, |at| at + 4);
    let body = answer.split_off(end);
    Ok(Seen { head: String::from_utf8(answer)?, body, is_reset })
}

impl Seen {
    fn status(&self) -> &str {
        self.head.split(' ').nth(1).unwrap_or_default()
    }
}

impl Scene {
    fn ask(&self, headers: &str) -> Result<Seen> {
        ask(self.link.host(), &self.path, headers)
    }

    /// With this fault in force: a status, the body, and what must stand in the head. Afterwards the truth.
    fn check(&self, fault: Fault, headers: &str, status: &str, body: &[u8], head: &str) -> Result<()> {
        let told = format!("{fault:?}");
        let injected = self.link.inject(fault, When::path("blobs/"));
        let seen = self.ask(headers)?;
        injected.lift();
        assert_eq!(seen.status(), status, "{told}: {}", seen.head);
        assert!(seen.head.contains(head), "{told}: {}", seen.head);
        assert_eq!(seen.body, body, "{told}");
        assert_eq!(self.ask(RANGE)?.body, self.blob[1000..2000], "after {told}");
        assert_eq!(injected.hits(), 1, "{told}");
        Ok(())
    }
}

#[test]
fn link_answers_as_it_is_told() -> Result<()> {
    let scene = scene()?;
    let part = &scene.blob[1000..2000];
    scene.check(Fault::Truncate { after: 10 }, RANGE, "206", &part[..10], "Content-Length: 1000\r\n")?;
    scene.check(Fault::Shorten { to: 10 }, RANGE, "206", &part[..10], "Content-Length: 10\r\n")?;
    scene.check(Fault::WholeBlob, RANGE, "200", &scene.blob, "")?;
    scene.check(Fault::WrongRange, RANGE, "206", part, "Content-Range: bytes 1001-2000/")?;
    let mut flipped = part.to_vec();
    flipped[5] ^= 0xff;
    scene.check(Fault::Flip { nth: 1005 }, RANGE, "206", &flipped, "Content-Range: bytes 1000-1999/")?;
    scene.check(Fault::busy(429, 7), "", "429", b"", "Retry-After: 7\r\n")?;
    scene.check(Fault::Answer(Answer::new(403).body("no")), "", "403", b"no", "Content-Length: 2\r\n")?;
    scene.check(Fault::RedirectLoop, "", "307", b"", &format!("Location: {}\r\n", scene.path))?;
    // What is over is over, whatever had been asked for in between.
    let exchanges = scene.link.exchanges();
    assert!(exchanges.iter().all(|exchange| exchange.status != 0), "{exchanges:?}");
    Ok(())
}

#[test]
fn link_breaks_as_it_is_told() -> Result<()> {
    let scene = scene()?;
    scene.link.inject(Fault::HangUp, When::path("blobs/").times(1));
    let seen = scene.ask("")?;
    assert!(seen.is_reset && seen.head.is_empty());
    scene.link.inject(Fault::Reset { after: 100 }, When::path("blobs/").from(2));
    assert_eq!(scene.ask("")?.body, scene.blob);
    let seen = scene.ask("")?;
    assert!(seen.is_reset && seen.body.len() <= 100, "{} bytes", seen.body.len());
    scene.link.lift();
    assert_eq!(scene.ask("")?.body, scene.blob);
    Ok(())
}

#[test]
fn link_stands_still_until_it_is_lifted() -> Result<()> {
    let scene = scene()?;
    for fault in [Fault::Stall { after: 100 }, Fault::Trickle] {
        let injected = scene.link.inject(fault, When::path("blobs/").ranged());
        let (host, path) = (scene.link.host().to_owned(), scene.path.clone());
        let (sender, answer) = channel();
        let asking = thread::spawn(move || sender.send(ask(&host, &path, RANGE)));
        injected.wait_for(1)?;
        // Requests for other things are served.
        assert_eq!(scene.ask("")?.body, scene.blob);
        // Not an event but the want of one; a slow machine makes this the surer.
        let early = answer.recv_timeout(Duration::from_millis(100));
        assert_eq!(early.err(), Some(RecvTimeoutError::Timeout));
        injected.lift();
        assert_eq!(answer.recv_timeout(LIMIT)??.body, scene.blob[1000..2000]);
        asking.join().expect("it does not panic")?;
    }
    Ok(())
}

#[test]
fn ecr_lets_valid_credentials_in() -> Result<()> {
    let scene = scene()?;
    let ecr = Ecr::start(&scene.lab, scene.registry.host())?;
    let login = || -> Result<String> {
        let file = std::fs::read(scene.lab.path().join("docker/config.json"))?;
        let file: serde_json::Value = serde_json::from_slice(&file)?;
        let secret = file["auths"][ecr.api.host()]["auth"].as_str().context("a token")?;
        Ok(format!("Authorization: Basic {secret}\r\n"))
    };
    let api = |path: &str, headers: &str| ask(ecr.api.host(), path, headers);
    let seen = api(&scene.path, "")?;
    assert!(seen.status() == "401" && seen.head.contains("Basic"), "{}", seen.head);
    let old = login()?;
    let seen = api(&scene.path, &old)?;
    let signed = seen.head.lines().find_map(|line| line.strip_prefix("Location: http://"));
    let (host, path) = signed.and_then(|line| line.split_once('/')).context("a place to go to")?;
    let store = |path: &str, headers: &str| ask(host, &format!("/{path}"), headers);
    assert_eq!(store(path, "")?.body, scene.blob);
    assert_eq!(store(path, &old)?.status(), "403", "credentials are not for the store");
    assert_eq!(store(scene.path.trim_start_matches('/'), "")?.status(), "403");
    ecr.expire_signatures();
    assert_eq!(store(path, "")?.status(), "403");
    ecr.expire_token();
    let seen = api(&scene.path, &old)?;
    assert_eq!(seen.status(), "403");
    assert!(String::from_utf8_lossy(&seen.body).contains("authorization token has expired"));
    ecr.hand_out()?;
    let new = login()?;
    ecr.expire_token_after(1);
    assert_eq!(api("/v2/a/tags/list", &new)?.status(), "200");
    assert_eq!(api("/v2/a/tags/list", &new)?.status(), "403");
    Ok(())
}
