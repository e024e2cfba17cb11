//! Building a ztoc against only inflating the same bytes with the same inflater. Bar: 1.2. Opening one of 200 000
//! entries. Bar: 50 ms.

use std::io::{Read, sink};
use std::sync::Arc;
use std::time::Duration;

use benches::{best_of, layer, tell};
use flate2::read::MultiGzDecoder;

fn main() {
    let made = layer(2_000, 100_000);
    let build = || {
        let built = ztoc::build(&made.bytes[..], ztoc::Compression::Gzip, &ztoc::Options::default());
        assert_eq!(built.expect("it is a layer").uncompressed_len % 512, 0);
    };
    let inflate = || {
        let mut plain = [0; 256 << 10];
        let mut decoder = MultiGzDecoder::new(&made.bytes[..]);
        while decoder.read(&mut plain).expect("it is gzip") > 0 {}
        std::io::Write::write_all(&mut sink(), &plain).expect("it takes everything");
    };
    let (ours, theirs) = best_of(5, build, inflate);
    tell("build a ztoc", ours, "only inflate", theirs, 1.2);

    let many = layer(200_000, 1);
    let built = ztoc::build(&many.bytes[..], ztoc::Compression::Gzip, &ztoc::Options::default());
    let shared: Arc<Vec<u8>> = Arc::new(built.expect("it is a layer").ztoc);
    let open = || assert!(ztoc::Ztoc::open(shared.clone()).expect("we built it").len() >= 200_000);
    let (ours, _) = best_of(5, open, || {});
    tell("open a ztoc of 200 000 entries", ours, "the bar", Duration::from_millis(50), 1.0);
}
