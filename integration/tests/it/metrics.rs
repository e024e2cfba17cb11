//! The metrics over HTTP: each is documented, and tells what happened.

use std::{
    collections::BTreeSet,
    fs,
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    thread,
};

use anyhow::{Context, Result, ensure};
use integration::{
    daemon::{LOG_LIMIT, soci, with_containerd},
    images::{Image, Layer, Tar, push_image, tar::Entry},
    lab::Lab,
    link::{Fault, Link, When},
    machine::{self, binaries},
    process::wait_until,
    reference::mount,
    registry::Registry,
};

use oci::Descriptor;

use crate::{
    image::noise,
    read_path::{NO_FILL, pull},
};

pub(crate) const SIZE: usize = 300_000;

/// An image of two layers in a registry behind a link: a large one with a ztoc, and one too small for it.
pub(crate) struct Stage {
    pub(crate) lab: Lab,
    pub(crate) link: Link,
    pub(crate) large: Descriptor,
    /// Where metrics are served with `configuration`.
    pub(crate) socket: PathBuf,
    _registry: Registry,
}

impl Stage {
    pub(crate) fn new(name: &str) -> Result<Stage> {
        let lab = Lab::new(name)?;
        let registry = Registry::start(&lab)?;
        let files = (0..4).map(|seed| Entry::file(format!("file{seed}"), noise(seed, SIZE)));
        let large = Layer::gzip(&Tar::new(files).bytes());
        let small = Layer::gzip(&Tar::new([Entry::file("small", b"small")]).bytes());
        let pushed = push_image(registry.host(), "app:plain", &Image::new(vec![large, small]))?;
        let place = |tag: &str| format!("docker://{}/app:{tag}", registry.host());
        let words = ["--span-size", "65536", "--min-layer-size", "100000"];
        soci(&lab, &binaries()?, &[&["convert"], &words[..], &[&place("plain"), &place("soci")]].concat())?;
        let link = Link::new(&lab, registry.host())?;
        let socket = lab.path().join("m.sock");
        Ok(Stage { lab, link, large: pushed.layers[0].clone(), socket, _registry: registry })
    }

    pub(crate) fn image(&self) -> String {
        format!("{}/app:soci", self.link.host())
    }

    /// Has metrics served; `more` may begin with keys of no table.
    pub(crate) fn configuration(&self, more: &str) -> String {
        let socket = self.socket.display();
        format!("metrics_address = \"{socket}\"\nmetrics_network = \"unix\"\n{more}")
    }

    /// The number of a series of the large layer.
    fn of_the_layer(&self, text: &str, name: &str, operation: &str) -> Result<u64> {
        number(text, &format!("{name}{{operation_type=\"{operation}\",layer=\"{}\"}}", self.large.digest))
    }

    /// How much of the large layer is there, and how large it is.
    fn sizes(&self, text: &str) -> Result<(u64, u64)> {
        let size = |name: &str| -> Result<u64> {
            let start = format!("{name}{{digest=\"{}\",mountpoint=\"", self.large.digest);
            let line = text.lines().find_map(|line| line.strip_prefix(&start));
            let line = line.with_context(|| text.to_owned())?;
            line.rsplit(' ').next().unwrap_or_default().parse().context(name.to_owned())
        };
        Ok((size("soci_fs_layer_fetched_size_bytes")?, size("soci_fs_layer_size_bytes")?))
    }
}

/// Status and body that a daemon's socket answers with.
pub(crate) fn get(socket: &Path, path: &str) -> Result<(u16, String)> {
    let mut stream = UnixStream::connect(socket).context("connect to the metrics")?;
    stream.set_read_timeout(Some(LOG_LIMIT))?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("an answer over HTTP")?;
    let status = head.split(' ').nth(1).with_context(|| head.to_owned())?;
    Ok((status.parse().with_context(|| head.to_owned())?, body.to_owned()))
}

fn scrape(socket: &Path) -> Result<String> {
    let (status, body) = get(socket, "/metrics")?;
    ensure!(status == 200, "{status}");
    Ok(body)
}

/// The number of a series, as it is written.
fn number(text: &str, series: &str) -> Result<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.with_context(|| format!("there is no {series}"))?.parse().context(series.to_owned())
}

