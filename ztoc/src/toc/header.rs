//! One header block: which dialect it is, and its fields.

use super::{EntryKind, FileEntry, MTime};
use crate::error::Error;

/// What a header announces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Entry(EntryKind),
    /// Type NUL: a file, or a directory if the name says so.
    OldRegular,
    Pax,
    LongName,
    LongLink,
}

impl Kind {
    /// Whether bytes of the header's size follow.
    pub(super) fn has_data(self) -> bool {
        !matches!(self, Kind::Entry(kind) if kind != EntryKind::Regular)
    }
}

#[derive(PartialEq, Eq)]
enum Dialect {
    V7,
    Ustar,
    Star,
    Gnu,
}

/// The fields of a header block.
pub(super) struct Header {
    typeflag: u8,
    name: Vec<u8>,
    link: Vec<u8>,
    pub(super) size: i64,
    mode: i64,
    uid: i64,
    gid: i64,
    mtime: i64,
    uname: Vec<u8>,
    gname: Vec<u8>,
    device: (i64, i64),
}

impl Header {
    pub(super) fn parse(block: &[u8; 512]) -> Result<Header, Error> {
        let bad = || Error::corrupt("read tar header: bad number");
        let dialect = dialect(block).ok_or_else(|| Error::corrupt("read tar header: wrong checksum"))?;
        let mut header = Header {
            typeflag: block[156],
            name: text(&block[..100]).to_vec(),
            link: text(&block[157..257]).to_vec(),
            size: number(&block[124..136]).ok_or_else(bad)?,
            mode: number(&block[100..108]).ok_or_else(bad)?,
            uid: number(&block[108..116]).ok_or_else(bad)?,
            gid: number(&block[116..124]).ok_or_else(bad)?,
            mtime: number(&block[136..148]).ok_or_else(bad)?,
            uname: Vec::new(),
            gname: Vec::new(),
            device: (0, 0),
        };
        if dialect == Dialect::V7 {
            return Ok(header);
        }
        header.uname = text(&block[265..297]).to_vec();
        header.gname = text(&block[297..329]).to_vec();
        header.device =
            (number(&block[329..337]).ok_or_else(bad)?, number(&block[337..345]).ok_or_else(bad)?);
        let prefix = match dialect {
            Dialect::V7 => &[],
            Dialect::Ustar => text(&block[345..500]),
            Dialect::Star => {
                // access and change times: not kept, but they have to be numbers
                number(&block[476..488]).ok_or_else(bad)?;
                number(&block[488..500]).ok_or_else(bad)?;
                text(&block[345..476])
            }
            Dialect::Gnu => gnu_prefix(block),
        };
        if !prefix.is_empty() {
            header.name = [prefix, b"/", &header.name].concat();
        }
        Ok(header)
    }

    pub(super) fn kind(&self) -> Result<Kind, Error> {
        Ok(match self.typeflag {
            b'0' => Kind::Entry(EntryKind::Regular),
            0 => Kind::OldRegular,
            b'1' => Kind::Entry(EntryKind::HardLink),
            b'2' => Kind::Entry(EntryKind::Symlink),
            b'3' => Kind::Entry(EntryKind::CharDevice),
            b'4' => Kind::Entry(EntryKind::BlockDevice),
            b'5' => Kind::Entry(EntryKind::Directory),
            b'6' => Kind::Entry(EntryKind::Fifo),
            b'x' => Kind::Pax,
            b'L' => Kind::LongName,
            b'K' => Kind::LongLink,
            other => {
                let flag = other.escape_ascii();
                return Err(Error::unsupported(format!("read tar header: unsupported type '{flag}'")));
            }
        })
    }

    pub(super) fn into_entry(self, header: u64, offset: u64) -> FileEntry {
        FileEntry {
            name: self.name,
            // the caller knows better when the type is NUL
            kind: EntryKind::Regular,
            header,
            offset,
            size: self.size,
            link: self.link,
            mode: self.mode,
            // a ztoc keeps the low 32 bits
            uid: self.uid.cast_unsigned() as u32,
            gid: self.gid.cast_unsigned() as u32,
            uname: self.uname,
            gname: self.gname,
            mtime: MTime { seconds: self.mtime, nanoseconds: 0 },
            device: self.device,
            pax: Vec::new(),
            holes: false,
        }
    }
}

