use std::path::PathBuf;

use super::*;

#[test]
fn keys_in_force_and_remarks_about_the_others() {
    let text = r#"debug = true
bogus = 1
metrics_address = "/run/m.sock"
metrics_network = "unix"
[content_store]
type = "containerd"
containerd_address = "unix:///run/c.sock"
[pull_modes.soci_v1]
enable = true
[unindexed]
mode = "store"
[http]
MaxRetries = 3
max_retries = 3
DialTimeoutMsec = 1_000
[span_store]
max_bytes = 0x400
min_free = "10%"
[prefetch]
enable = false
[fill]
max_bandwidth = 5
[fetch]
hedge = false
read_timeout_sec = 7
typo = 2
[fetsch]
hedge = true
[[resolver.host."r.example".mirrors]]
host = "m.example"
"#;
    let config = Config::parse(text).unwrap();
    assert_eq!(config.containerd_address, PathBuf::from("/run/c.sock"));
    assert!(config.v1 && config.v2 && config.fill);
    assert_eq!(config.unindexed, Unindexed::Store);
    assert_eq!(config.room, DiskLimits { max_bytes: Some(1024), min_free: MinFree::Percent(10) });
    assert_eq!(config.metrics, Some(Address::Unix("/run/m.sock".into())));
    assert_eq!(config.limits.fill_bandwidth, Some(5));
    assert!(!config.prefetch && !config.limits.hedge);
    assert_eq!(config.limits.read_timeout.as_secs(), 7);
    assert_eq!((config.http.attempts_max, config.http.connect_timeout.as_millis()), (4, 1000));
    let remarks: Vec<_> = config.remarks.iter().map(ToString::to_string).collect();
    let expected = [
        "line 1: debug has no effect: `--log-level debug`",
        "line 2: bogus is not a key of the configuration",
        "line 6: [content_store] type has no effect: ",
        "line 14: [http] max_retries is not a key of the configuration; did you mean [http] MaxRetries?",
        "line 26: [fetch] typo is not a key of the configuration",
        "line 27: [fetsch] is not a table of the configuration; did you mean [fetch]?",
        "line 29: [resolver] host has no effect: not yet",
    ];
    assert_eq!(remarks.len(), expected.len(), "{remarks:#?}");
    for (remark, expected) in remarks.iter().zip(expected) {
        assert!(remark.starts_with(expected), "{remark}, not {expected}");
    }
}

#[test]
fn several_keys_make_one_value() {
    let check = |text: &str, fill: bool, metrics: bool| {
        let config = Config::parse(text).unwrap();
        assert_eq!((config.fill, config.metrics.is_some()), (fill, metrics), "{text}");
    };
    check("[background_fetch]\ndisable = true\n[fill]\nenable = true", false, false);
    check("[background_fetch]\ndisable = false\n[fill]\nenable = false", false, false);
    check("metrics_address = \":9090\"", true, true);
    check("metrics_address = \":9090\"\nno_prometheus = true", true, false);
    check("metrics_network = \"unix\"\nmetrics_address = \"\"", true, false);
    let retries =
        |text: &str| Config::parse(&format!("[http]\nMaxRetries = {text}")).unwrap().http.attempts_max;
    assert_eq!((retries("-1"), retries("0"), retries("7")), (1, ClientOptions::default().attempts_max, 8));
}

#[test]
fn wrong_values_are_named_with_their_line() {
    for (text, expected) in [
        (
            "[span_store]\nmax_bytes = -1",
            "line 2: span_store.max_bytes must be a whole number of at least 0, not -1",
        ),
        (
            "[span_store]\nmin_free = \"much\"",
            "span_store.min_free must be a number of bytes, or a string like",
        ),
        ("[span_store]\nmin_free = \"101%\"", "not \"101%\""),
        ("[span_store]\nmin_free = 1.5", "not 1.5"),
        ("[fill]\nenable = 1", "line 2: fill.enable must be true or false, not 1"),
        ("[unindexed]\nmode = \"lazy\"", "unindexed.mode must be \"containerd\" or \"store\", not \"lazy\""),
        ("[content_store]\ncontainerd_address = 5", "containerd_address must be a string, not 5"),
        ("metrics_address = \"a\"\nmetrics_network = \"udp\"", "metrics_network must be \"tcp\" or \"unix\""),
        ("\n\nmetrics_address = 1", "line 3: metrics_address must be a string, not 1"),
        ("[http]\nMaxRetries = 101", "http.MaxRetries must be a whole number from -1 to 100, not 101"),
        (
            "[http]\nDialTimeoutMsec = 9223372036854775807",
            "must be a whole number from 0 to 31536000000, not",
        ),
        ("[http]\nDialTimeoutMsec = 99999999999999999999", "99999999999999999999"),
        ("[fetch]\nmax_requests = 0", "fetch.max_requests must be a whole number from 1 to 1024, not 0"),
        ("[fetch]\nmax_bytes_in_flight = 0", "must be a whole number of at least 1, not 0"),
        ("[fetch]\nread_timeout_sec = 9223372036854775807", "must be a whole number from 0 to 31536000"),
        ("[fetch.hedge]\non = true", "fetch.hedge must be true or false"),
        ("fetch = 5", "line 1: fetch must be a table ([fetch]), not 5"),
        ("[[fetch]]\nhedge = true", "fetch must be a table ([fetch])"),
        (
            "[snapshotter]\nmount_options = [\"a,b\"]",
            "snapshotter.mount_options must be a list of options of overlayfs",
        ),
        ("[snapshotter]\nmount_options = [\"lowerdir=/\"]", "mount_options must be a list"),
        ("[snapshotter]\nmount_options = [\"\", 1]", "mount_options must be a list"),
        ("[fill", "line 1"),
        ("[fill]\nenable = true\nenable = false", "duplicate key"),
    ] {
        let error = Config::parse(text).unwrap_err();
        assert!(error.contains(expected), "{error}, not {expected}");
    }
}

