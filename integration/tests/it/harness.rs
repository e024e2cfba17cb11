//! The harness against itself: what it starts is real and goes away, what it writes is what tar reads, what it
//! counts has passed.

mod link;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use flate2::Compression;
use integration::containerd::Containerd;
use integration::images::tar::{Dialect, Entry, Kind};
use integration::images::{Image, Layer, Tar, debian_python_image, push_image, push_index};
use integration::lab::Lab;
use integration::link::{Link, Speed};
use integration::machine::{ensure_debian, fixtures};
use integration::process::{self, wait_until};
use integration::reference::{Unpacked, unpack_layer};
use integration::registry::Registry;
use integration::tree::{Skip, assert_same, walk};
use oci::{Digest, Platform};

const LIMIT: Duration = Duration::from_secs(30);

#[test]
fn lab_leaves_nothing() {
    let lab = Lab::new("self").unwrap();
    let folder = lab.path().to_owned();
    let mut command = lab.command("sh");
    // One that outlives its parent and wants no signal.
    command.args(["-c", "trap '' TERM; (trap '' TERM HUP; sleep 1000) & sleep 1000 & wait"]);
    let program = lab.start("stubborn", command).unwrap();
    wait_until("its children", LIMIT, || Ok((lab.processes().len() >= 3).then_some(()))).unwrap();
    let all = lab.processes();
    program.kill();
    assert!(!lab.processes().is_empty(), "its children live on");
    lab.close().unwrap();
    for pid in all {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        assert!(stat.is_empty() || stat.contains(") Z "), "{pid} lives: {stat}");
    }
    assert!(!folder.exists());
}

#[test]
fn registry_starts_and_stops() {
    let lab = Lab::new("self").unwrap();
    let registry = Registry::start(&lab).unwrap();
    let image = Image::new(vec![Layer::gzip(&small().bytes())]);
    let pushed = push_image(registry.host(), "a/b:c", &image).unwrap();
    assert_eq!(pushed.reference, format!("{}/a/b:c", registry.host()));
    registry.restart().unwrap();
    let again = push_image(registry.host(), "a/b:c", &image).unwrap();
    assert_eq!(pushed.manifest, again.manifest);
    let arm = image.clone().platform(Platform::new("linux", "arm64", "v8"));
    let index = push_index(registry.host(), "a/b:all", &[image, arm]).unwrap();
    assert_eq!(index.images[0].manifest.digest, pushed.manifest.digest);
    let mut skopeo = lab.command("skopeo");
    ensure_debian(&["skopeo"]).unwrap();
    skopeo.args(["inspect", "--raw", "--tls-verify=false", &format!("docker://{}", index.reference)]);
    let raw = lab.run(skopeo, LIMIT).unwrap();
    assert_eq!(Digest::sha256(raw.as_bytes()), index.index.digest);
    registry.stop();
    assert!(push_image(registry.host(), "a/b:d", &Image::new(Vec::new())).is_err());
}

#[test]
fn registry_asks_for_a_login() {
    let lab = Lab::new("self").unwrap();
    let registry = Registry::with_login(&lab, "me", "secret").unwrap();
    let image = Image::new(vec![Layer::plain(small().bytes())]);
    assert!(push_image(registry.host(), "a:b", &image).is_err());
    let login = integration::images::Login { user: "me".into(), password: "secret".into() };
    integration::images::push_image_as(login, registry.host(), "a:b", &image).unwrap();
}

#[test]
fn containerd_starts_and_stops() {
    let lab = Lab::new("self").unwrap();
    let registry = Registry::start(&lab).unwrap();
    let containerd = Containerd::start(&lab).unwrap();
    let image = busybox();
    let pushed = push_image(registry.host(), "busybox:1", &image).unwrap();
    containerd.pull(&pushed.reference, "overlayfs").unwrap();
    let said = containerd.run(&pushed.reference, "overlayfs", "c1", &["echo", "hello"]).unwrap();
    assert_eq!(said, "hello\n");
    containerd.restart().unwrap();
    // One that is still running when the lab goes.
    let words =
        ["run", "-d", "--net-host", "--snapshotter", "overlayfs", &pushed.reference, "c2", "sleep", "1000"];
    containerd.ctr(&words).unwrap();
    assert!(containerd.ctr(&["tasks", "ls"]).unwrap().contains("RUNNING"));
    assert!(!lab.mounts().is_empty());
    let folder = lab.path().to_owned();
    lab.close().unwrap();
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(folder.to_str().unwrap()), "{mounts}");
}

