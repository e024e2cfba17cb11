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

use crate::{
    image::noise,
    read_path::{NO_FILL, pull},
};

const SIZE: usize = 300_000;

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

#[test]
fn containerd_metrics_tell_what_happened_and_are_documented() -> Result<()> {
    let lab = Lab::new("metrics")?;
    let registry = Registry::start(&lab)?;
    let files = (0..4).map(|seed| Entry::file(format!("file{seed}"), noise(seed, SIZE)));
    let large = Layer::gzip(&Tar::new(files).bytes());
    let small = Layer::gzip(&Tar::new([Entry::file("small", b"small")]).bytes());
    let pushed = push_image(registry.host(), "app:plain", &Image::new(vec![large, small]))?;
    let place = |tag: &str| format!("docker://{}/app:{tag}", registry.host());
    let words = ["--span-size", "65536", "--min-layer-size", "100000"];
    soci(&lab, &binaries()?, &[&["convert"], &words[..], &[&place("plain"), &place("soci")]].concat())?;
    let link = Link::new(&lab, registry.host())?;
    let socket: PathBuf = lab.path().join("m.sock");
    let configuration =
        format!("metrics_address = \"{}\"\nmetrics_network = \"unix\"\n{NO_FILL}", socket.display());
    let (_daemon, containerd) = with_containerd(&lab, &configuration)?;
    let nothing = scrape(&socket)?;
    ensure!(!nothing.contains("layer="), "there are numbers of layers that are not there: {nothing}");

    let image = format!("{}/app:soci", link.host());
    pull(&lab, &containerd, &image)?;
    let mounted = mount(&lab, &containerd, "soci")?;
    ensure!(fs::read(mounted.path().join("file0"))? == noise(0, SIZE), "file0 has other bytes");
    let text = scrape(&socket)?;
    let (given, documented) = (given(&text), documented()?);
    ensure!(given == documented, "documented, as it is: {given:#?}, as it is documented: {documented:#?}");
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
        ensure!(number(&text, series)? == expected, "{series} is not {expected}:\n{text}");
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
        ensure!(number(&text, series)? > 0, "{series} is 0:\n{text}");
    }
    for series in
        ["soci_read_bytes_total", "soci_fetch_bytes_total{priority=\"demand\"}", "soci_span_store_bytes"]
    {
        ensure!(number(&text, series)? >= SIZE as u64, "{series} is too little:\n{text}");
    }

    let large = pushed.layers[0].digest.to_string();
    let of = |operation: &str| format!("{{operation_type=\"{operation}\",layer=\"{large}\"}}");
    for (series, expected) in [
        (format!("soci_fs_operation_count{}", of("fuse_file_read_failure_count")), 0),
        (format!("soci_fs_operation_count{}", of("background_span_fetch_count")), 0),
        (format!("soci_fs_operation_count{}", of("background_span_fetch_failure_count")), 0),
        (format!("soci_fs_bytes_served{}", of("synchronous_bytes_served")), SIZE as u64),
        (format!("soci_fs_operation_duration_milliseconds_count{}", of("mount")), 1),
        (format!("soci_fs_operation_duration_milliseconds_count{}", of("ztoc_fetch")), 1),
    ] {
        ensure!(number(&text, &series)? == expected, "{series} is not {expected}:\n{text}");
    }
    for operation in ["synchronous_read_count", "synchronous_read_remote_registry_fetch_count"] {
        let series = format!("soci_fs_operation_count{}", of(operation));
        ensure!(number(&text, &series)? > 0, "{series} is 0:\n{text}");
    }
    let sizes = |name: &str| -> Result<u64> {
        let start = format!("{name}{{digest=\"{large}\",mountpoint=\"");
        let line = text.lines().find_map(|line| line.strip_prefix(&start)).with_context(|| text.clone())?;
        line.rsplit(' ').next().unwrap_or_default().parse().context(name.to_owned())
    };
    let (fetched, size) = (sizes("soci_fs_layer_fetched_size_bytes")?, sizes("soci_fs_layer_size_bytes")?);
    ensure!(size == pushed.layers[0].size && 0 < fetched && fetched < size, "{fetched} of {size}");

    // A reader that waits for a registry that is away.
    link.cut();
    let path = mounted.path().join("file2");
    let reader = thread::spawn(move || fs::read(path));
    wait_until("a reader that waits, and failures", LOG_LIMIT, || {
        let text = scrape(&socket)?;
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
    let text = scrape(&socket)?;
    for series in [
        "soci_fetch_busy_total",
        "soci_fetch_failures_total{kind=\"not_found\"}",
        "soci_reads_total{outcome=\"failed\"}",
    ] {
        ensure!(number(&text, series)? > 0, "{series} is 0:\n{text}");
    }
    let failed = format!("soci_fs_operation_count{}", of("fuse_file_read_failure_count"));
    ensure!(number(&text, &failed)? > 0, "{failed} is 0:\n{text}");

    // With the layer its numbers go.
    drop(mounted);
    containerd.ctr(&["image", "rm", "--sync", &image])?;
    wait_until("no numbers of layers that are gone", LOG_LIMIT, || {
        Ok((!scrape(&socket)?.contains(&large)).then_some(()))
    })?;
    Ok(())
}