/// The dialect, if the checksum holds, as a sum of unsigned or (Sun's tar) of signed bytes.
fn dialect(block: &[u8; 512]) -> Option<Dialect> {
    let stated = octal(&block[148..156])?;
    let summed = |at: usize, byte: u8| if (148..156).contains(&at) { b' ' } else { byte };
    let unsigned: i64 = block.iter().enumerate().map(|(at, byte)| i64::from(summed(at, *byte))).sum();
    let signed: i64 =
        block.iter().enumerate().map(|(at, byte)| i64::from(summed(at, *byte).cast_signed())).sum();
    if stated != unsigned && stated != signed {
        return None;
    }
    Some(match &block[257..265] {
        [b'u', b's', b't', b'a', b'r', 0, ..] if block[508..] == *b"tar\0" => Dialect::Star,
        [b'u', b's', b't', b'a', b'r', 0, ..] => Dialect::Ustar,
        b"ustar  \0" => Dialect::Gnu,
        _ => Dialect::V7,
    })
}

/// GNU headers have times where USTAR has the prefix. Early Go versions wrote a prefix there anyway: when the
/// times are no numbers and the field is ASCII, it is one.
fn gnu_prefix(block: &[u8; 512]) -> &[u8] {
    let is_time = |field: &[u8]| field[0] == 0 || number(field).is_some();
    if is_time(&block[345..357]) && is_time(&block[357..369]) {
        return &[];
    }
    let prefix = text(&block[345..500]);
    if prefix.is_ascii() { prefix } else { &[] }
}

/// A text field: ends at the first NUL.
pub(super) fn text(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// A number: big-endian two's complement when the first bit is set (it does not count), else octal.
fn number(field: &[u8]) -> Option<i64> {
    let Some((first, rest)) = field.split_first().filter(|(first, _)| *first & 0x80 != 0) else {
        return octal(field);
    };
    // a negative number is read as its complement
    let negative = first & 0x40 != 0;
    let inverted = if negative { 0xff } else { 0 };
    let mut value = u64::from((first ^ inverted) & 0x7f);
    for byte in rest {
        if value >> 56 != 0 {
            return None;
        }
        value = value << 8 | u64::from(byte ^ inverted);
    }
    let value = i64::try_from(value).ok()?;
    Some(if negative { !value } else { value })
}

/// Octal digits with spaces and NULs around them; nothing at all is 0.
fn octal(field: &[u8]) -> Option<i64> {
    let blank = |byte: &u8| matches!(byte, b' ' | 0);
    let Some(start) = field.iter().position(|byte| !blank(byte)) else { return Some(0) };
    let end = field.iter().rposition(|byte| !blank(byte)).map_or(field.len(), |last| last + 1);
    let mut value: u64 = 0;
    for byte in text(&field[start..end]) {
        if !matches!(byte, b'0'..=b'7') || value >> 61 != 0 {
            return None;
        }
        value = value << 3 | u64::from(byte - b'0');
    }
    Some(value.cast_signed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        for (field, expected) in [
            (&b"0000644\0"[..], Some(0o644)),
            (b"   644 \0", Some(0o644)),
            (b"\0\0 7\0 \0\0", Some(7)),
            (b"\0\0\0\0\0\0\0\0", Some(0)),
            (b"        ", Some(0)),
            (b"12\x0034\0\0\0", Some(0o12)),
            (b"0000648\0", None),
            (b"-0000644", None),
            (b"7777777777777777777777", None),
            (b"\x80\0\0\0\0\0\0\x10", Some(16)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff", Some(-1)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xfe", Some(-2)),
            (b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff", Some(i64::MAX)),
            (b"\x80\0\0\0\x80\0\0\0\0\0\0\0", None),
            (b"\xff\xff\xff\xff\x80\0\0\0\0\0\0\0", Some(i64::MIN)),
            (b"\x80\0\0\x01\0\0\0\0\0\0\0\0", None),
        ] {
            assert_eq!(number(field), expected, "{}", field.escape_ascii());
        }
    }
}
