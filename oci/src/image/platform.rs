//! Platforms: how they are written, made equal, and compared.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::null_as_default;
use crate::error::{Error, ErrorKind};

/// The machine that an image is made for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Platform {
    #[serde(default, deserialize_with = "null_as_default")]
    pub architecture: String,
    #[serde(default, deserialize_with = "null_as_default")]
    pub os: String,
    #[serde(
        default,
        rename = "os.version",
        deserialize_with = "null_as_default",
        skip_serializing_if = "String::is_empty"
    )]
    pub os_version: String,
    #[serde(
        default,
        rename = "os.features",
        deserialize_with = "null_as_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub os_features: Vec<String>,
    #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "String::is_empty")]
    pub variant: String,
}

impl Platform {
    pub fn new(os: &str, architecture: &str, variant: &str) -> Platform {
        Platform {
            os: os.to_owned(),
            architecture: architecture.to_owned(),
            variant: variant.to_owned(),
            ..Platform::default()
        }
    }

    /// This machine's.
    pub fn host() -> Platform {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", ""),
            "x86" => ("386", ""),
            "aarch64" => ("arm64", "v8"),
            "arm" => ("arm", "v7"),
            "powerpc64" if cfg!(target_endian = "little") => ("ppc64le", ""),
            "loongarch64" => ("loong64", ""),
            other => (other, ""),
        };
        Platform::new(host_os(), architecture, variant)
    }

    /// The one spelling of several: `x86_64` is `amd64`, `arm64/v8` is `arm64`, `arm` is `arm/v7`.
    #[must_use]
    pub fn normalized(&self) -> Platform {
        let (architecture, variant) = normalize_architecture(&self.architecture, &self.variant);
        Platform {
            os: normalize_os(&self.os),
            architecture,
            variant,
            os_version: self.os_version.clone(),
            os_features: self.os_features.clone(),
        }
    }

    /// Whether `other` is what this asks for, once both are normalized; features that it needs must be asked for, too.
    /// The version of the operating system counts for Windows only, where an image runs on one version and not on
    /// another.
    pub fn matches(&self, other: &Platform) -> bool {
        let (a, b) = (self.normalized(), other.normalized());
        let same = a.os == b.os && a.architecture == b.architecture && a.variant == b.variant;
        let features = b.os_features.iter().all(|feature| a.os_features.contains(feature));
        same && features && (a.os != "windows" || a.os_version.is_empty() || a.os_version == b.os_version)
    }

    /// Whether it is the mark of something that is no image, as attestations carry it.
    pub fn is_unknown(&self) -> bool {
        self.os == "unknown" || self.architecture == "unknown"
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if self.variant.is_empty() { Ok(()) } else { write!(f, "/{}", self.variant) }
    }
}

/// `os`, `architecture`, `os/architecture` or `os/architecture/variant`; what is not said is the host's.
impl FromStr for Platform {
    type Err = Error;

    fn from_str(text: &str) -> Result<Platform, Error> {
        let invalid = |why: &'static str| {
            Error::new(ErrorKind::Invalid, format!("parse platform {text:?}")).because(why)
        };
        let good = |part: &&str| {
            !part.is_empty()
                && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.'))
        };
        let parts: Vec<&str> = text.split('/').collect();
        if !parts.iter().all(good) {
            return Err(invalid("it is written os/architecture or os/architecture/variant"));
        }
        match parts[..] {
            [one] => {
                let os = normalize_os(one);
                if OPERATING_SYSTEMS.contains(&os.as_str()) {
                    let host = Platform::host();
                    return Ok(Platform::new(&os, &host.architecture, &host.variant));
                }
                let (architecture, variant) = normalize_architecture(one, "");
                if ARCHITECTURES.contains(&architecture.as_str()) {
                    let variant = if architecture == "arm" && variant == "v7" { "" } else { &variant };
                    return Ok(Platform::new(host_os(), &architecture, variant));
                }
                Err(invalid("it is neither an operating system nor an architecture"))
            }
            [os, architecture] => {
                let (architecture, variant) = normalize_architecture(architecture, "");
                let variant = if architecture == "arm" && variant == "v7" { "" } else { &variant };
                Ok(Platform::new(&normalize_os(os), &architecture, variant))
            }
            [os, architecture, variant] => {
                let (architecture, mut variant) = normalize_architecture(architecture, variant);
                if architecture == "arm64" && variant.is_empty() {
                    variant = "v8".to_owned();
                }
                Ok(Platform::new(&normalize_os(os), &architecture, &variant))
            }
            _ => Err(invalid("it has more than three parts")),
        }
    }
}

