//! A layer's bytes in, its ztoc out, in one pass over them.
//!
//! `Builder` is pushed the compressed bytes in pieces of any size, as they come from a network or a file.
//! As they go by it takes the layer's digest, every span's digest, the diff ID, the checkpoints and the tar
//! headers, and hands the uncompressed bytes on to a sink. It keeps the checkpoints and the entries, nothing
//! else. The bytes of the ztoc are those the original tool makes of the same layer.
//!
//! A ztoc that a reader could not use, or would misread, is not built: see the refusals in `refuse`.

mod digests;

use std::io::{Read, Write};

use crate::codec::gzip_zinfo::Writer;
use crate::codec::tar_zinfo;
use crate::codec::ztoc::{Content, Row, VERSION, VTABLES, encode, encoded_len};
use crate::error::{Error, ErrorKind};
use crate::gzip::{Checkpoint, Scanner, Step};
use crate::toc::{Collected, TarReader, XATTR_PREFIX};
use crate::uncompressed;
use crate::units::UncompressedOffset;
use crate::zinfo::{Compression, MAX_OFFSET};
use crate::ztoc::{MAX_ZTOC_BYTES, Ztoc};
use digests::Digests;

/// The span size the original tool uses: 4 MiB.
pub const DEFAULT_SPAN_SIZE: u64 = 4 << 20;

/// What the original tool calls itself in a ztoc. It is part of the digest, and has been this for years.
pub const DEFAULT_BUILD_TOOL: &str = "AWS SOCI CLI v0.2";

/// How to build a ztoc. Together with the layer it decides every byte.
#[derive(Clone, Debug)]
pub struct Options {
    /// Uncompressed bytes of a span, at least 1.
    pub span_size: u64,
    /// The name of the tool, as the ztoc states it.
    pub build_tool: String,
    /// Part of no byte of the ztoc.
    pub whole: Whole,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            span_size: DEFAULT_SPAN_SIZE,
            build_tool: DEFAULT_BUILD_TOOL.to_owned(),
            whole: Whole::Hashed,
        }
    }
}

/// Whether digests are taken of the layer as a whole, besides those of its spans. They cost a third of the building;
/// a caller that knows the layer's digest by other means, and does not want its diff ID, saves them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whole {
    Hashed,
    Ignored,
}

/// A ztoc, and what was learnt on the way.
#[derive(Clone, Debug)]
pub struct Built {
    /// The ztoc's bytes; [`Ztoc::from_vec`] opens them.
    pub ztoc: Vec<u8>,
    /// The digests of the layer as a whole, if they were asked for.
    pub whole: Option<WholeDigests>,
    /// The length of the layer as it came, in bytes.
    pub compressed_size: u64,
    /// The length of the layer inflated, padding included, in bytes; may exceed [`Ztoc::uncompressed_size`].
    pub uncompressed_len: u64,
    /// Whether any member has extended attributes.
    pub has_xattrs: bool,
    /// Whether any member marks its directory as opaque.
    pub has_opaque: bool,
}

/// SHA-256 of a layer as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WholeDigests {
    /// Of the layer as it came.
    pub layer: [u8; 32],
    /// Of the layer inflated, padding included.
    pub diff_id: [u8; 32],
}

/// Builds a ztoc from a layer's bytes.
pub fn build(mut reader: impl Read, compression: Compression, options: &Options) -> Result<Built, Error> {
    // fewer calls than a usual 8 KiB buffer would make
    const READ: usize = 256 * 1024;
    let mut builder = Builder::new(compression, options)?;
    let mut buffer = vec![0; READ];
    let mut sink = std::io::sink();
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => return builder.finish(&mut sink),
            Ok(len) => builder.push(&buffer[..len], &mut sink)?,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Error::io("read layer", error)),
        }
    }
}

/// Builds one ztoc. After an error it is spent: more pushes give errors or nonsense, and no panic.
pub struct Builder {
    options: Options,
    compressed_size: u64,
    source: Source,
    digests: Digests,
    output: Output,
}

enum Source {
    Gzip {
        scanner: Scanner,
        checkpoints: Writer,
    },
    /// How much of the open span is still to come.
    Plain {
        left: u64,
    },
}

impl Builder {
    /// A builder for one layer.
    pub fn new(compression: Compression, options: &Options) -> Result<Builder, Error> {
        Builder::with_limit(compression, options, MAX_ZTOC_BYTES)
    }

