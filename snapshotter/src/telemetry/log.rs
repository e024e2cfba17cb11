//! Logs go out here, an event a line on stderr: as a JSON object with the members that tools already parse (`time`,
//! `level`, `msg`) and the fields of the event beside them; or, for people, as text, with the same in the same order.

use std::{fmt, io, str::FromStr};

use serde_json::{Map, Value};
use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    EnvFilter,
    fmt::{FmtContext, FormatEvent, FormatFields, format::Writer, time::FormatTime, time::SystemTime},
    registry::LookupSpan,
};

/// What a line looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// An object.
    Json,
    /// Time, level, message, and `name=value` for each field.
    Text,
}

impl FromStr for Format {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "json" => Ok(Self::Json),
            "text" => Ok(Self::Text),
            other => Err(format!("not a valid log format: {other:?}; one of json, text")),
        }
    }
}

/// Starts logging; `level` as the Go daemon names them: `trace` … `panic`.
///
/// # Errors
/// For a level of another name.
pub fn start(level: &str, format: Format) -> Result<(), String> {
    let filter = match level {
        "trace" => "trace,h2=info,hyper=info,hyper_util=info,rustls=info",
        "debug" => "debug,h2=info,hyper=info,hyper_util=info,rustls=info,fuser=info,tower=info,reqwest=info",
        "info" => "info",
        "warn" | "warning" => "warn",
        "error" | "fatal" | "panic" => "error",
        other => {
            return Err(format!("not a valid log level: {other:?}; one of trace, debug, info, warn, error"));
        }
    };
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(filter))
        .with_writer(io::stderr)
        // A line that cannot be written (a full disk, a reader that is gone) is lost. To say so there would panic.
        .log_internal_errors(false)
        .event_format(Lines(format))
        .init();
    Ok(())
}

/// The last line of a daemon that could not start or go on.
pub fn fatal_line(message: &str, format: Format) -> String {
    let mut time = String::new();
    let _ = SystemTime.format_time(&mut Writer::new(&mut time));
    let mut line = begun(time, "fatal");
    line.insert("msg".into(), message.into());
    written(line, format)
}

fn begun(time: String, level: &str) -> Map<String, Value> {
    let mut line = Map::new();
    line.insert("time".into(), time.into());
    line.insert("level".into(), level.into());
    line
}

fn written(mut line: Map<String, Value>, format: Format) -> String {
    if format == Format::Json {
        return Value::Object(line).to_string();
    }
    let mut take = |name| line.shift_remove(name).map(|value| spelled(&value, is_prose)).unwrap_or_default();
    let mut text = format!("{} {:7} {}", take("time"), take("level"), take("msg"));
    for (name, value) in &line {
        text.push_str(&format!(" {name}={}", spelled(value, is_word)));
    }
    text
}

/// A value as it is, or quoted if it could be read as something else.
fn spelled(value: &Value, is_plain: impl Fn(&str) -> bool) -> String {
    match value.as_str() {
        Some(text) if is_plain(text) => text.to_owned(),
        _ => value.to_string(),
    }
}

fn is_prose(text: &str) -> bool {
    !text.contains(char::is_control)
}

fn is_word(text: &str) -> bool {
    let breaks = |c: char| c.is_whitespace() || c.is_control() || c == '"' || c == '=';
    !text.is_empty() && !text.contains(breaks)
}

struct Lines(Format);

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut time = String::new();
        SystemTime.format_time(&mut Writer::new(&mut time))?;
        let level = match *event.metadata().level() {
            Level::ERROR => "error",
            Level::WARN => "warning",
            Level::INFO => "info",
            Level::DEBUG => "debug",
            Level::TRACE => "trace",
        };
        let mut line = begun(time, level);
        event.record(&mut Fields(&mut line));
        writeln!(writer, "{}", written(line, self.0))
    }
}

struct Fields<'a>(&'a mut Map<String, Value>);

impl Fields<'_> {
    fn put(&mut self, field: &Field, value: Value) {
        let name = if field.name() == "message" { "msg" } else { field.name() };
        self.0.insert(name.into(), value);
    }
}

impl Visit for Fields<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value.into());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, format!("{value:?}").into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_for_tools_and_one_for_people() {
        let mut line = begun("2026-01-02T03:04:05Z".to_owned(), "info");
        line.insert("msg".into(), "layer shown".into());
        line.insert("key".into(), "default/1/extract 5".into());
        line.insert("slot".into(), 3.into());
        line.insert("why".into(), "a \"b\"\nc".into());
        line.insert("layer".into(), "sha256:00".into());
        let json = written(line.clone(), Format::Json);
        let start = r#"{"time":"2026-01-02T03:04:05Z","level":"info","msg":"layer shown","key":"#;
        assert!(json.starts_with(start), "{json}");
        let expected = concat!(
            "2026-01-02T03:04:05Z info    layer shown key=\"default/1/extract 5\" slot=3 ",
            r#"why="a \"b\"\nc" layer=sha256:00"#
        );
        assert_eq!(written(line, Format::Text), expected);
        let fatal = fatal_line("two\nlines", Format::Text);
        assert!(fatal.contains(" fatal   \"two\\nlines\"") && fatal.lines().count() == 1, "{fatal}");
        assert!("xml".parse::<Format>().is_err());
    }
}