/// Rows of the table in docs/operating.md, as the daemon's answer would have them.
fn documented() -> Result<BTreeSet<String>> {
    let page = fs::read_to_string(machine::root().join("docs/operating.md"))?;
    let rows = page.lines().skip_while(|line| *line != "| metric | kind | label | meaning |").skip(2);
    Ok(rows.take_while(|line| line.starts_with('|')).map(str::to_owned).collect())
}

fn given(text: &str) -> BTreeSet<String> {
    let kind_of = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("# TYPE {name} ")));
        line.unwrap_or_default().to_owned()
    };
    let labels_of = |name: &str| {
        let begins = |line: &str| {
            let rest = line.strip_prefix(name)?;
            rest.strip_prefix('{').or_else(|| rest.strip_prefix("_count{")).map(str::to_owned)
        };
        let Some(line) = text.lines().find_map(begins) else { return String::new() };
        let labels = line.split("=\"").filter_map(|part| part.rsplit(['{', ',', '"']).next());
        let labels: Vec<_> = labels.filter(|label| !label.contains('}')).collect();
        labels.iter().map(|label| format!("`{label}`")).collect::<Vec<_>>().join(", ")
    };
    let names = text.lines().filter_map(|line| line.strip_prefix("# HELP ")?.split_once(' '));
    names
        .map(|(name, help)| format!("| `{name}` | {} | {} | {help} |", kind_of(name), labels_of(name)))
        .collect()
}

/// After one file of one layer was read.
fn ensure_numbers(text: &str) -> Result<()> {
    for (series, expected) in [
        ("soci_snapshots_prepared_total{outcome=\"lazy\"}", 1),
        ("soci_snapshots_prepared_total{outcome=\"whole\"}", 1),
        ("soci_layers_not_lazy_total{reason=\"no_ztoc\"}", 1),
        ("soci_layers_compared_total{outcome=\"right\"}", 1), // the one that came whole
        ("soci_layers_shown", 2),
        ("soci_reads_total{outcome=\"failed\"}", 0),
        ("soci_readers_waiting", 0),
        ("soci_spans{state=\"filling\"}", 0),
        ("soci_fetch_requests_total{priority=\"fill\"}", 0),
        ("soci_fetch_failures_total{kind=\"unreachable\"}", 0),
        ("soci_panics_total", 0),
    ] {
        ensure!(number(text, series)? == expected, "{series} is not {expected}:\n{text}");
    }
    for series in [
        "soci_fuse_requests_total{request=\"lookup\"}",
        "soci_reads_total{outcome=\"waited\"}",
        "soci_read_wait_seconds_count",
        "soci_spans{state=\"ready\"}",
        "soci_spans{state=\"empty\"}",
        "soci_spans_landed_total{how=\"stored\"}",
        "soci_fetch_requests_total{priority=\"demand\"}",
    ] {
        ensure!(number(text, series)? > 0, "{series} is 0:\n{text}");
    }
    for series in
        ["soci_read_bytes_total", "soci_fetch_bytes_total{priority=\"demand\"}", "soci_span_store_bytes"]
    {
        ensure!(number(text, series)? >= SIZE as u64, "{series} is too little:\n{text}");
    }
    Ok(())
}

/// The same of the layer alone.
fn ensure_numbers_of_the_layer(stage: &Stage, text: &str) -> Result<()> {
    const DURATIONS: &str = "soci_fs_operation_duration_milliseconds_count";
    for (name, operation, expected) in [
        ("soci_fs_operation_count", "fuse_file_read_failure_count", 0),
        ("soci_fs_operation_count", "background_span_fetch_count", 0),
        ("soci_fs_operation_count", "background_span_fetch_failure_count", 0),
        ("soci_fs_bytes_served", "synchronous_bytes_served", SIZE as u64),
        (DURATIONS, "mount", 1),
        (DURATIONS, "ztoc_fetch", 1),
    ] {
        let found = stage.of_the_layer(text, name, operation)?;
        ensure!(found == expected, "{name} of {operation} is {found}, not {expected}:\n{text}");
    }
    for operation in ["synchronous_read_count", "synchronous_read_remote_registry_fetch_count"] {
        let found = stage.of_the_layer(text, "soci_fs_operation_count", operation)?;
        ensure!(found > 0, "{operation} is 0:\n{text}");
    }
    let (fetched, size) = stage.sizes(text)?;
    ensure!(size == stage.large.size && 0 < fetched && fetched < size, "{fetched} of {size}");
    Ok(())
}

