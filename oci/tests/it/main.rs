//! The registry client against a registry in this process; Docker's configuration; the documents' bytes.

// In a test an unwrap is an assertion; clippy sees that only in plain `#[test]` functions.
#![allow(clippy::unwrap_used)]

mod blobs;
mod credentials;
mod documents;
mod layout;
mod login;
mod manifests;
mod push;

use std::sync::Arc;
use std::time::Duration;

use oci::testing::TestRegistry;
use oci::{Anonymous, BoxFuture, Client, ClientOptions, Credential, Credentials, Error, Registry};

/// A client that does not wait long between attempts.
fn client() -> Client {
    let pause = Duration::from_millis(1);
    Client::new(ClientOptions { pause, ..ClientOptions::default() }).unwrap()
}

fn repository(server: &TestRegistry, name: &str) -> Registry {
    Registry::new(&client(), &server.reference(name), Arc::new(Anonymous)).unwrap()
}

/// One name and password for every host, counted.
#[derive(Debug, Default)]
struct Known {
    credential: std::sync::Mutex<Option<Credential>>,
    asked: std::sync::atomic::AtomicUsize,
}

impl Known {
    fn new(username: &str, secret: &str) -> Arc<Known> {
        let known = Known::default();
        known.set(username, secret);
        Arc::new(known)
    }

    fn set(&self, username: &str, secret: &str) {
        let credential = Credential { username: username.to_owned(), secret: secret.to_owned() };
        *self.credential.lock().unwrap() = Some(credential);
    }

    fn asked(&self) -> usize {
        self.asked.load(std::sync::atomic::Ordering::SeqCst)
    }
}

impl Credentials for Known {
    fn for_host<'a>(&'a self, _host: &'a str) -> BoxFuture<'a, Option<Credential>> {
        self.asked.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        Box::pin(std::future::ready(self.credential.lock().unwrap().clone()))
    }
}

/// Everything an error says, causes included.
fn told(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(next) = cause {
        text.push_str(&format!(": {next}"));
        cause = next.source();
    }
    text
}
