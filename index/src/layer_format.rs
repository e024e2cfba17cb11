//! What a layer is: its media type says how it should be compressed, and its first bytes say how it is.
//!
//! containerd goes by the bytes. An index is built by the media type, because readers of a ztoc go by that. A layer whose
//! bytes say something else gets no ztoc, with the reason (`docs/decisions/0006`).

use oci::image::media_type::{DOCKER_LAYER, OCI_LAYER, OCI_LAYER_PREFIX};
use ztoc::Compression;

use crate::error::{Error, ErrorKind};

/// Compressed bytes that are enough for [`by_bytes`]: the magic of a tar ends at 262.
pub(crate) const BEGINNING: u64 = 512;

/// The format of a layer with this beginning, in words. None if it is unknown.
pub(crate) fn by_bytes(first: &[u8]) -> Option<&'static str> {
    const MAGICS: &[(&[u8], &str)] = &[
        (&[0x1f, 0x8b], GZIP),
        (&[0x28, 0xb5, 0x2f, 0xfd], "zstd"),
        (&[0xfd, b'7', b'z', b'X', b'Z', 0], "xz"),
        (b"BZh", "bzip2"),
        (&[0x04, 0x22, 0x4d, 0x18], "lz4"),
    ];
    if first.is_empty() {
        return Some("none");
    }
    if first.get(257..262) == Some(b"ustar") {
        return Some(TAR);
    }
    MAGICS.iter().find(|(magic, _)| first.starts_with(magic)).map(|(_, name)| *name)
}

const GZIP: &str = "gzip";
const TAR: &str = "an uncompressed tar";

/// The format of layers that are compressed so, in the words of [`by_bytes`].
pub(crate) fn name(compression: Compression) -> &'static str {
    match compression {
        Compression::Gzip => GZIP,
        Compression::Uncompressed => TAR,
    }
}

/// How a layer of this media type is compressed, if it is one that can be read.
pub fn compression_of(media_type: &str) -> Option<Compression> {
    algorithm(media_type).ok()?.ok()
}

/// How a layer of this media type is compressed, or the name of a compression we cannot index. A media type
/// that is no layer's is an error: the image is of a kind we do not know.
pub(crate) fn algorithm(media_type: &str) -> Result<Result<Compression, String>, Error> {
    let (base, suffixes) = media_type.split_once('+').unwrap_or((media_type, ""));
    if let Some(rest) = base.strip_prefix("application/vnd.docker.image.rootfs.")
        && let Some(kind) = rest.strip_prefix("foreign.diff.").or_else(|| rest.strip_prefix("diff."))
    {
        match kind {
            "tar" => return Ok(Ok(Compression::Uncompressed)),
            "tar.gzip" => return Ok(Ok(Compression::Gzip)),
            "tar.zstd" if media_type.starts_with(DOCKER_LAYER) => return Ok(Err("zstd".to_owned())),
            _ => {}
        }
    }
    if let Some(kind) = base.strip_prefix(OCI_LAYER_PREFIX) {
        // Of several suffixes the Go tool looks at the last in the order of the alphabet.
        let last = suffixes.split('+').max().unwrap_or_default();
        return match (kind, last) {
            ("v1.tar" | "nondistributable.v1.tar", "gzip") => Ok(Ok(Compression::Gzip)),
            ("v1.tar", "") if media_type == OCI_LAYER => Ok(Ok(Compression::Uncompressed)),
            ("v1.tar" | "nondistributable.v1.tar", "") => Ok(Err("unknown".to_owned())),
            ("v1.tar" | "nondistributable.v1.tar", other) => Ok(Err(other.to_owned())),
            _ => not_a_layer(media_type),
        };
    }
    not_a_layer(media_type)
}

fn not_a_layer<T>(media_type: &str) -> Result<T, Error> {
    let why = format!("not a layer mediaType: {media_type:?}");
    Err(Error::new(ErrorKind::Unsupported, "build ztocs").because(why))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_beginning_tells_the_format() {
        let mut tar = vec![0; 512];
        tar[257..262].copy_from_slice(b"ustar");
        for (first, expected) in [
            (&[0x1f, 0x8b, 8][..], Some("gzip")),
            (&[0x28, 0xb5, 0x2f, 0xfd, 0], Some("zstd")),
            (b"\xfd7zXZ\0\0", Some("xz")),
            (b"BZh9", Some("bzip2")),
            (&tar, Some("an uncompressed tar")),
            (&tar[..260], None),
            (b"garbage", None),
            (b"", Some("none")),
        ] {
            assert_eq!(by_bytes(first), expected, "{first:02x?}");
        }
    }

    #[test]
    fn algorithms() {
        let check = |media_type: &str, expected: Option<Result<Compression, &str>>| {
            let found = algorithm(media_type).ok();
            let found = found.as_ref().map(|found| found.as_ref().map_err(String::as_str));
            let expected = expected.as_ref().map(|expected| expected.as_ref().map_err(|name| *name));
            assert_eq!(found, expected, "{media_type}");
        };
        use Compression::{Gzip, Uncompressed};
        check("application/vnd.oci.image.layer.v1.tar+gzip", Some(Ok(Gzip)));
        check("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", Some(Ok(Gzip)));
        check("application/vnd.oci.image.layer.v1.tar+gzip+encrypted", Some(Ok(Gzip)));
        check("application/vnd.oci.image.layer.v1.tar", Some(Ok(Uncompressed)));
        check("application/vnd.oci.image.layer.nondistributable.v1.tar", Some(Err("unknown")));
        check("application/vnd.oci.image.layer.v1.tar+zstd", Some(Err("zstd")));
        check("application/vnd.oci.image.layer.v1.tar+lz4", Some(Err("lz4")));
        check("application/vnd.oci.image.layer.v2.tar", None);
        check("application/vnd.docker.image.rootfs.diff.tar", Some(Ok(Uncompressed)));
        check("application/vnd.docker.image.rootfs.diff.tar.gzip", Some(Ok(Gzip)));
        check("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", Some(Ok(Gzip)));
        check("application/vnd.docker.image.rootfs.diff.tar.zstd", Some(Err("zstd")));
        check("application/vnd.docker.image.rootfs.foreign.diff.tar.zstd", None);
        check("application/vnd.in-toto+json", None);
        check("", None);
    }
}
