//! The column *prefetch* of `table`, run: each row's fault befalls the artifact of one layer, and the spans that the
//! artifact of another names, all in one image. Nothing waits for either, and no byte is wrong.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use integration::{
    daemon::soci,
    images::{Image, Layer, Tar, push_image, tar::Entry},
    link::{Fault, Injected, When},
    machine::binaries,
    reference::mount_snapshot,
};

use super::cells::{Bench, WIDE, side_by_side, truth};
use super::table::{Outcome, ROWS, Row, Stage};
use crate::{
    image::{index, noise},
    read_path::{NO_FILL, pull},
};

const SPAN_BYTES: usize = 4096;
/// Files of a layer that its artifact names. So many runs make it longer than the place of any fault.
const WANTED: usize = 24;

fn wanted(layer: usize) -> impl Iterator<Item = String> {
    (0..WANTED).map(move |number| format!("layer{layer}/wanted{number}"))
}

/// Not compressed, so that a span is as long as it should be, with spans between the files that are named: none of
/// their runs touch. In each layer they lie a span further on, so that no two artifacts are the same.
fn layer(number: usize) -> Layer {
    let seed = (number * 1000) as u64;
    let entries = wanted(number).zip(1..).flat_map(|(path, nth)| {
        let spans = if nth == 1 { 3 + number } else { 3 };
        let between = noise(seed + nth, spans * SPAN_BYTES);
        let between = Entry::file(format!("layer{number}/between{nth}"), between);
        [Entry::file(path, noise(seed + 500 + nth, 300)), between]
    });
    Layer::plain(Tar::new(entries).bytes())
}

/// Pushes and converts; the name as seen through the line.
fn converted(bench: &Bench, image: &Image) -> Result<String> {
    let host = bench.registry.host();
    push_image(host, "prefetch:plain", image)?;
    let files: Vec<String> = (0..image.layers.len()).flat_map(wanted).collect();
    let list = bench.lab.path().join("wanted.json");
    std::fs::write(&list, serde_json::to_vec(&files)?)?;
    let (from, to) = (format!("docker://{host}/prefetch:plain"), format!("docker://{host}/prefetch:soci"));
    let (span, list) = (SPAN_BYTES.to_string(), list.to_string_lossy());
    let mut words = vec!["convert", "--span-size", &span, "--min-layer-size", "0"];
    words.extend(["--prefetch-files-json", &list, &from, &to]);
    soci(&bench.lab, &binaries()?, &words)?;
    Ok(format!("{}/prefetch:soci", bench.link.host()))
}

/// Digests of the artifacts, by that of their layer.
fn artifacts(bench: &Bench) -> Result<BTreeMap<String, String>> {
    let (_, listed) = index(bench.registry.host(), "prefetch")?;
    let kind = "application/vnd.amazon.soci.prefetch.v1+json";
    let pairs = listed.iter().filter(|entry| entry["mediaType"] == kind).filter_map(|entry| {
        let layer = entry["annotations"]["com.amazon.soci.image-layer-digest"].as_str()?;
        Some((layer.to_owned(), entry["digest"].as_str()?.to_owned()))
    });
    Ok(pairs.collect())
}

/// Whether the fault lasts until the test lifts it, without an error.
fn is_endless(row: &Row) -> bool {
    matches!((row.fault)(), Fault::Stall { .. } | Fault::Trickle)
}

/// Whether no pull has waited for an artifact that does not come: it has not been given up either.
fn ensure_no_wait<'a>(bench: &Bench, artifacts: impl Iterator<Item = (&'a Row, &'a String)>) -> Result<()> {
    let given_up = bench.daemon.logs().into_iter().filter(|line| line["msg"] == "no prefetch");
    let given_up: Vec<_> = given_up.filter_map(|line| line["digest"].as_str().map(str::to_owned)).collect();
    for (row, artifact) in artifacts.filter(|(row, _)| is_endless(row)) {
        ensure!(!given_up.contains(artifact), "the pull took longer than {}", row.name);
    }
    Ok(())
}

#[test]
fn containerd_faults_at_prefetch() -> Result<()> {
    ensure!(ROWS.iter().all(|row| row.outcome(Stage::Prefetch) == Outcome::Lazy), "one outcome, one test");
    let bench = Bench::new("prefetch", &format!("{NO_FILL}{WIDE}"))?;
    let image = Image::new((0..2 * ROWS.len()).map(layer).collect());
    let name = converted(&bench, &image)?;
    let (without_artifact, without_spans) = image.layers.split_at(ROWS.len());
    let artifacts = artifacts(&bench)?;
    let different: BTreeSet<&String> = artifacts.values().collect();
    ensure!(different.len() == image.layers.len(), "one for each layer: {artifacts:?}");
    let artifacts: Vec<&String> =
        without_artifact.iter().map(|layer| &artifacts[&layer.digest.to_string()]).collect();
    let inject = |(row, digest): (&Row, String)| {
        bench.link.inject((row.fault)(), When::path(format!("blobs/{digest}")))
    };
    let of_artifacts = ROWS.iter().zip(artifacts.iter().map(|digest| (*digest).clone()));
    let of_artifacts: Vec<Injected> = of_artifacts.map(inject).collect();
    let of_spans = ROWS.iter().zip(without_spans.iter().map(|layer| layer.digest.to_string()));
    let of_spans: Vec<Injected> = of_spans.map(inject).collect();

    let said = pull(&bench.lab, &bench.containerd, &name)?;
    ensure_no_wait(&bench, ROWS.iter().zip(artifacts))?;
    let all_lazy = said.len() == image.layers.len() && said.iter().all(|line| line.ends_with(" lazy"));
    ensure!(
        all_lazy && bench.reasons(|_| true).is_empty(),
        "{said:?}, reasons {:?}",
        bench.reasons(|_| true)
    );
    for (row, injected) in ROWS.iter().zip(&of_artifacts) {
        injected.wait_for(1).context(row.name)?;
    }
    // Without the artifact everything can be read at once.
    {
        let mounted = mount_snapshot(&bench.lab, &bench.containerd, "soci", &image.chain_id())?;
        for layer in without_artifact {
            for (path, right) in truth(&bench.lab, layer)? {
                ensure!(std::fs::read(mounted.path().join(&path))? == right, "{path}: other bytes");
            }
        }
    }
    // And spans that could not be had can be read when they can.
    side_by_side(&[Stage::Prefetch], |_, row, _| {
        let place = ROWS.iter().position(|other| other.name == row.name).context("a row")?;
        of_spans[place].wait_for(1)?;
        of_spans[place].lift();
        Ok(())
    })?;
    of_artifacts.iter().for_each(Injected::lift);
    bench.ensure_same(&image)?;
    bench.ensure_calm()
}
