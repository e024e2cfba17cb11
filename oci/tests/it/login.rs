//! Challenges, tokens, and which host sees which credentials.

use std::sync::Arc;

use futures::future::try_join_all;
use oci::blob::collect;
use oci::image::media_type::OCI_MANIFEST;
use oci::testing::{Fault, Login, Rules, TestRegistry};
use oci::{Anonymous, ErrorKind, Registry};

use crate::{Known, client, told};

fn basic() -> Login {
    Login::Basic { username: "u".into(), password: "secret-p".into() }
}

fn bearer() -> Login {
    Login::Bearer { username: "u".into(), password: "secret-p".into() }
}

async fn serving(rules: Rules) -> TestRegistry {
    let server = TestRegistry::start(rules).await.unwrap();
    server.add_manifest("a/b", "t", OCI_MANIFEST, b"{}");
    server
}

fn open(server: &TestRegistry, who: &Arc<Known>) -> Registry {
    Registry::new(&client(), &server.reference("a/b"), who.clone()).unwrap()
}

#[tokio::test]
async fn both_ways() {
    for login in [basic(), bearer()] {
        let server = serving(Rules { login: login.clone(), ..Rules::default() }).await;
        let who = Known::new("u", "secret-p");
        let registry = open(&server, &who);
        registry.ping().await.unwrap();
        for _ in 0..3 {
            registry.manifest("t").await.unwrap();
        }
        // One login a scope: that of the ping, and that of the repository.
        assert_eq!(who.asked(), 2, "{login:?}");

        let wrong = open(&server, &Known::new("u", "secret-q"));
        let error = wrong.manifest("t").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Denied);
        assert!(!told(&error).contains("secret"), "{}", told(&error));

        let nobody = Registry::new(&client(), &server.reference("a/b"), Arc::new(Anonymous)).unwrap();
        assert_eq!(nobody.manifest("t").await.unwrap_err().kind(), ErrorKind::Denied);
    }
}

#[tokio::test]
async fn identity_token() {
    let server = serving(Rules { login: bearer(), ..Rules::default() }).await;
    open(&server, &Known::new("", "secret-p")).manifest("t").await.unwrap();
    assert_eq!(server.count("POST", "/token"), 1);
}

#[tokio::test]
async fn one_login_for_many() {
    let server = serving(Rules { login: bearer(), ..Rules::default() }).await;
    let who = Known::new("u", "secret-p");
    let registry = open(&server, &who);
    try_join_all((0..20).map(|_| registry.manifest("t"))).await.unwrap();
    assert_eq!(server.count("GET", "/token"), 1);
    assert_eq!(who.asked(), 1);
}

#[tokio::test]
async fn revoked_and_expired_tokens_are_renewed() {
    let server = serving(Rules { login: bearer(), ..Rules::default() }).await;
    let registry = open(&server, &Known::new("u", "secret-p"));
    registry.manifest("t").await.unwrap();
    server.revoke_tokens();
    try_join_all((0..5).map(|_| registry.manifest("t"))).await.unwrap();
    assert_eq!(server.count("GET", "/token"), 2);

    // A token that lives for no time is fetched for each request, and never refused.
    server.set_rules(|rules| rules.token_seconds = Some(0));
    server.revoke_tokens();
    registry.manifest("t").await.unwrap();
    registry.manifest("t").await.unwrap();
    assert_eq!(server.count("GET", "/token"), 4);
}

#[tokio::test]
async fn new_password_is_found() {
    let server = serving(Rules { login: basic(), ..Rules::default() }).await;
    let who = Known::new("u", "secret-p");
    let registry = open(&server, &who);
    registry.manifest("t").await.unwrap();
    server.set_rules(|rules| rules.login = Login::Basic { username: "u".into(), password: "new".into() });
    who.set("u", "new");
    registry.manifest("t").await.unwrap();
    assert_eq!(who.asked(), 2);
}

#[tokio::test]
async fn ecr_says_forbidden_and_means_expired() {
    let server = serving(Rules { login: basic(), ..Rules::default() }).await;
    let who = Known::new("u", "secret-p");
    let registry = open(&server, &who);
    registry.manifest("t").await.unwrap();
    let body = r#"{"errors":[{"code":"DENIED","message":"Your authorization token has expired. Reauthenticate and try again."}]}"#;
    server.fail_next("GET", "/manifests/", Fault::Status(403, Vec::new(), body.to_owned()));
    registry.manifest("t").await.unwrap();
    assert_eq!(who.asked(), 2);

    let body = r#"{"errors":[{"code":"DENIED","message":"not for you"}]}"#;
    server.fail_next("GET", "/manifests/", Fault::Status(403, Vec::new(), body.to_owned()));
    let error = registry.manifest("t").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied);
    assert!(told(&error).contains("not for you"));
    assert_eq!(who.asked(), 2);
}

#[tokio::test]
async fn authorization_stays_at_home() {
    for login in [basic(), bearer()] {
        let server = serving(Rules { login, redirect_uses: Some(2), ..Rules::default() }).await;
        let descriptor = server.add_blob("a/b", "x", vec![7; 100_000]);
        let registry = open(&server, &Known::new("u", "secret-p"));
        let blob = registry.blob(&descriptor.digest, Some(descriptor.size));
        for _ in 0..5 {
            collect(blob.read_range(10..90_000).await.unwrap(), 1 << 20, "test").await.unwrap();
        }
        let at_storage: Vec<_> = server.requests().into_iter().filter(|r| r.at_storage).collect();
        assert!(at_storage.len() >= 5);
        assert!(at_storage.iter().all(|request| request.authorization.is_none()));
    }
}

#[tokio::test]
async fn token_server_fails() {
    let server = serving(Rules { login: bearer(), ..Rules::default() }).await;
    let status = |status, body: &str| Fault::Status(status, Vec::new(), body.to_owned());
    let registry = open(&server, &Known::new("u", "secret-p"));
    for (fault, kind) in [
        (status(200, "{}"), ErrorKind::Corrupt),
        (status(200, "no json"), ErrorKind::Corrupt),
        (status(200, "{\"token\":\"a\\nb\"}"), ErrorKind::Corrupt),
        (status(200, &"x".repeat((1 << 20) + 1)), ErrorKind::Corrupt),
        (status(404, ""), ErrorKind::NotFound),
    ] {
        server.fail_next("GET", "/token", fault.clone());
        assert_eq!(registry.manifest("t").await.unwrap_err().kind(), kind, "{fault:?}");
    }
    server.fail_next("GET", "/token", status(503, ""));
    server.fail_next("GET", "/token", Fault::Drop);
    registry.manifest("t").await.unwrap();
}
