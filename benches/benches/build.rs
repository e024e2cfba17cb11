//! Building a ztoc against only inflating the same bytes with the same inflater. Bar: 1.2.

use std::io::{Read, sink};

use benches::{best_of, layer, tell};
use flate2::read::MultiGzDecoder;

fn main() {
    let layer = layer(2_000, 100_000);
    let build = || {
        let built = ztoc::build(&layer.bytes[..], ztoc::Compression::Gzip, &ztoc::Options::default());
        assert_eq!(built.expect("it is a layer").uncompressed_len % 512, 0);
    };
    let inflate = || {
        let mut plain = [0; 256 << 10];
        let mut decoder = MultiGzDecoder::new(&layer.bytes[..]);
        while decoder.read(&mut plain).expect("it is gzip") > 0 {}
        std::io::Write::write_all(&mut sink(), &plain).expect("it takes everything");
    };
    let (ours, theirs) = best_of(5, build, inflate);
    tell("build a ztoc", ours, "only inflate", theirs, 1.2);
}
