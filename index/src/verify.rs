//! Whether a ztoc is true: the layer is read once more and its ztoc built anew, and what was found is compared with
//! what was built. The layer itself is compared with its digest on the way, so that a verdict rests on the right
//! bytes.

use std::fmt;
use std::sync::Arc;

use oci::store::read_blob;
use oci::{Descriptor, Store};
use ztoc::{MAX_ZTOC_BYTES, Whole, Ztoc};

use crate::build::{Event, Observer, failed};
use crate::error::Error;
use crate::layer_format::algorithm;
use crate::manifest::disables_xattrs;
use crate::tee::TeeBlob;

/// What to think of a ztoc.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// byte for byte what would be built
    Same,
    /// written otherwise, and all it says is so
    True,
    /// it says what is not so: the first such thing
    False(String),
    /// there is nothing to compare with: the layer is one of which we build no ztoc
    Unknown(String),
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Same => f.write_str("same"),
            Verdict::True => f.write_str("true"),
            Verdict::False(why) => write!(f, "false: {why}"),
            Verdict::Unknown(why) => write!(f, "unknown: {why}"),
        }
    }
}

/// Reads `layer` from `layers` and `ztoc` from `ztocs`, and compares. An error if either cannot be read, or is not what
/// its descriptor says.
pub async fn verify(
    layers: &dyn Store,
    layer: &Descriptor,
    ztocs: &dyn Store,
    ztoc: &Descriptor,
    observer: Observer<'_>,
) -> Result<Verdict, Error> {
    let doing = format!("verify ztoc {}", ztoc.digest);
    let bytes = read_blob(ztocs, ztoc, MAX_ZTOC_BYTES, &doing).await?;
    let found = match Ztoc::open(Arc::new(bytes)) {
        Ok(found) => found,
        Err(error) => return Ok(Verdict::False(error.to_string())),
    };
    if let Err(error) = found.check_hard_links() {
        return Ok(Verdict::False(error.to_string()));
    }
    let Ok(Ok(compression)) = algorithm(&layer.media_type).map_err(drop) else {
        return Ok(Verdict::Unknown(format!("the layer is of media type {:?}", layer.media_type)));
    };
    let options = ztoc::Options {
        span_size: found.spans().span_size(),
        build_tool: String::from_utf8_lossy(found.build_tool()).into_owned(),
        whole: Whole::Ignored,
    };
    if options.span_size == 0 {
        return Ok(Verdict::False("its span size is 0".to_owned()));
    }
    observer(Event::Begun(layer));
    let heard = |bytes| observer(Event::Read(&layer.digest, bytes));
    let built = match TeeBlob::new(layers, layer, compression, options).run(None, &heard).await? {
        Ok(built) => built,
        Err(error) if error.kind() == ztoc::ErrorKind::Corrupt => return Err(failed(error, &doing)),
        Err(error) => return Ok(Verdict::Unknown(error.to_string())),
    };
    if disables_xattrs(ztoc) && (built.has_xattrs || built.has_opaque) {
        let why = "the index says that the layer has no extended attributes, and it has some";
        return Ok(Verdict::False(why.to_owned()));
    }
    if built.ztoc == found.as_bytes() {
        return Ok(Verdict::Same);
    }
    let truth = Ztoc::from_vec(built.ztoc).map_err(|error| failed(error, &doing))?;
    Ok(found.difference(&truth).map_or(Verdict::True, Verdict::False))
}
