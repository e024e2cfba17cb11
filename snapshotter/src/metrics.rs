//! The metrics, over HTTP, as Prometheus reads them. A door: it writes what others count.

use std::{
    fmt::{Debug, Write as _},
    sync::Arc,
};

use axum::{Router, http::header::CONTENT_TYPE, response::IntoResponse, routing::get, serve::Listener};
use layerfs::{Family, Kind, Name, Value};

use crate::snapshotter::Snapshotter;

/// Serves `GET /metrics` as long as the daemon lives.
pub(crate) fn serve(listener: impl Listener<Addr: Debug>, snapshotter: Arc<Snapshotter>) {
    let answer = move || async move {
        let written = tokio::task::spawn_blocking(move || text(&snapshotter.metrics())).await;
        ([(CONTENT_TYPE, "text/plain; version=0.0.4")], written.unwrap_or_default()).into_response()
    };
    let router = Router::new().route("/metrics", get(answer));
    tokio::spawn(async move { axum::serve(listener, router).await });
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
    let Name { name, kind, label, help } = family.name;
    let kind = match kind {
        Kind::Counter => "counter",
        Kind::Gauge => "gauge",
        Kind::Histogram => "histogram",
    };
    writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}")?;
    for (value_of_label, value) in &family.values {
        match value {
            Value::Number(number) if label.is_empty() => writeln!(out, "{name} {number}")?,
            Value::Number(number) => writeln!(out, "{name}{{{label}=\"{value_of_label}\"}} {number}")?,
            Value::Histogram { up_to, count, sum } => {
                for (bound, count) in up_to {
                    writeln!(out, "{name}_bucket{{le=\"{bound}\"}} {count}")?;
                }
                writeln!(
                    out,
                    "{name}_bucket{{le=\"+Inf\"}} {count}\n{name}_sum {sum}\n{name}_count {count}"
                )?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_are_written_as_prometheus_reads_them() {
        let name = |name, kind, label| Name { name, kind, label, help: "what it is" };
        let histogram = Value::Histogram { up_to: vec![(0.001, 1), (0.5, 3)], count: 4, sum: 7.25 };
        let families = [
            Family {
                name: name("a_total", Kind::Counter, "how"),
                values: vec![("well", Value::Number(1)), ("badly", Value::Number(0))],
            },
            Family { name: name("b", Kind::Gauge, ""), values: vec![("", Value::Number(5))] },
            Family { name: name("c_seconds", Kind::Histogram, ""), values: vec![("", histogram)] },
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
";
        assert_eq!(text(&families), expected);
    }
}