#[test]
fn hostile_names_stay_on_one_short_line() {
    let long = "x".repeat(100_000);
    for text in ["\"a\\nb\\u001b[31m\" = 1".to_owned(), format!("{long} = 1"), format!("[{long}]\na = 1")] {
        let remark = Config::parse(&text).unwrap().remarks.remove(0).text;
        assert!(remark.len() < 200 && !remark.contains(char::is_control), "{remark}");
    }
    let error = Config::parse(&format!("metrics_network = \"{long}\"")).unwrap_err();
    assert!(error.len() < 200, "{error}");
}

#[test]
fn a_file_that_ends_anywhere_is_no_panic() {
    let text = commented(&Config::default());
    let wrong = text.replace("true", "9e9").replace(" 0\n", " -99999999999999999999\n");
    for text in [text, wrong] {
        for end in (0..text.len()).step_by(7) {
            let _ = Config::parse(&text[..end]);
        }
    }
}

#[test]
fn only_the_default_file_may_be_missing() {
    let missing = Path::new("/nonexistent/config.toml");
    assert!(Config::load(missing, false).is_ok());
    assert!(Config::load(missing, true).unwrap_err().contains("/nonexistent/config.toml"));
}

#[test]
fn what_is_written_down_is_read_as_the_same() {
    let other = r#"
metrics_address = "/run/\"m\".sock"
metrics_network = "unix"
no_prometheus = true
http = { DialTimeoutMsec = 1, ResponseHeaderTimeoutMsec = 2, MaxRetries = -1, MinWaitMsec = 3 }
content_store.containerd_address = "/c"
snapshotter = { min_layer_size = 9223372036854775807, mount_options = ["volatile", "metacopy=on"] }
pull_modes = { soci_v1.enable = true, soci_v2.enable = false }
unindexed.mode = "store"
background_fetch.disable = true
fill = { enable = false, max_bandwidth = 4 }
prefetch.enable = false
span_store = { max_bytes = 5, min_free = "7%" }
fetch = { max_bytes_in_flight = 1, max_requests = 1, hedge = false, read_timeout_sec = 0 }
"#;
    let defaults = plain(&Config::default());
    for config in [Config::default(), Config::parse(other).unwrap()] {
        for text in [commented(&config), plain(&config)] {
            let read = Config::parse(&text).unwrap();
            assert_eq!(read.remarks, [], "{text}");
            assert_eq!(format!("{read:?}"), format!("{config:?}"), "{text}");
        }
    }
    // No key was forgotten above: each has another value than by default.
    let changed = plain(&Config::parse(other).unwrap());
    let same: Vec<_> = changed.lines().filter(|line| line.contains('=')).collect();
    let same: Vec<_> = same.into_iter().filter(|line| defaults.lines().any(|other| other == *line)).collect();
    // `enable = false` of one section is the default of another.
    assert!(same.iter().all(|line| line.starts_with("enable")), "{same:?}");
}

#[test]
fn sections_stand_together() {
    let mut seen = Vec::new();
    for section in keys::USED.iter().map(|key| key.name.rsplit_once('.').map_or("", |(section, _)| section)) {
        if seen.last() != Some(&section) {
            assert!(!seen.contains(&section), "{section} stands in two places");
            seen.push(section);
        }
    }
    assert_eq!(seen[0], "");
}

#[test]
fn the_documented_keys_are_the_keys() {
    let page = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/operating.md")).unwrap();
    let rows_below = |head: &str| {
        let rows = page.lines().skip_while(|line| *line != head).skip(2);
        rows.take_while(|line| line.starts_with('|')).map(str::to_owned).collect::<Vec<_>>()
    };
    let default = Config::default();
    let row = |key: &keys::Key| {
        format!("| `{}` | `{}` | {} |", keys::spelled(key.name), (key.show)(&default), key.help)
    };
    let used: Vec<_> = keys::USED.iter().map(row).collect();
    assert_eq!(rows_below("| key | default | meaning |"), used, "\n{}\n", used.join("\n"));
    let row = |(name, why): &(&str, &str)| format!("| `{}` | {why} |", keys::spelled(name));
    let ignored: Vec<_> = keys::IGNORED.iter().map(row).collect();
    assert_eq!(rows_below("| key | why it has no effect |"), ignored, "\n{}\n", ignored.join("\n"));
}

#[test]
fn every_wrong_value_is_named() {
    let text = "metrics_address = 1\n[fill]\nenable = 1\n[fetch]\nhedge = \"no\"\nmax_requests = 2\n";
    let errors = Config::parse(text).unwrap_err();
    let lines: Vec<_> = errors.lines().collect();
    assert_eq!(lines.len(), 3, "{errors}");
    for (line, expected) in
        lines.iter().zip(["line 1: metrics_address", "line 3: fill.enable", "line 5: fetch.hedge"])
    {
        assert!(line.starts_with(expected), "{line}");
    }
}
