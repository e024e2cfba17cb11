use std::io::Write;

use super::*;
use crate::error::ErrorKind;

/// Text that compresses into blocks of several kinds.
fn data(len: usize) -> Vec<u8> {
    let mut state = 1u32;
    let words = (0..).flat_map(|index: u32| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let noisy = (index / 2000).is_multiple_of(3);
        let word = if noisy { state } else { state >> 28 };
        format!("{word:x} ").into_bytes()
    });
    words.take(len).collect()
}

fn gzip(data: &[u8], level: u32) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(level));
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

/// Where checkpoints belong by the letter: stop at every block, then ask.
fn every_block(layer: &[u8], span_size: u64) -> Vec<Checkpoint> {
    let mut inflater = Inflater::new(Wrapper::Gzip);
    let mut found: Vec<Checkpoint> = Vec::new();
    let (mut total_in, mut total_out) = (0, 0);
    let mut room = vec![0; 100_000];
    while total_in < layer.len() {
        let progress = inflater.inflate(&layer[total_in..], &mut room, Stop::Block).unwrap();
        total_in += progress.consumed;
        total_out += progress.produced as u64;
        match progress.at {
            At::Block { bits } => {
                let last = found.last().map_or(0, |checkpoint| checkpoint.output);
                if total_out == 0 || total_out - last > span_size {
                    found.push(Checkpoint { input: total_in as u64, output: total_out, bits });
                }
            }
            At::StreamEnd => inflater.reset(Wrapper::Gzip),
            At::Middle => {}
        }
    }
    found
}

fn scan(layer: &[u8], span_size: u64, piece: usize) -> (Vec<(Checkpoint, Vec<u8>)>, Vec<u8>) {
    let mut scanner = Scanner::new(span_size);
    let mut found = Vec::new();
    let mut output = Vec::new();
    for mut input in layer.chunks(piece) {
        loop {
            match scanner.advance(&mut input).unwrap() {
                Step::BufferFull => {
                    output.extend_from_slice(scanner.take_output());
                    scanner.exchange(|full| vec![0xaa; full.len()]);
                }
                Step::Checkpoint(checkpoint) => found.push((checkpoint, scanner.window().to_vec())),
                Step::NeedsInput => break,
            }
        }
        assert!(input.is_empty());
    }
    output.extend_from_slice(scanner.take_output());
    scanner.finish().unwrap();
    (found, output)
}

/// Layers of one and of several members, at several levels of compression.
fn layers() -> Vec<(Vec<u8>, Vec<u8>)> {
    let data = data(1_500_000);
    let members = data.chunks(70_001).zip([0, 1, 6, 9].iter().cycle());
    let many = members.flat_map(|(part, level)| gzip(part, *level)).collect();
    [many, gzip(&data, 0), gzip(&data, 1), gzip(&data, 6)].map(|layer| (layer, data.clone())).to_vec()
}

/// Stopping at few blocks finds the checkpoints that stopping at all blocks finds; pieces change nothing.
#[test]
fn checkpoints_are_those_of_every_block() {
    for (layer, data) in layers() {
        for span_size in [1, 1000, 32768, 65535, 65536, 100_000, 1 << 20, 1 << 30] {
            let expected = every_block(&layer, span_size);
            for piece in [layer.len(), 8191] {
                let (found, output) = scan(&layer, span_size, piece);
                assert!(output == data);
                let checkpoints: Vec<_> = found.iter().map(|(checkpoint, _)| *checkpoint).collect();
                assert_eq!(checkpoints, expected, "span size {span_size}, pieces of {piece}");
                for (checkpoint, window) in found {
                    let output = checkpoint.output as usize;
                    let known = output.min(WINDOW);
                    assert!(window[..WINDOW - known].iter().all(|byte| *byte == 0));
                    assert!(window[WINDOW - known..] == data[output - known..output]);
                }
            }
        }
    }
}

/// From every checkpoint, to the end; and from every cut of the input an error, at once.
#[test]
fn resume_and_run_out() {
    for (layer, data) in layers() {
        for (checkpoint, window) in scan(&layer, 100_000, layer.len()).0 {
            let compressed = &layer[checkpoint.first_byte() as usize..];
            let rest = &data[checkpoint.output as usize..];
            let run = |compressed, until| -> Result<Vec<u8>, Error> {
                let mut out = Vec::new();
                let mut resumed = Resumed::new(checkpoint, &window, compressed, until)?;
                while resumed.more(&mut out)? {}
                Ok(out)
            };
            let len = rest.len() as u64;
            assert!(run(compressed, Until::Bytes(len)).unwrap() == rest);
            assert!(run(compressed, Until::Bytes(len / 2)).unwrap() == rest[..rest.len() / 2]);
            assert!(run(compressed, Until::End { limit: len }).unwrap() == rest);
            assert!(run(&[], Until::Bytes(0)).unwrap().is_empty());
            for (compressed, until, kind) in [
                (compressed, Until::Bytes(len + 1), ErrorKind::Corrupt),
                (compressed, Until::End { limit: len - 1 }, ErrorKind::TooLarge),
                (&compressed[..compressed.len() - 1], Until::End { limit: len }, ErrorKind::Corrupt),
                (&compressed[..compressed.len() - 8], Until::End { limit: len }, ErrorKind::Corrupt),
                (&compressed[..compressed.len() / 2], Until::Bytes(len), ErrorKind::Corrupt),
                (&compressed[..1], Until::Bytes(len), ErrorKind::Corrupt),
                (&[][..], Until::Bytes(1), ErrorKind::Corrupt),
            ] {
                assert_eq!(run(compressed, until).unwrap_err().kind(), kind, "{until:?}");
            }
        }
    }
}

#[test]
fn header_with_everything() {
    let mut encoder = flate2::GzBuilder::new()
        .filename("name")
        .comment("comment")
        .extra(vec![1, 2, 3])
        .write(Vec::new(), flate2::Compression::new(6));
    encoder.write_all(b"data").unwrap();
    let layer = encoder.finish().unwrap();
    let len = 10 + 2 + 3 + 5 + 8;
    assert_eq!(header::parse(&layer).unwrap(), len);
    for piece in 1..=layer.len() {
        let (found, output) = scan(&layer, 100, piece);
        assert_eq!(found[0].0, Checkpoint { input: len as u64, output: 0, bits: 0 });
        assert_eq!((found.len(), output.as_slice()), (1, &b"data"[..]));
    }
}
