//! Docker's configuration, and credential helpers that are real programs.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use oci::{Credential, Credentials, DockerConfig};

async fn find(config: &str, host: &str, helper: Option<&str>) -> Option<(String, String)> {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("config.json"), config).unwrap();
    if let Some(script) = helper {
        install(folder.path(), "test", script);
    }
    let docker = DockerConfig::in_folder(folder.path()).with_helpers_in(folder.path());
    docker.for_host(host).await.map(|Credential { username, secret }| (username, secret))
}

fn install(folder: &Path, name: &str, script: &str) {
    // Written by another process, and moved into place: this one may fork while it holds the file open for
    // writing, and then executing it fails.
    let path = folder.join(format!("docker-credential-{name}"));
    let draft = folder.join("draft");
    fs::write(&draft, format!("#!/bin/sh\n{script}\n")).unwrap();
    let copied = std::process::Command::new("cp").arg(&draft).arg(&path).status().unwrap();
    assert!(copied.success());
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
}

fn pair(username: &str, secret: &str) -> Option<(String, String)> {
    Some((username.to_owned(), secret.to_owned()))
}

#[tokio::test]
async fn from_the_file() {
    // dTpwOnE= is u:p:q
    let cases = [
        (r#"{"auths":{"h:5000":{"auth":"dTpwOnE="}}}"#, "h:5000", pair("u", "p:q")),
        (r#"{"auths":{"h:5000":{"auth":"dTpwOnE="}}}"#, "h", None),
        (r#"{"auths":{"https://h/v1/":{"auth":"dTpwOnE="}}}"#, "h", pair("u", "p:q")),
        (r#"{"auths":{"https://index.docker.io/v1/":{"auth":"dTpwOnE="}}}"#, "docker.io", pair("u", "p:q")),
        (r#"{"auths":{"h":{"username":"u","password":"p"}}}"#, "h", pair("u", "p")),
        (r#"{"auths":{"h":{"auth":"dTpwOnE=","identitytoken":"t"}}}"#, "h", pair("", "t")),
        (r#"{"auths":{"h":{}}}"#, "h", None),
        (r#"{"auths":{"h":{"auth":"!"}}}"#, "h", None),
        (r#"{"auths":{"h":{"auth":"dQ=="}}}"#, "h", None),
        ("{}", "h", None),
        ("not json", "h", None),
        (r#"{"credsStore":"../x"}"#, "h", None),
        (r#"{"credsStore":"absent","auths":{"h":{"auth":"dTpwOnE="}}}"#, "h", None),
    ];
    for (config, host, expected) in cases {
        assert_eq!(find(config, host, None).await, expected, "{config} {host}");
    }
}

#[tokio::test]
async fn from_helpers() {
    let echo =
        r#"read host; [ "$1" = get ] && printf '{"ServerURL":"x","Username":"u","Secret":"for %s"}' "$host""#;
    let cases = [
        (r#"{"credsStore":"test"}"#, "h:1", echo, pair("u", "for h:1")),
        (r#"{"credHelpers":{"h":"test"}}"#, "h", echo, pair("u", "for h")),
        (r#"{"credHelpers":{"h":"test"}}"#, "i", echo, None),
        (r#"{"credHelpers":{"h":"test"},"credsStore":"absent"}"#, "h", echo, pair("u", "for h")),
        (r#"{"credsStore":"test"}"#, "docker.io", echo, pair("u", "for https://index.docker.io/v1/")),
        (r#"{"credsStore":"test"}"#, "h", r#"echo '{"Username":"<token>","Secret":"t"}'"#, pair("", "t")),
        (r#"{"credsStore":"test"}"#, "h", "echo credentials not found in native keychain; exit 1", None),
        (r#"{"credsStore":"test"}"#, "h", "exit 1", None),
        (r#"{"credsStore":"test"}"#, "h", "echo nonsense", None),
        (
            r#"{"credsStore":"test","auths":{"h":{"auth":"dTpwOnE="}}}"#,
            "h",
            "echo credentials not found in native keychain; exit 1",
            pair("u", "p:q"),
        ),
    ];
    for (config, host, helper, expected) in cases {
        assert_eq!(find(config, host, Some(helper)).await, expected, "{config} {host} {helper}");
    }
}

#[tokio::test]
async fn asked_anew_each_time() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("config.json"), r#"{"credsStore":"test"}"#).unwrap();
    let counting =
        r#"cd "$(dirname "$0")"; echo x >> calls; printf '{"Username":"u","Secret":"%s"}' $(wc -l < calls)"#;
    install(folder.path(), "test", counting);
    let docker = DockerConfig::in_folder(folder.path()).with_helpers_in(folder.path());
    for expected in ["1", "2"] {
        assert_eq!(docker.for_host("h").await.unwrap().secret, expected);
    }
    assert!(DockerConfig::in_folder(folder.path().join("absent")).for_host("h").await.is_none());
}

#[test]
fn debug_hides() {
    let credential = Credential { username: "u".into(), secret: "hidden".into() };
    assert!(!format!("{credential:?}").contains("hidden"));
}
