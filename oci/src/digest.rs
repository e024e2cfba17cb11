//! The name of content: `sha256:` and 64 hexadecimal digits. Only SHA-256 exists here, since only what can be
//! compared may be trusted; other algorithms are refused as unsupported when parsed, not later.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256};

use crate::error::{Error, ErrorKind};

/// A SHA-256 digest. Written and parsed as `sha256:<64 lower-case hex digits>`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest of `bytes`.
    pub fn sha256(bytes: &[u8]) -> Digest {
        Digest(Sha256::digest(bytes).into())
    }

    /// The digest with these 32 bytes, which were computed elsewhere.
    pub fn from_sha256(bytes: [u8; 32]) -> Digest {
        Digest(bytes)
    }

    /// The 32 bytes.
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The 64 digits, without the algorithm.
    pub fn hex(&self) -> String {
        self.0.iter().fold(String::with_capacity(64), |mut text, byte| {
            for nibble in [byte >> 4, byte & 15] {
                text.push(char::from(b"0123456789abcdef"[usize::from(nibble)]));
            }
            text
        })
    }

    /// `algorithm` as it stands before the colon; there is one.
    pub fn algorithm(&self) -> &'static str {
        "sha256"
    }

    /// Ok if `bytes` have this digest, else `Corrupt`; `doing` names what was fetched.
    pub fn verify(&self, bytes: &[u8], doing: &str) -> Result<(), Error> {
        self.compare(&Digest::sha256(bytes), doing)
    }

    fn compare(&self, found: &Digest, doing: &str) -> Result<(), Error> {
        if self == found {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Corrupt, doing).because(format!("digest is {found}, expected {self}")))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = Error;

    fn from_str(text: &str) -> Result<Digest, Error> {
        // What cannot be a digest may be long and odd: shown cut and escaped.
        let doing = || format!("parse digest {:?}", text.chars().take(80).collect::<String>());
        let invalid = |why: &'static str| Err(Error::new(ErrorKind::Invalid, doing()).because(why));
        let Some((algorithm, hex)) = text.split_once(':') else {
            return invalid("it has no algorithm; a digest looks like sha256:<64 hex digits>");
        };
        if algorithm != "sha256" {
            let known = matches!(algorithm, "sha512" | "sha384" | "blake3");
            let kind = if known { ErrorKind::Unsupported } else { ErrorKind::Invalid };
            return Err(Error::new(kind, doing()).because("only sha256 digests are supported"));
        }
        if hex.len() != 64 {
            return invalid("a sha256 digest has 64 hex digits");
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
            let (Some(high), Some(low)) = (nibble(pair[0]), nibble(pair[1])) else {
                return invalid("a digest is written in lower-case hex digits");
            };
            *byte = high << 4 | low;
        }
        Ok(Digest(bytes))
    }
}

fn nibble(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Digest, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(|error: Error| {
            let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
            serde::de::Error::custom(format!("{}: {cause}", error.doing()))
        })
    }
}

/// Bytes go through it in pieces; at the end they had the digest or they had not.
#[derive(Debug)]
pub struct Verifier {
    expected: Digest,
    hasher: Sha256,
    taken: u64,
}

impl Verifier {
    pub fn new(expected: Digest) -> Verifier {
        Verifier { expected, hasher: Sha256::new(), taken: 0 }
    }

    pub fn update(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
        self.taken += bytes.len() as u64;
    }

    /// Bytes taken so far.
    pub fn taken(&self) -> u64 {
        self.taken
    }

    /// `Corrupt` if the bytes taken do not have the digest.
    pub fn finish(self, doing: &str) -> Result<(), Error> {
        self.expected.compare(&Digest(self.hasher.finalize().into()), doing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_what_it_prints() {
        let digest = Digest::sha256(b"{}");
        let text = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";
        assert_eq!(digest.to_string(), text);
        assert_eq!(text.parse::<Digest>().unwrap(), digest);
    }

    #[test]
    fn refuses() {
        let check = |text: &str, kind| assert_eq!(text.parse::<Digest>().unwrap_err().kind(), kind, "{text}");
        check("", ErrorKind::Invalid);
        check("44136fa3", ErrorKind::Invalid);
        check("sha256:44136fa3", ErrorKind::Invalid);
        check(&format!("sha256:{}", "A".repeat(64)), ErrorKind::Invalid);
        check(&format!("sha256:{}", "é".repeat(32)), ErrorKind::Invalid);
        check(&format!("sha512:{}", "a".repeat(128)), ErrorKind::Unsupported);
        check(&format!("md5:{}", "a".repeat(32)), ErrorKind::Invalid);
    }
}