    /// A builder whose ztoc may have so many bytes.
    fn with_limit(compression: Compression, options: &Options, limit: u64) -> Result<Builder, Error> {
        if options.span_size == 0 || options.span_size > MAX_OFFSET {
            return Err(Error::unsupported("build ztoc: a span size of 0, or beyond any layer"));
        }
        let source = match compression {
            Compression::Gzip => {
                Source::Gzip { scanner: Scanner::new(options.span_size), checkpoints: Writer::new() }
            }
            Compression::Uncompressed => Source::Plain { left: 0 },
        };
        Ok(Builder {
            options: options.clone(),
            compressed_size: 0,
            source,
            digests: Digests::new(options.whole),
            output: Output::new(limit),
        })
    }

    /// Goes on with the next bytes of the layer. Every uncompressed byte that they come to is written to
    /// `sink`, in order; `io::sink()` where they are not wanted.
    pub fn push(&mut self, compressed: &[u8], sink: &mut dyn Write) -> Result<(), Error> {
        match &mut self.source {
            Source::Plain { left } => {
                cut_plain(&mut self.digests, compressed, left, self.options.span_size);
                self.output.push(compressed, sink)?;
                let spans = self.compressed_size / self.options.span_size;
                self.output.check_len(spans.saturating_mul(ENCODED_DIGEST))?;
            }
            Source::Gzip { scanner, checkpoints } => {
                let mut input = compressed;
                let mut hashed = 0;
                loop {
                    match scanner.advance(&mut input)? {
                        Step::BufferFull => {
                            self.output.push(scanner.take_output(), sink)?;
                            scanner.exchange(|full| self.digests.output(full, Scanner::OUTPUT_START));
                        }
                        Step::NeedsInput => break,
                        Step::Checkpoint(checkpoint) => {
                            let here = compressed.len() - input.len();
                            self.digests.compressed(&compressed[hashed..here]);
                            self.digests.cut(checkpoint.bits != 0);
                            hashed = here;
                            check_first(checkpoints.count(), checkpoint)?;
                            checkpoints.push(checkpoint, scanner.window());
                            self.output.check_len(checkpoints.len() as u64)?;
                        }
                    }
                }
                self.digests.compressed(&compressed[hashed..]);
                self.output.push(scanner.take_output(), sink)?;
            }
        }
        self.compressed_size += compressed.len() as u64;
        Ok(())
    }

    /// Ends the layer and makes its ztoc.
    pub fn finish(self, sink: &mut dyn Write) -> Result<Built, Error> {
        let span_size = self.options.span_size;
        let (compression, checkpoints, taken) = match self.source {
            Source::Gzip { scanner, checkpoints } => {
                scanner.finish()?;
                let taken = self.digests.finish(scanner.output());
                (Compression::Gzip, checkpoints.finish(span_size), taken)
            }
            Source::Plain { .. } => {
                uncompressed::spans(self.compressed_size, span_size)
                    .ok_or_else(|| Error::too_large("build ztoc: too many spans"))?;
                let zinfo = tar_zinfo::encode(signed(span_size), signed(self.compressed_size));
                (Compression::Uncompressed, zinfo.into(), self.digests.finish(&[]))
            }
        };
        sink.flush().map_err(|error| Error::io("write inflated layer", error))?;
        let digests = taken.spans;
        let uncompressed_size = self.output.tar.finish()?;
        let content = Content {
            version: VERSION,
            build_tool: self.options.build_tool.as_bytes(),
            compressed_size: signed(self.compressed_size),
            uncompressed_size: signed(uncompressed_size),
            compression,
            max_span_id: i32::try_from(digests.len())
                .map_err(|_| Error::too_large("build ztoc: too many spans"))?
                - 1,
            digests: &digests,
            checkpoints,
        };
        let checkpoints = content.checkpoints.len() as u64;
        let fixed = VTABLES + content.build_tool.len() as u64 + ENCODED_DIGEST * digests.len() as u64;
        self.output.check_len(checkpoints + fixed)?;
        let capacity = self.output.encoded_len + checkpoints + fixed;
        let entries = self.output.entries;
        let headers: Vec<u64> = entries.headers().collect();
        if let Some(name) = entries.holes() {
            let name = name.escape_ascii();
            return Err(Error::unsupported(format!("build ztoc: {name} is a sparse file with holes")));
        }
        let rows = |each: &mut dyn FnMut(&Row<'_>)| {
            entries.drain_backwards(|entry| each(&Row::of(entry)));
        };
        let bytes = encode(content, rows, usize::try_from(capacity).unwrap_or(0));
        let ztoc = refuse(bytes, &headers)?;
        Ok(Built {
            ztoc,
            whole: taken.whole,
            compressed_size: self.compressed_size,
            uncompressed_len: self.output.len,
            has_xattrs: self.output.has_xattrs,
            has_opaque: self.output.has_opaque,
        })
    }
}

