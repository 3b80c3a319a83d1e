//! PAX extended header records (POSIX.1-2024, pax, "pax Extended Header").
//!
//! The tar crate's reader splits records at newlines, so it loses binary values that contain one, as extended
//! attributes may; this one uses the length that each record states.

use super::EntryError;
use crate::meta::Time;

/// A record: key and value. An empty value unsets what a global or ustar header said.
pub type Record<'a> = (&'a [u8], &'a [u8]);

/// An extended attribute's name and value.
pub type Xattr = (Vec<u8>, Vec<u8>);

/// Splits the records of an extended header.
pub fn records(mut bytes: &[u8]) -> Result<Vec<Record<'_>>, EntryError> {
    let mut all = Vec::new();
    while !bytes.is_empty() {
        let (record, rest) = split_record(bytes).ok_or(EntryError::Pax)?;
        all.push(record);
        bytes = rest;
    }
    Ok(all)
}

fn split_record(bytes: &[u8]) -> Option<(Record<'_>, &[u8])> {
    let space = bytes.iter().take(21).position(|b| *b == b' ')?;
    let length: usize = number(&bytes[..space])?.try_into().ok()?;
    let record = bytes.get(space + 1..length)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|b| *b == b'=').filter(|at| *at > 0)?;
    Some(((&record[..equals], &record[equals + 1..]), &bytes[length..]))
}

/// Parses an unsigned decimal number.
pub fn number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    str::from_utf8(digits).ok()?.parse().ok()
}

/// Parses a PAX time: decimal seconds, possibly negative, possibly with a fraction, which is truncated to nanoseconds.
/// The fraction of a negative time counts away from zero, as in Go's archive/tar: -1.25 is 1.25 s before the epoch.
pub fn time(text: &[u8]) -> Option<Time> {
    let (negative, digits) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (whole, fraction) = match digits.iter().position(|b| *b == b'.') {
        Some(dot) => (&digits[..dot], &digits[dot + 1..]),
        None => (digits, &b""[..]),
    };
    if !fraction.iter().all(u8::is_ascii_digit) || (whole.is_empty() && fraction.is_empty()) {
        return None;
    }
    let sec = if whole.is_empty() { 0 } else { i64::try_from(number(whole)?).ok()? };
    let nsec = (0..9).fold(0, |n, i| n * 10 + fraction.get(i).map_or(0, |d| u32::from(d - b'0')));
    Some(match (negative, nsec) {
        (false, _) => Time { sec, nsec },
        (true, 0) => Time { sec: -sec, nsec: 0 },
        (true, _) => Time { sec: -sec - 1, nsec: 1_000_000_000 - nsec },
    })
}

/// Parses an extended attribute, if the record is one: `SCHILY.xattr.NAME` has the value as it is,
/// `LIBARCHIVE.xattr.NAME` has the name URL-encoded and the value in base64. No other record is an attribute.
pub fn xattr(record: Record<'_>) -> Option<Result<Xattr, EntryError>> {
    let (key, value) = record;
    if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
        return Some(Ok((name.to_vec(), value.to_vec())));
    }
    let name = key.strip_prefix(b"LIBARCHIVE.xattr.")?;
    let decoded = url_decode(name).zip(base64_decode(value));
    Some(decoded.ok_or(EntryError::Xattr("a LIBARCHIVE.xattr record is malformed")))
}

fn url_decode(text: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, tail)) = rest.split_first() {
        rest = tail;
        if *first != b'%' {
            out.push(*first);
            continue;
        }
        let (hex, tail) = rest.split_at_checked(2)?;
        out.push(u8::from_str_radix(str::from_utf8(hex).ok()?, 16).ok()?);
        rest = tail;
    }
    Some(out)
}

fn base64_decode(text: &[u8]) -> Option<Vec<u8>> {
    let digits = text.iter().rposition(|b| *b != b'=').map_or(&text[..0], |last| &text[..=last]);
    let mut out = Vec::with_capacity(digits.len() * 3 / 4);
    let mut bits = 0u32;
    let mut held = 0;
    for digit in digits {
        let value = match digit {
            b'A'..=b'Z' => digit - b'A',
            b'a'..=b'z' => digit - b'a' + 26,
            b'0'..=b'9' => digit - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = (bits << 6) | u32::from(value);
        held += 6;
        if held >= 8 {
            held -= 8;
            out.push((bits >> held) as u8);
        }
    }
    (digits.len() % 4 != 1).then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_ends_where_its_length_says() {
        let bytes = b"11 path=a/b\n18 SCHILY.x=a\n=\0b\n";
        assert!(records(bytes).is_err(), "the first length is one short");
        let bytes = b"12 path=a/b\n18 SCHILY.x=a\n=\0b\n";
        assert_eq!(records(bytes).unwrap(), [(&b"path"[..], &b"a/b"[..]), (b"SCHILY.x", b"a\n=\0b")]);
        for bad in [
            &b"5 a=b"[..],
            b"6 a=b",
            b"6 a+b\n",
            b"99999999999999999999 a=b\n",
            b"6 =ab\n",
            b"x",
            b"0 a=b\n",
            b"-6 a=b\n",
        ] {
            assert!(records(bad).is_err(), "{}", bad.escape_ascii());
        }
    }

    #[test]
    fn signed_and_fractional_times_are_parsed() {
        let at = |text: &str| time(text.as_bytes()).map(|t| (t.sec, t.nsec));
        assert_eq!(at("0"), Some((0, 0)));
        assert_eq!(at("1350244992.023960108"), Some((1_350_244_992, 23_960_108)));
        assert_eq!(at("1.5"), Some((1, 500_000_000)));
        assert_eq!(at("1.0000000019"), Some((1, 1)));
        assert_eq!(at("-1"), Some((-1, 0)));
        assert_eq!(at("-1.25"), Some((-2, 750_000_000)));
        assert_eq!(at("-0.5"), Some((-1, 500_000_000)));
        assert_eq!(at("7258118400"), Some((7_258_118_400, 0)));
        for bad in ["", ".", "-", "1.x", "+1", "1e9", "99999999999999999999"] {
            assert_eq!(at(bad), None, "{bad}");
        }
    }

    #[test]
    fn only_xattr_records_are_attributes() {
        let one = |k: &str, v: &[u8]| xattr((k.as_bytes(), v)).map(|r| r.ok());
        assert_eq!(one("SCHILY.xattr.user.a", b"\0\n"), Some(Some((b"user.a".to_vec(), b"\0\n".to_vec()))));
        assert_eq!(
            one("LIBARCHIVE.xattr.user.a%3Db", b"AAEC/w=="),
            Some(Some((b"user.a=b".to_vec(), vec![0, 1, 2, 255])))
        );
        assert_eq!(one("LIBARCHIVE.xattr.user.a", b"A"), Some(None));
        assert_eq!(one("LIBARCHIVE.xattr.user.%4", b""), Some(None));
        assert_eq!(one("SCHILY.acl.access", b"x"), None);
        assert_eq!(one("comment", b"x"), None);
    }
}
