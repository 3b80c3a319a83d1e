//! Maps of sparse files in tars: GNU's old format (type `S`) and PAX 0.0, 0.1 and 1.0 (GNU tar manual, "Storing Sparse
//! Files").

use super::index::Extent;
use super::pax::{self, Record};
use super::{EntryError, Limits};

/// A sparse file's size and its data extents: (offset in the file, length) pairs in the archive's order.
pub struct Map {
    /// The file's size.
    pub size: u64,
    /// The data extents.
    pub pieces: Vec<(u64, u64)>,
}

/// Where the map of a sparse file is, according to the PAX records of its entry.
pub enum Described {
    /// In the records (0.0 and 0.1).
    InRecords(Map),
    /// In a list before the data (1.0); the number is the file's size.
    InData(u64),
}

/// Reads the `GNU.sparse.*` records. `None` if the entry is not sparse.
pub fn described(records: &[Record<'_>], limits: &Limits) -> Result<Option<Described>, EntryError> {
    let find = |key: &[u8]| records.iter().rev().find(|r| r.0 == key).map(|r| r.1);
    let size_of = |key: &[u8]| {
        find(key).map(|v| pax::number(v).ok_or(EntryError::Sparse("its size is not a number"))).transpose()
    };
    if find(b"GNU.sparse.major") == Some(b"1") && find(b"GNU.sparse.minor") == Some(b"0") {
        let size = size_of(b"GNU.sparse.realsize")?.ok_or(EntryError::Sparse("its size is missing"))?;
        return Ok(Some(Described::InData(size)));
    }
    let Some(size) = size_of(b"GNU.sparse.size")? else {
        return Ok(None);
    };
    let numbers: Option<Vec<u64>> = match find(b"GNU.sparse.map") {
        Some(b"") => Some(Vec::new()),
        Some(map) => map.split(|b| *b == b',').map(pax::number).collect(),
        None => {
            let listed = |r: &&Record<'_>| r.0 == b"GNU.sparse.offset" || r.0 == b"GNU.sparse.numbytes";
            records.iter().filter(listed).map(|r| pax::number(r.1)).collect()
        }
    };
    let numbers = numbers.ok_or(EntryError::Sparse("its map has an invalid number"))?;
    Ok(Some(Described::InRecords(Map { size, pieces: pairs(&numbers, limits)? })))
}

/// Reads the list that precedes the data of a PAX 1.0 entry: lines of decimal numbers, the first their count. `more`
/// returns the next 512-byte block of the entry's data, `wrong` converts an [`EntryError`] to the caller's error.
pub fn listed<E>(
    size: u64,
    limits: &Limits,
    wrong: impl Fn(EntryError) -> E,
    mut more: impl FnMut() -> Result<[u8; 512], E>,
) -> Result<Map, E> {
    const BAD: EntryError = EntryError::Sparse("the map before its data is malformed");
    let mut numbers: Vec<u64> = Vec::new();
    let mut wanted = None;
    let mut line = Vec::new();
    loop {
        for byte in more()? {
            if byte != b'\n' {
                line.push(byte);
                if line.len() > 20 {
                    return Err(wrong(BAD));
                }
                continue;
            }
            let value = pax::number(&line).ok_or_else(|| wrong(BAD))?;
            line.clear();
            match wanted {
                None if value > limits.extents as u64 => return Err(wrong(EntryError::Extents(limits.extents))),
                None => wanted = Some(value * 2),
                Some(_) => numbers.push(value),
            }
            if wanted == Some(numbers.len() as u64) {
                return Ok(Map { size, pieces: pairs(&numbers, limits).map_err(wrong)? });
            }
        }
    }
}

fn pairs(numbers: &[u64], limits: &Limits) -> Result<Vec<(u64, u64)>, EntryError> {
    let (pairs, rest) = numbers.as_chunks::<2>();
    if !rest.is_empty() {
        return Err(EntryError::Sparse("an offset has no length"));
    }
    if pairs.len() > limits.extents {
        return Err(EntryError::Extents(limits.extents));
    }
    Ok(pairs.iter().map(|[offset, length]| (*offset, *length)).collect())
}

/// Converts a map to extents of the tar: the data begins at `data` in the tar and is `stored` bytes long. Fails if
/// extents overlap, are not ascending, exceed the file's size, or do not add up to the data.
pub fn extents(map: &Map, data: u64, stored: u64) -> Result<Vec<Extent>, EntryError> {
    let mut all: Vec<Extent> = Vec::new();
    let mut end = 0;
    let mut used = 0u64;
    for (offset, length) in map.pieces.iter().copied() {
        if offset < end {
            return Err(EntryError::Sparse("its extents overlap or are not ascending"));
        }
        end = offset
            .checked_add(length)
            .filter(|end| *end <= map.size)
            .ok_or(EntryError::Sparse("an extent lies beyond the file's end"))?;
        if length == 0 {
            continue;
        }
        let at = data + used;
        used = used
            .checked_add(length)
            .filter(|used| *used <= stored)
            .ok_or(EntryError::Sparse("it has more data than the entry"))?;
        match all.last_mut() {
            Some(last) if last.logical.get() + last.len.get() == offset => last.len = (last.len.get() + length).into(),
            _ => all.push(Extent { logical: offset.into(), offset: at.into(), len: length.into() }),
        }
    }
    if used != stored {
        return Err(EntryError::Sparse("it has less data than the entry"));
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn laid_out(size: u64, pieces: &[(u64, u64)], stored: u64) -> Result<Vec<(u64, u64, u64)>, String> {
        let map = Map { size, pieces: pieces.to_vec() };
        let all = extents(&map, 1024, stored).map_err(|e| e.to_string())?;
        Ok(all.iter().map(|e| (e.logical.get(), e.offset.get(), e.len.get())).collect())
    }

    #[test]
    fn map_entries_become_extents() {
        let (two, merged) = (vec![(0, 1024, 10), (100, 1034, 5)], vec![(8, 1024, 8)]);
        assert_eq!(laid_out(200, &[(0, 10), (100, 5), (200, 0)], 15), Ok(two));
        assert_eq!(laid_out(16, &[(8, 4), (12, 4)], 8), Ok(merged));
        assert_eq!(laid_out(1 << 40, &[], 0), Ok(vec![]));
    }

    #[test]
    fn inconsistent_maps_are_rejected() {
        for (size, pieces, stored) in [
            (10, &[(0, 11)][..], 11),
            (10, &[(4, 2), (0, 2)], 4),
            (10, &[(0, 4), (2, 4)], 8),
            (10, &[(0, 4)], 5),
            (10, &[(0, 4)], 3),
            (u64::MAX, &[(u64::MAX, 2)], 2),
        ] {
            assert!(laid_out(size, pieces, stored).is_err(), "{size} {pieces:?} {stored}");
        }
    }

    #[test]
    fn the_list_before_the_data_is_bounded() {
        let limits = Limits { extents: 2, ..Limits::default() };
        let read = |text: &str| {
            let mut block = [0; 512];
            block[..text.len()].copy_from_slice(text.as_bytes());
            let mut left = 2;
            listed(
                9,
                &limits,
                |e| e,
                || {
                    left -= 1;
                    if left > 0 { Ok(block) } else { Err(EntryError::Sparse("end")) }
                },
            )
            .map(|m| m.pieces)
            .map_err(|e| e.to_string())
        };
        assert_eq!(read("2\n0\n1\n8\n1\n"), Ok(vec![(0, 1), (8, 1)]));
        assert_eq!(read("0\n"), Ok(vec![]));
        assert!(read("3\n").is_err_and(|e| e.contains("more than 2 extents")));
        assert!(read("x\n").is_err_and(|e| e.contains("malformed")));
        assert!(read("2\n0\n").is_err());
    }
}