const OPERATING_SYSTEMS: &[&str] = &[
    "aix",
    "android",
    "darwin",
    "dragonfly",
    "freebsd",
    "illumos",
    "ios",
    "js",
    "linux",
    "netbsd",
    "openbsd",
    "plan9",
    "solaris",
    "wasip1",
    "windows",
    "zos",
];

const ARCHITECTURES: &[&str] = &[
    "386", "amd64", "arm", "arm64", "loong64", "mips", "mips64", "mips64le", "mipsle", "ppc64", "ppc64le",
    "riscv64", "s390x", "wasm",
];

fn host_os() -> &'static str {
    match std::env::consts::OS {
        "macos" => "darwin",
        other => other,
    }
}

fn normalize_os(os: &str) -> String {
    match os.to_lowercase().as_str() {
        "" => host_os().to_owned(),
        "macos" => "darwin".to_owned(),
        other => other.to_owned(),
    }
}

fn normalize_architecture(architecture: &str, variant: &str) -> (String, String) {
    let (architecture, variant) = (architecture.to_lowercase(), variant.to_lowercase());
    let (architecture, variant) = match (architecture.as_str(), variant.as_str()) {
        ("i386", _) => ("386", ""),
        ("x86_64" | "x86-64" | "amd64", "v1") => ("amd64", ""),
        ("x86_64" | "x86-64" | "amd64", variant) => ("amd64", variant),
        ("aarch64" | "arm64", "8" | "v8" | "v8.0") => ("arm64", ""),
        ("aarch64" | "arm64", "9" | "9.0" | "v9.0") => ("arm64", "v9"),
        ("aarch64" | "arm64", variant) => ("arm64", variant),
        ("armhf", _) => ("arm", "v7"),
        ("armel", _) => ("arm", "v6"),
        ("arm", "" | "7") => ("arm", "v7"),
        ("arm", "5") => ("arm", "v5"),
        ("arm", "6") => ("arm", "v6"),
        ("arm", "8") => ("arm", "v8"),
        other => other,
    };
    (architecture.to_owned(), variant.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses() {
        let check = |text: &str, expected: &str| {
            assert_eq!(text.parse::<Platform>().unwrap().to_string(), expected, "{text}");
        };
        check("linux/amd64", "linux/amd64");
        check("Linux/x86_64", "linux/amd64");
        check("linux/amd64/v1", "linux/amd64");
        check("linux/amd64/v3", "linux/amd64/v3");
        check("linux/arm64", "linux/arm64");
        check("linux/arm64/v8", "linux/arm64/v8");
        check("linux/aarch64/9", "linux/arm64/v9");
        check("linux/arm", "linux/arm");
        check("linux/arm/6", "linux/arm/v6");
        check("linux/armhf", "linux/arm");
        check("linux/armel", "linux/arm/v6");
        check("macos/arm64", "darwin/arm64");
        for bad in ["", "linux/", "a/b/c/d", "li nux/amd64", "nonsense"] {
            assert_eq!(bad.parse::<Platform>().unwrap_err().kind(), ErrorKind::Invalid, "{bad}");
        }
    }

    #[test]
    fn matches_strictly() {
        let check = |a: [&str; 3], b: [&str; 3], expected: bool| {
            let platform = |[os, architecture, variant]: [&str; 3]| Platform::new(os, architecture, variant);
            assert_eq!(platform(a).matches(&platform(b)), expected, "{a:?} {b:?}");
        };
        check(["linux", "amd64", ""], ["linux", "x86_64", "v1"], true);
        check(["linux", "arm64", "v8"], ["linux", "arm64", ""], true);
        check(["linux", "arm64", "v9"], ["linux", "arm64", ""], false);
        check(["linux", "arm", ""], ["linux", "arm", "v7"], true);
        check(["linux", "arm", "6"], ["linux", "armel", ""], true);
        check(["linux", "arm", "v6"], ["linux", "arm", "v7"], false);
        check(["linux", "amd64", ""], ["windows", "amd64", ""], false);
        check(["linux", "386", ""], ["linux", "i386", ""], true);
        let plain = Platform::new("linux", "amd64", "");
        let special = Platform { os_features: vec!["x".to_owned()], ..plain.clone() };
        assert!(special.matches(&plain) && special.matches(&special) && !plain.matches(&special));
    }

    #[test]
    fn host_is_one_that_parses() {
        let host = Platform::host();
        assert!(host.to_string().parse::<Platform>().unwrap().matches(&host));
    }
}
