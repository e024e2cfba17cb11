//! `soci index`: what an index says.

use index::SociIndex;
use oci::store::MANIFEST_BYTES_MAX;
use oci::{Digest, ErrorKind as OciErrorKind, Store};

use super::ztoc::read_file;
use crate::error::{Error, ErrorKind};
use crate::output::Output;
use crate::place::{BlobPlace, Registries};

/// Prints an index as it is stored, indented.
pub(super) async fn info(place: &str, registries: &Registries, output: &Output) -> Result<(), Error> {
    let (digest, bytes) = match BlobPlace::parse(place)? {
        BlobPlace::File(path) => {
            let bytes = read_file(&path, MANIFEST_BYTES_MAX)?;
            (Digest::sha256(&bytes), bytes.into())
        }
        BlobPlace::Registry(reference, digest) => {
            let registry = registries.open(&reference)?;
            match registry.manifest(&digest.to_string()).await {
                Ok((_, bytes)) => (digest, bytes),
                Err(error) => {
                    let blob = oci::Descriptor::new("", digest, 0);
                    if error.kind() == OciErrorKind::NotFound
                        && registry.has_blob(&blob).await.unwrap_or(false)
                    {
                        let message = "the provided digest is of ztoc not SOCI index. Use \"soci ztoc info\" \
                                       command to get detailed info of ztoc";
                        return Err(Error::new(ErrorKind::Invalid, message));
                    }
                    return Err(error.into());
                }
            }
        }
    };
    SociIndex::parse(digest, &bytes)?;
    output.indented(&bytes);
    Ok(())
}
