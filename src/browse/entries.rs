//! Directory listings sorted by name, walks over trees, and modes as text.

use crate::fs::{Attr, Fs, FsError};
use crate::meta::Kind;

/// A name in a directory.
pub struct Entry {
    /// The name, without its directory.
    pub name: Vec<u8>,
    /// The attributes of its inode.
    pub attr: Attr,
}

/// Returns the entries of a directory without `.` and `..`, sorted by the bytes of their names.
pub fn entries(fs: &Fs, dir: &Attr) -> Result<Vec<Entry>, FsError> {
    let mut found = Vec::new();
    fs.readdirplus(dir.ino, 0, |entry, attr| {
        if !matches!(entry.name, b"." | b"..") {
            found.push(Entry { name: entry.name.to_vec(), attr: *attr });
        }
        false
    })?;
    found.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

/// When a walk returns an object.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum When {
    /// Before anything below it.
    Before,
    /// A directory again, after everything below it.
    After,
}

/// An object that a walk has come to.
pub struct Visited {
    /// When.
    pub when: When,
    /// Its path, with the walk's own in front.
    pub path: Vec<u8>,
    /// Its attributes.
    pub attr: Attr,
    /// How many levels it is below the walk's beginning.
    pub depth: usize,
}

/// A walk over a tree, depth first, each directory's entries sorted by name. Symbolic links are not followed.
pub struct Walk<'a> {
    fs: &'a Fs,
    /// An explicit stack: a tree may be thousands of directories deep.
    todo: Vec<Visited>,
    /// The directory that has just been returned: it is entered next.
    entered: Option<(Vec<u8>, Attr, usize)>,
}

impl<'a> Walk<'a> {
    /// Begins at an object, whose path is `path` in what the walk returns.
    pub fn new(fs: &'a Fs, path: Vec<u8>, attr: Attr) -> Walk<'a> {
        Walk { fs, todo: vec![Visited { when: When::Before, path, attr, depth: 0 }], entered: None }
    }

    /// Leaves out what is below the directory that has just been returned. It is then not returned again.
    pub fn skip(&mut self) {
        self.entered = None;
    }

    /// Returns the next object.
    pub fn step(&mut self) -> Result<Option<Visited>, FsError> {
        if let Some((path, attr, depth)) = self.entered.take() {
            let below = entries(self.fs, &attr)?;
            let inside = |entry: Entry| Visited {
                when: When::Before,
                path: join(&path, &entry.name),
                attr: entry.attr,
                depth: depth + 1,
            };
            let below: Vec<Visited> = below.into_iter().rev().map(inside).collect();
            self.todo.push(Visited { when: When::After, path, attr, depth });
            self.todo.extend(below);
        }
        let next = self.todo.pop();
        if let Some(visited) = next.as_ref().filter(|next| next.when == When::Before && next.attr.kind == Kind::Dir) {
            self.entered = Some((visited.path.clone(), visited.attr, visited.depth));
        }
        Ok(next)
    }
}

/// Appends a name to a path.
pub fn join(path: &[u8], name: &[u8]) -> Vec<u8> {
    match path {
        b"" => name.to_vec(),
        path if path.ends_with(b"/") => [path, name].concat(),
        path => [path, b"/", name].concat(),
    }
}

/// Formats a kind and a mode as `ls -l` does: `drwxr-xr-x`.
pub fn mode_text(kind: Kind, mode: u16) -> String {
    let letter = match kind {
        Kind::Dir => 'd',
        Kind::File => '-',
        Kind::Symlink => 'l',
        Kind::Char => 'c',
        Kind::Block => 'b',
        Kind::Fifo => 'p',
        Kind::Socket => 's',
    };
    let mut text = String::from(letter);
    for (shift, special, letter) in [(6, 0o4000, 's'), (3, 0o2000, 's'), (0, 0o1000, 't')] {
        let bits = mode >> shift;
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        text.push(match (bits & 1 != 0, mode & special != 0) {
            (true, true) => letter,
            (false, true) => letter.to_ascii_uppercase(),
            (true, false) => 'x',
            (false, false) => '-',
        });
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_shown_as_ls_shows_them() {
        for (kind, mode, text) in [
            (Kind::File, 0o644, "-rw-r--r--"),
            (Kind::Dir, 0o1777, "drwxrwxrwt"),
            (Kind::Dir, 0o1776, "drwxrwxrwT"),
            (Kind::File, 0o4755, "-rwsr-xr-x"),
            (Kind::File, 0o6644, "-rwSr-Sr--"),
            (Kind::Symlink, 0o777, "lrwxrwxrwx"),
            (Kind::Char, 0, "c---------"),
        ] {
            assert_eq!(mode_text(kind, mode), text);
        }
    }
}
