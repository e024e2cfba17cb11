//! The door for Prometheus and probes: metrics over HTTP, and whether the daemon is alive (`/healthz`) and ready
//! (`/readyz`).

use std::{
    fmt::{Debug, Write as _},
    sync::Arc,
};

use axum::{
    Router,
    http::{StatusCode, header::CONTENT_TYPE},
    response::IntoResponse,
    routing::get,
    serve::Listener,
};
use layerfs::{Family, Kind, Name, Value};

use crate::{
    api::health::{Health, Phase},
    snapshots::snapshotter::Snapshotter,
};

/// Serves `GET /metrics`, `/healthz` and `/readyz` as long as the daemon lives.
pub(crate) fn serve(listener: impl Listener<Addr: Debug>, snapshotter: Arc<Snapshotter>, health: Health) {
    let answer = move || async move {
        let written = tokio::task::spawn_blocking(move || text(&snapshotter.metrics())).await;
        ([(CONTENT_TYPE, "text/plain; version=0.0.4")], written.unwrap_or_default()).into_response()
    };
    let ready = move || async move { readiness(health.phase()) };
    let router = Router::new()
        .route("/metrics", get(answer))
        .route("/healthz", get(async || "alive\n"))
        .route("/readyz", get(ready));
    tokio::spawn(async move { axum::serve(listener, router).await });
}

fn readiness(phase: Phase) -> (StatusCode, &'static str) {
    match phase {
        Phase::Ready => (StatusCode::OK, "ready\n"),
        Phase::Starting => (StatusCode::SERVICE_UNAVAILABLE, "starting\n"),
        Phase::Stopping => (StatusCode::SERVICE_UNAVAILABLE, "stopping\n"),
    }
}

/// The text format of Prometheus, version 0.0.4.
fn text(families: &[Family]) -> String {
    let mut out = String::new();
    for family in families {
        // Writing to a string cannot fail.
        let _ = write_family(&mut out, family);
    }
    out
}

fn write_family(out: &mut String, family: &Family) -> std::fmt::Result {
    let Name { name, kind, labels, help } = family.name;
    let kind = match kind {
        Kind::Counter => "counter",
        Kind::Gauge => "gauge",
        Kind::Histogram => "histogram",
    };
    writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}")?;
    for (values, value) in &family.values {
        let pairs = labels.iter().zip(values).filter(|(label, _)| !label.is_empty());
        let pairs: Vec<_> = pairs.map(|(label, value)| format!("{label}=\"{}\"", escaped(value))).collect();
        match value {
            Value::Number(number) => writeln!(out, "{name}{} {number}", braced(&pairs, None))?,
            Value::Histogram { up_to, count, sum } => {
                for (bound, count) in up_to {
                    writeln!(out, "{name}_bucket{} {count}", braced(&pairs, Some(&bound.to_string())))?;
                }
                writeln!(out, "{name}_bucket{} {count}", braced(&pairs, Some("+Inf")))?;
                let pairs = braced(&pairs, None);
                writeln!(out, "{name}_sum{pairs} {sum}\n{name}_count{pairs} {count}")?;
            }
        }
    }
    Ok(())
}

fn braced(pairs: &[String], bound: Option<&str>) -> String {
    let bound = bound.map(|bound| format!("le=\"{bound}\""));
    let all: Vec<_> = pairs.iter().map(String::as_str).chain(bound.as_deref()).collect();
    if all.is_empty() { String::new() } else { format!("{{{}}}", all.join(",")) }
}

/// A label's value may be anything; these three characters would end it.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_daemon_is_ready_while_it_serves() {
        let health = Health::new();
        let ready = || readiness(health.phase()).0.as_u16();
        assert_eq!(ready(), 503);
        health.ready();
        assert_eq!(ready(), 200);
        health.stopping();
        assert_eq!(ready(), 503);
    }

    #[test]
    fn families_are_written_as_prometheus_reads_them() {
        let name = |name, kind, labels| Name { name, kind, labels, help: "what it is" };
        let labels = |one: &'static str, other: &'static str| [one.into(), other.into()];
        let histogram = Value::Histogram { up_to: vec![(0.001, 1), (0.5, 3)], count: 4, sum: 7.25 };
        let families = [
            Family {
                name: name("a_total", Kind::Counter, ["how", ""]),
                values: vec![(labels("well", ""), Value::Number(1)), (labels("badly", ""), Value::Number(0))],
            },
            Family {
                name: name("b", Kind::Gauge, ["", ""]),
                values: vec![(labels("", ""), Value::Number(5))],
            },
            Family {
                name: name("c_seconds", Kind::Histogram, ["", ""]),
                values: vec![(labels("", ""), histogram.clone())],
            },
            Family {
                name: name("d", Kind::Histogram, ["one", "other"]),
                values: vec![(labels("a\\b", "c\"d\ne"), histogram)],
            },
        ];
        let expected = "\
# HELP a_total what it is
# TYPE a_total counter
a_total{how=\"well\"} 1
a_total{how=\"badly\"} 0
# HELP b what it is
# TYPE b gauge
b 5
# HELP c_seconds what it is
# TYPE c_seconds histogram
c_seconds_bucket{le=\"0.001\"} 1
c_seconds_bucket{le=\"0.5\"} 3
c_seconds_bucket{le=\"+Inf\"} 4
c_seconds_sum 7.25
c_seconds_count 4
# HELP d what it is
# TYPE d histogram
d_bucket{one=\"a\\\\b\",other=\"c\\\"d\\ne\",le=\"0.001\"} 1
d_bucket{one=\"a\\\\b\",other=\"c\\\"d\\ne\",le=\"0.5\"} 3
d_bucket{one=\"a\\\\b\",other=\"c\\\"d\\ne\",le=\"+Inf\"} 4
d_sum{one=\"a\\\\b\",other=\"c\\\"d\\ne\"} 7.25
d_count{one=\"a\\\\b\",other=\"c\\\"d\\ne\"} 4
";
        assert_eq!(text(&families), expected);
    }
}
