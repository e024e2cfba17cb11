//! `soci prefetch`: the prefetch artifacts there are, and what one says.

use index::Prefetch;
use oci::blob::collect;
use oci::{Descriptor, Digest};
use serde::Serialize;

use super::Tools;
use crate::artifacts::{Artifact, Kind};
use crate::error::{Error, ErrorKind};
use crate::files::read_file;
use crate::local_store::Local;
use crate::location::BlobPlace;
use crate::time;

/// An artifact of a million spans has less.
const ARTIFACT_BYTES_MAX: u64 = 64 << 20;

/// A row of the list, its members named as the Go tool names them.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Listed {
    digest: Digest,
    layer_digest: Digest,
    /// -1: it cannot be read
    total_spans: i64,
    /// RFC 3339
    created_at: String,
    /// seconds
    #[serde(skip)]
    age: u64,
}

/// Lists the artifacts of the local store.
pub(super) async fn list(json: bool, tools: &Tools<'_>) -> Result<(), Error> {
    let artifacts = Local::artifacts(tools.global)?.read()?;
    let artifacts: Vec<&Artifact> = artifacts.values().filter(|a| a.kind == Kind::Prefetch).collect();
    // Without artifacts there is nothing to ask for.
    let local = match artifacts.is_empty() {
        true => None,
        false => Some(Local::open(tools.global).await?),
    };
    let mut rows = Vec::new();
    for artifact in artifacts {
        let read = match &local {
            Some(local) => local.read(&artifact.digest, ARTIFACT_BYTES_MAX).await.ok(),
            None => None,
        };
        let prefetch = read.and_then(|bytes| Prefetch::parse(&bytes).ok());
        rows.push(Listed {
            digest: artifact.digest,
            layer_digest: artifact.of,
            total_spans: prefetch.map_or(-1, |prefetch| prefetch.total()),
            created_at: time::rfc3339(time::seconds(artifact.created)),
            age: time::seconds(time::now().saturating_sub(artifact.created)),
        });
    }
    if json {
        // None is `null`, as the Go tool has it.
        tools.output.json(&Some(rows).filter(|rows| !rows.is_empty()));
        return Ok(());
    }
    let rows = rows.into_iter().map(|row| {
        let spans = if row.total_spans < 0 { "N/A".to_owned() } else { row.total_spans.to_string() };
        let age = format!("{} ago", time::span(row.age));
        [row.digest.to_string(), row.layer_digest.to_string(), spans, age]
    });
    tools.output.table(["DIGEST", "LAYER DIGEST", "SPANS", "CREATED"], &rows.collect::<Vec<_>>());
    Ok(())
}

/// Says what an artifact says.
pub(super) async fn info(place: &str, json: bool, tools: &Tools<'_>) -> Result<(), Error> {
    let place = BlobPlace::parse(place)?;
    let mut listed = None;
    let bytes = match &place {
        BlobPlace::File(path) => read_file(path, ARTIFACT_BYTES_MAX)?.into(),
        BlobPlace::Registry(reference, digest) => {
            let blob = tools.registries.open(reference)?.blob(digest, None);
            let doing = format!("fetch prefetch artifact {digest}");
            let bytes = collect(blob.read_all().await?, ARTIFACT_BYTES_MAX, &doing).await?;
            digest.verify(&bytes, &doing)?;
            bytes
        }
        BlobPlace::Local(digest) => {
            listed = Local::artifacts(tools.global)?.read()?.get(digest).cloned();
            let kind = match listed.as_ref().map(|artifact| artifact.kind) {
                Some(Kind::Index) => Some("soci_index"),
                Some(Kind::Ztoc) => Some("soci_layer"),
                Some(Kind::Prefetch) | None => None,
            };
            if let Some(kind) = kind {
                let why = format!("the provided digest is not a prefetch artifact (type: {kind})");
                return Err(Error::new(ErrorKind::Invalid, why));
            }
            Local::open(tools.global).await?.read(digest, ARTIFACT_BYTES_MAX).await?
        }
    };
    let prefetch = Prefetch::parse(&bytes)?;
    tell(&prefetch, &Descriptor::of("", &bytes), listed.as_ref(), tools);
    if json {
        tools.output.line("\nRaw JSON:");
        tools.output.indented(&bytes);
    }
    Ok(())
}

fn tell(prefetch: &Prefetch, artifact: &Descriptor, listed: Option<&Artifact>, tools: &Tools<'_>) {
    let say = |line: String| tools.output.line(&line);
    say(format!("Digest:        {}", artifact.digest));
    say("Version:       1.0".to_owned());
    say(format!("Span Ranges:   {}", prefetch.spans.len()));
    if let Some(listed) = listed {
        say(format!("Layer Digest:  {}", listed.of));
    }
    say(format!("Size:          {} bytes", artifact.size));
    if let Some(listed) = listed {
        let created = time::rfc3339(time::seconds(listed.created)).replace('T', " ");
        say(format!("Created:       {}", created.trim_end_matches('Z')));
    }
    say("\nPrefetch Spans:".to_owned());
    for (number, spans) in prefetch.spans.iter().enumerate() {
        let covered = i64::from(spans.end) - i64::from(spans.start) + 1;
        say(format!(
            "  [{number}] StartSpan: {}, EndSpan: {} (covers {covered} spans)",
            spans.start, spans.end
        ));
        if spans.priority != 0 {
            say(format!("      Priority: {}", spans.priority));
        }
    }
    say(format!("\nTotal spans to prefetch: {}", prefetch.total()));
}
