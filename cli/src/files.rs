//! Files as the commands read them: whole, and never more than makes sense.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::error::{Error, ErrorKind};

/// A file of at most `limit` bytes.
pub(crate) fn read_file(path: &Path, limit: u64) -> Result<Vec<u8>, Error> {
    let doing = format!("read {}", path.display());
    let io = |cause| Error::io(doing.clone(), cause);
    // A pipe would be waited for; a device has no end.
    if !std::fs::metadata(path).map_err(io)?.is_file() {
        return Err(Error::new(ErrorKind::Unsupported, format!("{doing}: it is not a file")));
    }
    let mut bytes = Vec::new();
    File::open(path).map_err(io)?.take(limit.saturating_add(1)).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 > limit {
        return Err(Error::new(ErrorKind::Unsupported, format!("{doing}: it is longer than {limit} bytes")));
    }
    Ok(bytes)
}