#[test]
fn containerd_metrics_tell_what_happened_and_are_documented() -> Result<()> {
    let stage = Stage::new("metrics")?;
    let (lab, link, socket) = (&stage.lab, &stage.link, &stage.socket);
    let (_daemon, containerd) = with_containerd(lab, &stage.configuration(NO_FILL))?;
    let nothing = scrape(socket)?;
    ensure!(!nothing.contains("layer="), "there are numbers of layers that are not there: {nothing}");

    pull(lab, &containerd, &stage.image())?;
    let mounted = mount(lab, &containerd, "soci")?;
    ensure!(fs::read(mounted.path().join("file0"))? == noise(0, SIZE), "file0 has other bytes");
    let text = scrape(socket)?;
    let (given, documented) = (given(&text), documented()?);
    ensure!(given == documented, "documented, as it is: {given:#?}, as it is documented: {documented:#?}");
    ensure_numbers(&text)?;
    ensure_numbers_of_the_layer(&stage, &text)?;

    // A reader that waits for a registry that is away.
    link.cut();
    let path = mounted.path().join("file2");
    let reader = thread::spawn(move || fs::read(path));
    wait_until("a reader that waits, and failures", LOG_LIMIT, || {
        let text = scrape(socket)?;
        let waits = number(&text, "soci_readers_waiting")? > 0;
        Ok((waits && number(&text, "soci_fetch_failures_total{kind=\"unreachable\"}")? > 0).then_some(()))
    })?;
    link.restore();
    ensure!(reader.join().expect("no panic")? == noise(2, SIZE), "file2 has other bytes");
    // One that says that it has too much to do, and one that has the layer no longer.
    link.inject(Fault::busy(503, 0), When::path("/blobs/").ranged().times(1));
    ensure!(fs::read(mounted.path().join("file3"))? == noise(3, SIZE), "file3 has other bytes");
    link.inject(Fault::status(404), When::path("/blobs/").ranged());
    ensure!(fs::read(mounted.path().join("file1")).is_err(), "file1 was had from nowhere");
    let text = scrape(socket)?;
    for series in [
        "soci_fetch_busy_total",
        "soci_fetch_failures_total{kind=\"not_found\"}",
        "soci_reads_total{outcome=\"failed\"}",
    ] {
        ensure!(number(&text, series)? > 0, "{series} is 0:\n{text}");
    }
    let failed = stage.of_the_layer(&text, "soci_fs_operation_count", "fuse_file_read_failure_count")?;
    ensure!(failed > 0, "no read of the layer failed:\n{text}");

    // With the layer its numbers go.
    drop(mounted);
    containerd.ctr(&["image", "rm", "--sync", &stage.image()])?;
    wait_until("no numbers of layers that are gone", LOG_LIMIT, || {
        Ok((!scrape(socket)?.contains(&stage.large.digest.to_string())).then_some(()))
    })
}

#[test]
fn containerd_spans_that_no_reader_waits_for_are_counted() -> Result<()> {
    let stage = Stage::new("metrics-fill")?;
    let (_daemon, containerd) = with_containerd(&stage.lab, &stage.configuration(""))?;
    stage.link.inject(Fault::status(404), When::path(stage.large.digest.to_string()).ranged());
    pull(&stage.lab, &containerd, &stage.image())?;
    let counted =
        |text: &str, operation: &str| stage.of_the_layer(text, "soci_fs_operation_count", operation);
    wait_until("spans that do not come", LOG_LIMIT, || {
        let text = scrape(&stage.socket)?;
        Ok((counted(&text, "background_span_fetch_failure_count")? > 0).then_some(()))
    })?;
    ensure!(counted(&scrape(&stage.socket)?, "background_span_fetch_count")? == 0, "spans came from nowhere");
    stage.link.lift();
    let text = wait_until("all of the layer", LOG_LIMIT, || {
        let text = scrape(&stage.socket)?;
        let (fetched, size) = stage.sizes(&text)?;
        Ok((fetched == size).then_some(text))
    })?;
    // But for the only span of the small layer, which came whole.
    let (spans, ready) = (counted(&text, "background_span_fetch_count")?, "soci_spans{state=\"ready\"}");
    ensure!(spans > 1 && spans + 1 == number(&text, ready)?, "{spans} spans came:\n{text}");
    ensure!(counted(&text, "synchronous_read_count")? == 0, "a reader read:\n{text}");
    Ok(())
}
