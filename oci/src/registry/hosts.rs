//! Which URL a registry's name stands for. Plain HTTP is for this machine's own addresses, and for other hosts only
//! when the user said so; Docker Hub's API lives on another name than its images.

use reqwest::Url;

use crate::error::{Error, ErrorKind};

/// Which hosts are spoken to without TLS.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum PlainHttp {
    /// `localhost`, 127.0.0.0/8 and `[::1]`, where no other machine can listen
    #[default]
    Loopback,
    /// every host: the user asked for it
    Everywhere,
}

/// Where one registry's API begins.
#[derive(Debug, Clone)]
pub(super) struct Endpoint {
    /// the registry as image names have it: what credentials are looked up by
    pub(super) registry: String,
    base: Url,
}

impl Endpoint {
    pub(super) fn new(registry: &str, plain: PlainHttp) -> Result<Endpoint, Error> {
        let host = if registry == "docker.io" { "registry-1.docker.io" } else { registry };
        let parse = |scheme: &str| {
            Url::parse(&format!("{scheme}://{host}/v2/")).map_err(|cause| {
                Error::new(ErrorKind::Invalid, format!("find registry {registry}")).because(cause)
            })
        };
        let mut base = parse("https")?;
        if plain == PlainHttp::Everywhere || is_loopback(&base) {
            base = parse("http")?;
        }
        Ok(Endpoint { registry: registry.to_owned(), base })
    }

    /// A URL below `/v2/`.
    pub(super) fn url(&self, path: &str) -> Result<Url, Error> {
        self.base.join(path).map_err(|cause| {
            Error::new(ErrorKind::Invalid, format!("find registry {}", self.registry)).because(cause)
        })
    }

    /// Whether `url` is this registry's own: only such a URL is ever shown our credentials.
    pub(super) fn owns(&self, url: &Url) -> bool {
        self.base.origin() == url.origin()
    }

    /// Whether it is reached through TLS.
    pub(super) fn is_secure(&self) -> bool {
        self.base.scheme() == "https"
    }
}

/// Whether a URL leads to this machine itself.
pub(super) fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || address.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// A URL as it may stand in a log or an error: signatures live in query strings.
pub(super) fn redacted(url: &Url) -> String {
    let mut url = url.clone();
    if url.query().is_some() {
        url.set_query(Some("REDACTED"));
    }
    // Both fail only for URLs that cannot hold credentials.
    let _ = url.set_password(None);
    let _ = url.set_username("");
    url.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_http_stays_at_home() {
        let check = |registry: &str, plain, expected: &str| {
            assert_eq!(Endpoint::new(registry, plain).unwrap().url("x").unwrap().as_str(), expected);
        };
        use PlainHttp::{Everywhere, Loopback};
        check("localhost:5000", Loopback, "http://localhost:5000/v2/x");
        check("127.1.2.3", Loopback, "http://127.1.2.3/v2/x");
        check("[::1]:5000", Loopback, "http://[::1]:5000/v2/x");
        check("localhost.example.com", Loopback, "https://localhost.example.com/v2/x");
        check("10.0.0.1:5000", Loopback, "https://10.0.0.1:5000/v2/x");
        check("10.0.0.1:5000", Everywhere, "http://10.0.0.1:5000/v2/x");
        check("docker.io", Loopback, "https://registry-1.docker.io/v2/x");
    }

    #[test]
    fn redacts() {
        let url = Url::parse("https://u:p@h/x?X-Amz-Signature=abc").unwrap();
        assert_eq!(redacted(&url), "https://h/x?REDACTED");
    }
}
