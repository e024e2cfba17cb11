use super::*;

/// A tar of empty files, by hand: a header block each, with a checksum.
fn tar(files: usize) -> Vec<u8> {
    let header = |index: usize| {
        let mut block = vec![0; 512];
        for (at, field) in [(0, format!("file-{index}")), (148, " ".repeat(8)), (156, "0".to_owned())] {
            block[at..at + field.len()].copy_from_slice(field.as_bytes());
        }
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        block
    };
    (0..files).flat_map(header).chain([0; 1024]).collect()
}

/// A gzip member of stored blocks, all of zeros, so that each is the end of a tar and padding.
fn blocks(count: usize, len: u16) -> Vec<u8> {
    let content = vec![0; usize::from(len)];
    let block = |last: u8| [&[last][..], &len.to_le_bytes(), &(!len).to_le_bytes(), &content].concat();
    let mut crc = flate2::Crc::new();
    (0..count).for_each(|_| crc.update(&content));
    let front = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff];
    let blocks = [block(0).repeat(count - 1), block(1)].concat();
    [&front[..], &blocks, &crc.sum().to_le_bytes(), &crc.amount().to_le_bytes()].concat()
}

/// How much of the layer was taken when it was refused; nothing if it was built.
fn refused_at(layer: &[u8], compression: Compression, span_size: u64, limit: u64) -> Option<usize> {
    let options = Options { span_size, ..Options::default() };
    let mut builder = Builder::with_limit(compression, &options, limit).unwrap();
    for (index, piece) in layer.chunks(512).enumerate() {
        if let Err(error) = builder.push(piece, &mut std::io::sink()) {
            assert_eq!(error.kind(), ErrorKind::TooLarge);
            return Some((index + 1) * 512);
        }
    }
    match builder.finish(&mut std::io::sink()) {
        Ok(built) => {
            assert!(built.ztoc.len() as u64 <= limit);
            Ztoc::from_vec(built.ztoc).unwrap();
            None
        }
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::TooLarge);
            Some(layer.len())
        }
    }
}

/// A layer whose ztoc would be too large is refused while it comes by, before its ztoc takes that much memory:
/// for its entries, its checkpoints, or its spans' digests.
#[test]
fn a_ztoc_that_would_be_too_large() {
    let cases = [
        (tar(400), Compression::Uncompressed, 1 << 20),
        (blocks(40, 2048), Compression::Gzip, 2047),
        (vec![0; 80_000], Compression::Uncompressed, 100),
    ];
    for (layer, compression, span_size) in cases {
        let options = Options { span_size, ..Options::default() };
        let len = build(&layer[..], compression, &options).unwrap().ztoc.len() as u64;
        assert_eq!(refused_at(&layer, compression, span_size, len * 3 / 2 + VTABLES), None);
        let late = refused_at(&layer, compression, span_size, len - 1).unwrap();
        let early = refused_at(&layer, compression, span_size, len / 2).unwrap();
        assert!(early < layer.len() * 3 / 4 && early < late, "{early}, {late} of {}", layer.len());
    }
}

/// The estimate that refuses early is no less than what is written, and not much more.
#[test]
fn estimated_and_written() {
    let layer = tar(1000);
    let options = Options::default();
    let mut builder = Builder::new(Compression::Uncompressed, &options).unwrap();
    builder.push(&layer, &mut std::io::sink()).unwrap();
    let estimated = builder.output.encoded_len;
    let written = builder.finish(&mut std::io::sink()).unwrap().ztoc.len() as u64;
    assert!(estimated + 1000 >= written && estimated < written * 3 / 2, "{estimated}, {written}");
}

/// A reader takes no more than a builder makes.
#[test]
fn a_ztoc_that_is_too_large() {
    // untouched zeros take no memory
    let bytes = vec![0; usize::try_from(MAX_ZTOC_BYTES).unwrap() + 1];
    assert_eq!(Ztoc::from_vec(bytes).unwrap_err().kind(), ErrorKind::TooLarge);
}
