//! Gzip around anything: a tar that ends at once, and then whatever is given.

use crate::layers::{self, gzip_literals, gzip_stored, stored};

/// The two zero blocks that end a tar.
const END: [u8; 1024] = [0; 1024];

/// They, as a deflate block behind which others follow.
pub fn end_of_tar() -> Vec<u8> {
    stored(&END, false)
}

/// A gzip member around deflate blocks that inflate to `data`.
pub fn member(blocks: &[u8], data: &[u8]) -> Vec<u8> {
    layers::member(blocks, data)
}

/// A layer of several members, cut as `lengths` say, whose blocks are made by hand; and what it inflates to.
pub fn in_blocks(bytes: &[u8], lengths: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let content = [&END, bytes].concat();
    let mut layer = Vec::new();
    let mut rest = &content[..];
    for length in lengths.iter().map(|length| usize::from(*length)).cycle() {
        let (part, later) = rest.split_at(rest.len().min(8 * length + 100));
        let block = length % 61 + 5;
        layer.extend(if length % 2 == 0 { gzip_stored(part, block) } else { gzip_literals(part, block) });
        rest = later;
        if rest.is_empty() {
            break;
        }
    }
    (layer, content)
}