impl std::fmt::Debug for Builder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Builder")
            .field("options", &self.options)
            .field("compressed_size", &self.compressed_size)
            .field("entries", &self.output.entries.len())
            .finish_non_exhaustive()
    }
}

/// The bytes of a ztoc that a span digest takes: a string of 71 characters and its place in a vector.
const ENCODED_DIGEST: u64 = 80;

/// Cuts a layer that is not compressed into spans, each with its first byte.
fn cut_plain(digests: &mut Digests, mut bytes: &[u8], left: &mut u64, span_size: u64) {
    while !bytes.is_empty() {
        if *left == 0 {
            digests.cut(false);
            *left = span_size;
        }
        let len = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
        digests.compressed(&bytes[..len]);
        *left -= len as u64;
        bytes = &bytes[len..];
    }
}

/// Layers and ztocs are shorter than 2^63 bytes: no stream is longer.
fn signed(size: u64) -> i64 {
    i64::try_from(size).unwrap_or(i64::MAX)
}

/// While nothing has been inflated every block end is a checkpoint. A layer with two of them (it begins with
/// an empty block, or an empty member) has a span of no bytes, and no reader accepts that; a layer of nothing
/// but empty blocks would also make a ztoc many times its size.
fn check_first(count: i32, checkpoint: Checkpoint) -> Result<(), Error> {
    if count > 0 && checkpoint.output == 0 {
        return Err(Error::unsupported("build ztoc: the layer begins with an empty deflate block"));
    }
    Ok(())
}

/// Opens the ztoc as a reader would, and refuses what a reader would refuse: hard links or directories that
/// claim a size and so reach into the next member, hard links to other layers. Then what it would misread: entries
/// whose headers are not where a reader will look for them; they are at `headers`.
fn refuse(bytes: Vec<u8>, headers: &[u64]) -> Result<Vec<u8>, Error> {
    let unusable = |error: Error| error.within(ErrorKind::Unsupported, "build ztoc: no reader could use it");
    // shared and taken back, so that it is not copied
    let shared = std::sync::Arc::new(bytes);
    let ztoc = Ztoc::open(shared.clone()).map_err(unusable)?;
    ztoc.check_hard_links().map_err(unusable)?;
    for (read, written) in ztoc.entries().zip(headers) {
        if read.header().start != UncompressedOffset(*written) {
            let name = read.name().escape_ascii();
            return Err(Error::unsupported(format!(
                "build ztoc: what precedes {name} has a size but no data"
            )));
        }
    }
    drop(ztoc);
    Ok(std::sync::Arc::try_unwrap(shared).unwrap_or_else(|shared| shared.to_vec()))
}

/// What becomes of the uncompressed bytes.
struct Output {
    len: u64,
    tar: TarReader,
    entries: Collected,
    /// At most how many bytes of a ztoc the entries become.
    encoded_len: u64,
    /// At most how many it may become.
    limit: u64,
    has_xattrs: bool,
    has_opaque: bool,
}

impl Output {
    fn new(limit: u64) -> Output {
        Output {
            len: 0,
            tar: TarReader::new(),
            entries: Collected::default(),
            encoded_len: 0,
            limit,
            has_xattrs: false,
            has_opaque: false,
        }
    }

    fn push(&mut self, bytes: &[u8], sink: &mut dyn Write) -> Result<(), Error> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.len += bytes.len() as u64;
        self.tar.push(bytes, &mut |entry| {
            self.encoded_len += encoded_len(&entry);
            self.has_xattrs |= entry.pax.iter().any(|record| record.key.starts_with(XATTR_PREFIX));
            self.has_opaque |= entry.name.ends_with(b".wh..wh..opq");
            self.entries.push(&entry);
            Ok(())
        })?;
        self.check_len(0)?;
        sink.write_all(bytes).map_err(|error| Error::io("write inflated layer", error))
    }

    /// Makes sure that the entries and `more` bytes fit into a ztoc.
    fn check_len(&self, more: u64) -> Result<(), Error> {
        if self.encoded_len.saturating_add(more) > self.limit {
            return Err(Error::too_large("build ztoc: larger than a ztoc can be"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
