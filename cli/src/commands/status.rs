//! `soci status`: what the daemon shows, how much of it is there, and what was not lazy, and why.

use super::Tools;
use crate::{
    args::Status as Args,
    daemon_client::{self, Layer, Status},
    error::Error,
};

/// Of what was not lazy a table for people has the last few.
const MOST_RECENT: usize = 10;

pub(super) async fn run(args: &Args, tools: &Tools<'_>) -> Result<(), Error> {
    let status = daemon_client::status(&args.daemon.daemon_address).await?;
    if args.json {
        tools.output.json(&status);
        return Ok(());
    }
    print(&status, tools);
    Ok(())
}

fn print(status: &Status, tools: &Tools<'_>) {
    let (output, daemon) = (tools.output, &status.daemon);
    output.line(&shown(&format!(
        "soci-snapshotter-grpc {} {}, process {}, since {}, root {}",
        daemon.version, daemon.revision, daemon.pid, daemon.started, daemon.root
    )));
    if daemon.supervisor_pid == 0 {
        output.line(
            "Its supervisor is gone. It still serves, but would not be started again: restart the daemon.",
        );
    }
    for remark in &daemon.config_remarks {
        output.line(&shown(&format!("configuration, line {}: {}", remark.line, remark.text)));
    }
    output.line("");
    if status.layers.is_empty() {
        output.line("No layer is shown.");
    } else {
        let rows: Vec<_> = status.layers.iter().map(row).collect();
        output.table(["LAYER", "SIZE", "FETCHED", "SPANS", "WAITING", "USERS", "STATE", "IMAGE"], &rows);
    }
    if status.not_lazy.is_empty() {
        return;
    }
    let counts: Vec<_> = status.not_lazy.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
    output.line("");
    output.line(&format!("Not lazy since the start: {}", shown(&counts.join(", "))));
    let rows = status
        .recent
        .iter()
        .take(MOST_RECENT)
        .map(|it| [&it.time, it.outcome, &it.reason, short(&it.layer), &it.image, &it.why].map(shown));
    output.table(["TIME", "OUTCOME", "REASON", "LAYER", "IMAGE", "WHY"], &rows.collect::<Vec<_>>());
}

fn row(layer: &Layer) -> [String; 8] {
    [
        short(&layer.digest).to_owned(),
        bytes(layer.size),
        format!("{}%", layer.fetched_percent),
        format!("{}/{}", layer.spans.ready + layer.spans.unproven, layer.spans.total),
        layer.readers_waiting.to_string(),
        layer.users.len().to_string(),
        shown(&state(layer)),
        shown(&layer.images.join(", ")),
    ]
}

/// What is most worth knowing of a layer.
fn state(layer: &Layer) -> String {
    let lazy = match (&layer.ztoc, &layer.reason) {
        (Some(_), _) => "lazy".to_owned(),
        (None, Some(reason)) => format!("whole ({reason})"),
        (None, None) => "whole".to_owned(),
    };
    match layer {
        _ if layer.compared == "wrong" => "WRONG: not what its image names; remove the image".to_owned(),
        _ if !layer.error.is_empty() => format!("{lazy}, failing: {}", layer.error),
        _ if layer.complete => format!("{lazy}, complete"),
        _ => lazy,
    }
}

/// Enough of a digest to tell it from others.
fn short(digest: &str) -> &str {
    let hex = digest.split(':').next_back().unwrap_or(digest);
    hex.get(..12).unwrap_or(hex)
}

fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let unit = (0..UNITS.len() - 1).find(|unit| bytes >> (10 * (unit + 1)) == 0).unwrap_or(UNITS.len() - 1);
    match unit {
        0 => format!("{bytes} B"),
        _ => format!("{:.1} {}", bytes as f64 / (1_u64 << (10 * unit)) as f64, UNITS[unit]),
    }
}

/// Names and sentences come from others: a terminal is not steered by them.
fn shown(text: &str) -> String {
    let escape = |c: char| if c.is_control() { c.escape_default().collect() } else { c.to_string() };
    text.chars().map(escape).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_digests_for_people() {
        for (size, expected) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (5 << 30, "5.0 GiB"),
            (u64::MAX, "16777216.0 TiB"),
        ] {
            assert_eq!(bytes(size), expected);
        }
        assert_eq!(short("sha256:0123456789abcdef"), "0123456789ab");
        assert_eq!(short(""), "");
        assert_eq!(shown("a\u{1b}[31m\nb"), "a\\u{1b}[31m\\nb");
    }
}
