//! Building a ztoc from a layer in one piece and in several, which must come to the same.

use ztoc::{Builder, Built, Compression, Error, Options};

/// Pushes `layer` whole, and again in pieces of the lengths given, over and over; asserts that nothing differs.
/// Gives what was built and what the layer inflates to.
pub fn build(
    layer: &[u8],
    compression: Compression,
    span_size: u64,
    lengths: &[u8],
) -> Result<(Built, Vec<u8>), Error> {
    let whole = push(layer, compression, span_size, &mut std::iter::once(layer.len()));
    // at most some hundred pieces, however long the layer is
    let least = layer.len() / 256;
    let mut lengths = lengths.iter().map(|len| usize::from(*len) + least + 1).cycle();
    let pieces = push(layer, compression, span_size, &mut lengths);
    match (&whole, &pieces) {
        (Ok((whole, inflated)), Ok((pieces, inflated_in_pieces))) => {
            assert!(whole.ztoc == pieces.ztoc, "the ztoc depends on how the layer is cut");
            assert!(inflated == inflated_in_pieces, "what is inflated depends on how the layer is cut");
            assert_eq!(
                (whole.whole, whole.compressed_size, whole.uncompressed_len),
                (pieces.whole, pieces.compressed_size, pieces.uncompressed_len)
            );
            assert_eq!((whole.has_xattrs, whole.has_opaque), (pieces.has_xattrs, pieces.has_opaque));
        }
        // a layer that is broken as a tar and as gzip may be refused for either
        (Err(_), Err(_)) if compression == Compression::Gzip => {}
        (Err(whole), Err(pieces)) => {
            assert_eq!((whole.kind(), whole.to_string()), (pieces.kind(), pieces.to_string()));
        }
        (whole, pieces) => panic!("whole: {:?}, in pieces: {:?}", whole.is_ok(), pieces.is_ok()),
    }
    whole
}

fn push(
    layer: &[u8],
    compression: Compression,
    span_size: u64,
    lengths: &mut dyn Iterator<Item = usize>,
) -> Result<(Built, Vec<u8>), Error> {
    let mut builder = Builder::new(compression, &Options { span_size, ..Options::default() })?;
    let mut inflated = Vec::new();
    let mut rest = layer;
    while !rest.is_empty() {
        let (piece, later) = rest.split_at(rest.len().min(lengths.next().unwrap_or(rest.len())));
        builder.push(piece, &mut inflated)?;
        rest = later;
    }
    Ok((builder.finish(&mut inflated)?, inflated))
}
