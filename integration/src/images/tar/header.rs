//! One entry's blocks: what must come before its header, the header, the content.

use super::{Dialect, Entry, Kind};

pub(super) const BLOCK: usize = 512;
const NAME_BYTES: usize = 100;

/// What a header says, already in its own words.
struct Fields<'a> {
    name: &'a [u8],
    link: &'a [u8],
    flag: u8,
    size: u64,
    mode: u32,
    uid: u64,
    gid: u64,
    mtime: i64,
    device: (u32, u32),
}

pub(super) fn write(out: &mut Vec<u8>, entry: &Entry, dialect: Dialect) {
    let mut name = entry.path.clone();
    if entry.kind == Kind::Directory && !name.ends_with(b"/") {
        name.push(b'/');
    }
    let (flag, link, content, device): (u8, &[u8], &[u8], (u32, u32)) = match &entry.kind {
        Kind::File(content) => (b'0', b"", content, (0, 0)),
        Kind::HardLink(target) => (b'1', target, b"", (0, 0)),
        Kind::Symlink(target) => (b'2', target, b"", (0, 0)),
        Kind::Character(major, minor) => (b'3', b"", b"", (*major, *minor)),
        Kind::Block(major, minor) => (b'4', b"", b"", (*major, *minor)),
        Kind::Directory => (b'5', b"", b"", (0, 0)),
        Kind::Fifo => (b'6', b"", b"", (0, 0)),
    };
    let fields = Fields {
        name: &name,
        link,
        flag,
        size: content.len() as u64,
        mode: entry.mode,
        uid: entry.uid.into(),
        gid: entry.gid.into(),
        mtime: entry.mtime.0,
        device,
    };
    let records = records(entry, &fields, dialect);
    if !records.is_empty() {
        special(out, b'x', b"PaxHeaders/entry", &records, dialect);
    }
    if dialect == Dialect::Gnu {
        for (flag, text) in [(b'K', link), (b'L', fields.name)] {
            if text.len() > NAME_BYTES {
                special(out, flag, b"././@LongLink", &[text, b"\0"].concat(), dialect);
            }
        }
    }
    header(out, &fields, dialect);
    padded(out, content);
}

/// The PAX records that an entry needs.
fn records(entry: &Entry, fields: &Fields<'_>, dialect: Dialect) -> Vec<u8> {
    let mut records = Vec::new();
    let (seconds, nanoseconds) = entry.mtime;
    if nanoseconds != 0 {
        record(&mut records, b"mtime", decimal(seconds, nanoseconds).as_bytes());
    } else if dialect == Dialect::Pax && seconds < 0 {
        record(&mut records, b"mtime", seconds.to_string().as_bytes());
    }
    if dialect == Dialect::Pax {
        if fields.name.len() > NAME_BYTES {
            record(&mut records, b"path", fields.name);
        }
        if fields.link.len() > NAME_BYTES {
            record(&mut records, b"linkpath", fields.link);
        }
        for (key, value) in [(&b"uid"[..], fields.uid), (b"gid", fields.gid)] {
            if value > 0o7_777_777 {
                record(&mut records, key, value.to_string().as_bytes());
            }
        }
    }
    for (name, value) in &entry.xattrs {
        record(&mut records, &[b"SCHILY.xattr.", name.as_slice()].concat(), value);
    }
    records
}

/// `-2 s + 500 000 000 ns` is `-1.5`.
fn decimal(seconds: i64, nanoseconds: u32) -> String {
    if seconds >= 0 {
        return format!("{seconds}.{nanoseconds:09}");
    }
    format!("-{}.{:09}", (seconds + 1).unsigned_abs(), 1_000_000_000 - nanoseconds)
}

/// `LENGTH KEY=VALUE\n`, where the length counts itself.
fn record(records: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while rest + length.to_string().len() != length {
        length = rest + length.to_string().len();
    }
    records.extend(format!("{length} ").into_bytes());
    records.extend([key, b"=", value, b"\n"].concat());
}

/// An entry that speaks of the next one.
fn special(out: &mut Vec<u8>, flag: u8, name: &[u8], content: &[u8], dialect: Dialect) {
    let size = content.len() as u64;
    let fields =
        Fields { name, link: b"", flag, size, mode: 0o644, uid: 0, gid: 0, mtime: 0, device: (0, 0) };
    header(out, &fields, dialect);
    padded(out, content);
}

fn header(out: &mut Vec<u8>, fields: &Fields<'_>, dialect: Dialect) {
    let mut block = [0; BLOCK];
    let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &fields.name[..fields.name.len().min(NAME_BYTES)]);
    put(100, &number(fields.mode.into(), 8, dialect));
    put(108, &number(fields.uid.cast_signed(), 8, dialect));
    put(116, &number(fields.gid.cast_signed(), 8, dialect));
    put(124, &number(fields.size.cast_signed(), 12, dialect));
    put(136, &number(fields.mtime, 12, dialect));
    put(148, b"        ");
    put(156, &[fields.flag]);
    put(157, &fields.link[..fields.link.len().min(NAME_BYTES)]);
    put(257, if dialect == Dialect::Gnu { b"ustar  \0" } else { b"ustar\x0000" });
    if matches!(fields.flag, b'3' | b'4') {
        put(329, &number(fields.device.0.into(), 8, dialect));
        put(337, &number(fields.device.1.into(), 8, dialect));
    }
    let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    out.extend(block);
}

/// Octal; what does not fit is base-256 in GNU's dialect, and 0 in the other, where a record has it.
fn number(value: i64, width: usize, dialect: Dialect) -> Vec<u8> {
    let digits = width - 1;
    if value >= 0 && value < 1 << (3 * digits) {
        return format!("{value:0digits$o}\0").into_bytes();
    }
    match dialect {
        Dialect::Pax => number(0, width, dialect),
        Dialect::Gnu => {
            let mut bytes = [if value < 0 { 0xff } else { 0 }; 16];
            bytes[8..].copy_from_slice(&value.to_be_bytes());
            let mut field = bytes[16 - width..].to_vec();
            field[0] |= 0x80;
            field
        }
    }
}

fn padded(out: &mut Vec<u8>, content: &[u8]) {
    out.extend(content);
    out.resize(out.len().next_multiple_of(BLOCK), 0);
}
