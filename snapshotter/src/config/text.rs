//! A configuration written down: every key that has an effect, in the order of the table.

use super::{Config, keys};

/// With what each key means above it.
pub fn commented(config: &Config) -> String {
    let head = "# soci-snapshotter-grpc: every key that has an effect.\n";
    written(config, head, |help| format!("# {help}\n"))
}

/// Keys and values alone.
pub fn plain(config: &Config) -> String {
    written(config, "", |_| String::new())
}

fn written(config: &Config, head: &str, comment: impl Fn(&str) -> String) -> String {
    let mut text = head.to_owned();
    let mut section = "";
    for key in keys::USED {
        let (of, name) = key.name.rsplit_once('.').unwrap_or(("", key.name));
        if of != section {
            text.push_str(&format!("\n[{of}]\n"));
            section = of;
        }
        text.push_str(&comment(key.help));
        text.push_str(&format!("{name} = {}\n", (key.show)(config)));
    }
    text
}