#[test]
fn containerd_killed_leaves_no_container() {
    let lab = Lab::new("self").unwrap();
    let registry = Registry::start(&lab).unwrap();
    let containerd = Containerd::start(&lab).unwrap();
    let pushed = push_image(registry.host(), "busybox:1", &busybox()).unwrap();
    containerd.pull(&pushed.reference, "overlayfs").unwrap();
    let words =
        ["run", "-d", "--net-host", "--snapshotter", "overlayfs", &pushed.reference, "c", "sleep", "1000"];
    containerd.ctr(&words).unwrap();
    containerd.kill();
    let pids = lab.processes();
    assert!(pids.len() >= 2, "the shim and the container live on: {pids:?}");
    lab.close().unwrap();
    for pid in pids {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        assert!(stat.is_empty() || stat.contains(") Z "), "{pid} lives: {stat}");
    }
}

#[test]
fn link_counts_and_cuts() {
    let lab = Lab::new("self").unwrap();
    let registry = Registry::start(&lab).unwrap();
    let link = Link::new(&lab, registry.host()).unwrap();
    let noise: Vec<u8> = (0..300_000_u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    let layer = Layer::plain(Tar::new([Entry::file("noise", &noise)]).bytes());
    let length = layer.bytes.len() as u64;
    let digest = layer.digest.to_string();
    // Through the link: the registry's absolute URLs must lead back into it.
    let pushed = push_image(link.host(), "a:b", &Image::new(vec![layer.clone()])).unwrap();
    assert!(link.traffic().up > length, "{:?}", link.traffic());
    let put = link.exchanges().into_iter().find(|e| e.method == "PUT" && e.path.contains("blobs")).unwrap();
    assert_eq!(put.status, 201);

    link.reset();
    let path = format!("/v2/a/blobs/{digest}");
    assert_eq!(get(link.host(), &path, "").unwrap(), layer.bytes);
    assert_eq!(link.exchanges()[0].body_bytes, length);
    let down = link.traffic().down;
    assert!(down > length && down < length + 4096, "{down} for {length}");

    link.flip_byte(&digest, 1000);
    let part = get(link.host(), &path, "Range: bytes=990-1009\r\n").unwrap();
    let mut expected = layer.bytes[990..1010].to_vec();
    assert_eq!(expected.len(), part.len());
    expected[10] ^= 0xff;
    assert_eq!(part, expected);
    link.lift();

    link.cut();
    assert!(get(link.host(), &path, "").is_err());
    link.restore();
    assert_eq!(get(link.host(), &path, "").unwrap(), layer.bytes);
    assert_eq!(link.exchanges().len(), 3);
    assert!(pushed.layers[0].digest == layer.digest);
}

#[test]
fn link_has_a_speed() {
    let lab = Lab::new("self").unwrap();
    let registry = Registry::start(&lab).unwrap();
    let layer = Layer::plain(Tar::new([Entry::file("zeros", vec![0; 1 << 20])]).bytes());
    let path = format!("/v2/a/blobs/{}", layer.digest);
    push_image(registry.host(), "a:b", &Image::new(vec![layer])).unwrap();
    let speed = Speed { bytes_per_second: Some(4 << 20), round_trip: Duration::from_millis(20) };
    let link = Link::with_speed(&lab, registry.host(), speed).unwrap();
    let start = std::time::Instant::now();
    get(link.host(), &path, "").unwrap();
    let took = start.elapsed();
    // A quarter of a second and two round trips; above, a busy machine may add what it likes.
    assert!(took >= Duration::from_millis(280), "{took:?}");
}

#[test]
fn privileged_small_image_is_what_was_written() {
    let lab = Lab::new("self").unwrap();
    for dialect in [Dialect::Pax, Dialect::Gnu] {
        for compress in [false, true] {
            let tar = small().dialect(dialect);
            let layer = if compress { Layer::gzip(&tar.bytes()) } else { Layer::plain(tar.bytes()) };
            let folder = unpack_layer(&lab, &layer).unwrap();
            assert_same(&tar.tree(), &walk(&folder).unwrap(), &Skip { top: true, ..Skip::default() });
        }
    }
    let levels = [Compression::none(), Compression::fast(), Compression::best()];
    for layer in levels.map(|level| Layer::gzip_at(&small().bytes(), level)) {
        assert_eq!(layer.diff_id, Layer::gzip(&small().bytes()).diff_id);
    }
}

#[test]
fn containerd_unpacks_what_was_written() {
    let lab = Lab::new("self").unwrap();
    let registry = Registry::start(&lab).unwrap();
    let containerd = Containerd::start(&lab).unwrap();
    let upper = Tar::new([
        Entry::whiteout("usr/file"),
        Entry::opaque("usr/empty"),
        Entry::file("usr/empty/new", "new"),
    ]);
    let layers = vec![Layer::gzip(&small().bytes()), Layer::gzip(&upper.bytes())];
    let pushed = push_image(registry.host(), "small:1", &Image::new(layers)).unwrap();
    let found = Unpacked::image(&lab, &containerd, &pushed.reference).unwrap().tree().unwrap();
    assert!(found.get("usr/file").is_none());
    assert!(found.get("usr/empty/old").is_none());
    assert_eq!(found.get("usr/empty/new").unwrap().size, 3);
    assert_eq!(found.get("usr/set-id").unwrap().mode, 0o6755);
}

#[test]
fn containerd_runs_the_debian_image() {
    let lab = Lab::new("self").unwrap();
    let image = debian_python_image(&fixtures().unwrap()).unwrap();
    assert!(image.layers.len() >= 4);
    let registry = Registry::start(&lab).unwrap();
    let containerd = Containerd::start(&lab).unwrap();
    let pushed = push_image(registry.host(), "python:plain", &image).unwrap();
    containerd.pull(&pushed.reference, "overlayfs").unwrap();
    let words = ["python3", "/srv/app.py", "50"];
    let said = containerd.run(&pushed.reference, "overlayfs", "app", &words).unwrap();
    assert_eq!(said, "sum 3123750\n");
    let words = ["python3", "-c", "import boto3, ssl, sqlite3; print(boto3.__version__)"];
    containerd.run(&pushed.reference, "overlayfs", "cloud", &words).unwrap();
    let said = containerd.run(&pushed.reference, "overlayfs", "sh", &["sh", "-c", "id -un; ls / | wc -l"]);
    assert!(said.unwrap().starts_with("root\n"));
}

/// A layer with everything odd that can be unpacked on any Linux file system.
fn small() -> Tar {
    let long = "long/".to_owned() + &"x".repeat(120);
    Tar::new([
        Entry::directory("usr").mode(0o755).mtime(1_600_000_000, 0),
        Entry::directory("usr/empty").mode(0o1777),
        Entry::file("usr/empty/old", "old"),
        Entry::file("usr/file", "content").mtime(1_600_000_000, 123_456_789).owner(1000, 2000),
        Entry::hard_link("usr/other name", "usr/file"),
        Entry::file("usr/before", "1969").mtime(-2, 500_000_000),
        Entry::file("usr/long before", "1906").mtime(-2_000_000_000, 0),
        Entry::symlink("usr/link", "../file/that is not"),
        Entry::new("usr/character", Kind::Character(1, 3)).mode(0o666),
        Entry::new("usr/block", Kind::Block(300, 70_000)),
        Entry::new("usr/fifo", Kind::Fifo).mode(0o600),
        Entry::file("usr/attributes", "").xattr("user.one", "1").xattr("user.two", [0, 255, 10]),
        Entry::file(b"usr/\xff\xfe not UTF-8", "odd"),
        Entry::file("usr/set-id", "x").mode(0o6755).owner(3_000_000, 4),
        Entry::directory("long"),
        Entry::file(&long, "long"),
        Entry::symlink("long/link", "y".repeat(200)),
        Entry::directory("long/".to_owned() + &"d".repeat(110)),
        Entry::file("big", vec![7; 300_000]),
    ])
    .with(Entry::file("usr/other", "").mode(0))
}

fn busybox() -> Image {
    ensure_debian(&["busybox-static"]).expect("busybox is installed");
    let program = std::fs::read("/bin/busybox").expect("busybox is there");
    let links = ["sh", "echo", "sleep"].map(|name| Entry::symlink(format!("bin/{name}"), "busybox"));
    let tar = Tar::new([Entry::directory("bin"), Entry::file("bin/busybox", program).mode(0o755)]);
    let tar = links.into_iter().fold(tar, Tar::with);
    Image::new(vec![Layer::gzip(&tar.bytes())])
}

/// The body of an answer to a plain GET; an error when the connection ends before it is whole.
fn get(host: &str, path: &str, headers: &str) -> std::io::Result<Vec<u8>> {
    let mut socket = TcpStream::connect(host)?;
    socket.set_read_timeout(Some(LIMIT))?;
    write!(socket, "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{headers}\r\n")?;
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer)?;
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n");
    let end = end.ok_or(std::io::ErrorKind::UnexpectedEof)?;
    Ok(answer.split_off(end + 4))
}

#[test]
fn output_of_a_failure_is_in_the_error() {
    let mut command = Command::new("sh");
    command.args(["-c", "echo why >&2; exit 3"]);
    let error = process::run(command, LIMIT).unwrap_err().to_string();
    assert!(error.contains("why") && error.contains("exit status: 3"), "{error}");
}
