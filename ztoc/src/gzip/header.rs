//! The header of a gzip member, as RFC 1952 has it: a pure parser. It checks the bytes in front of a layer's first span,
//! which no span digest covers.

use crate::error::Error;

/// The length of the gzip header at the front of `bytes`; an error when there is none, or not all of it.
pub(crate) fn parse(bytes: &[u8]) -> Result<usize, Error> {
    parse_header(bytes).ok_or_else(|| Error::corrupt("read gzip header: not a complete header"))
}

fn parse_header(bytes: &[u8]) -> Option<usize> {
    const CRC: u8 = 2;
    const EXTRA: u8 = 4;
    const NAME: u8 = 8;
    const COMMENT: u8 = 16;
    const RESERVED: u8 = 0xe0;

    let fixed = bytes.first_chunk::<10>()?;
    let flags = fixed[3];
    if fixed[..3] != [0x1f, 0x8b, 8] || flags & RESERVED != 0 {
        return None;
    }
    let mut at = 10;
    if flags & EXTRA != 0 {
        let len = bytes.get(at..)?.first_chunk::<2>()?;
        at += 2 + usize::from(u16::from_le_bytes(*len));
    }
    for text in [NAME, COMMENT] {
        if flags & text != 0 {
            at += bytes.get(at..)?.iter().position(|byte| *byte == 0)? + 1;
        }
    }
    if flags & CRC != 0 {
        at += 2;
    }
    (at <= bytes.len()).then_some(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(bytes: &[u8], expected: Option<usize>) {
        assert_eq!(parse(bytes).ok(), expected, "{bytes:?}");
    }

    #[test]
    fn headers_long_and_short() {
        let fixed = |flags: u8| vec![0x1f, 0x8b, 8, flags, 0, 0, 0, 0, 0, 0xff];
        check(&fixed(0), Some(10));
        check(&fixed(0)[..9], None);
        check(&[fixed(0), vec![1, 2, 3]].concat(), Some(10));
        check(&[fixed(8), b"name\0".to_vec()].concat(), Some(15));
        check(&[fixed(8), b"name".to_vec()].concat(), None);
        check(&[fixed(8 | 16), b"n\0c\0".to_vec()].concat(), Some(14));
        check(&[fixed(4), vec![3, 0, 1, 2, 3]].concat(), Some(15));
        check(&[fixed(4), vec![3, 0, 1, 2]].concat(), None);
        check(&[fixed(4 | 8 | 16 | 2), vec![1, 0, 9], b"n\0c\0".to_vec(), vec![0, 0]].concat(), Some(19));
        check(&[fixed(2), vec![0]].concat(), None);
        check(&fixed(0x20), None);
        check(&[0x1f, 0x8b, 7, 0, 0, 0, 0, 0, 0, 0], None);
        check(&[], None);
    }
}
