//! Input of the writing workloads: a layer of big files and a full directory over the Debian image, and a tar to
//! unpack.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use crate::engine::run;

/// The directory of the layer's files in the mount.
pub const LAYER_DIR: &str = "srv/bench";
/// Size of each big file.
pub const BIG: u64 = 256 << 20;
/// Number of big files, named `big-0` and so on.
pub const BIGS: usize = 4;
/// Number of files in the directory `many`.
pub const MANY: usize = 10_000;
/// Number of files in the tar.
pub const SMALL: usize = 20_000;

/// The created layer and tars.
pub struct Lower {
    /// The layer as an overlay lower directory.
    pub dir: PathBuf,
    /// The tar of small files.
    pub small: PathBuf,
    /// The layer's tar.
    pub tar: PathBuf,
}

/// An endless reader of bytes without holes that compress well: compressing the layout's layer must not take minutes.
struct PatternReader(u64);

impl Read for PatternReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        for byte in &mut *buffer {
            *byte = (self.0 % 8191 % 251) as u8 + 1;
            self.0 += 1;
        }
        Ok(buffer.len())
    }
}

type Builder = tar::Builder<BufWriter<File>>;

/// Creates all of it below `scratch`.
pub fn make(scratch: &Path) -> Result<Lower, String> {
    let lower = Lower { dir: scratch.join("lower"), small: scratch.join("small.tar"), tar: scratch.join("layer.tar") };
    write_tar(&lower.tar, layer_entries).map_err(|e| format!("{}: {e}", lower.tar.display()))?;
    write_tar(&lower.small, small_entries).map_err(|e| format!("{}: {e}", lower.small.display()))?;
    fs::create_dir(&lower.dir).map_err(|e| e.to_string())?;
    run_command(&["tar", "-xf", &text(&lower.tar), "-C", &text(&lower.dir)])?;
    Ok(lower)
}

impl Lower {
    /// Creates the image `debian` with the layer on top, as an OCI layout below `scratch`, tag `latest`. Removes the
    /// layer's tar.
    pub fn add_to(&self, debian: &Path, scratch: &Path) -> Result<PathBuf, String> {
        let oci = scratch.join("oci");
        // The copy shares the layout's blobs, which are never written to; its index is written, and must be a file of
        // its own.
        run_command(&["cp", "-a", "--link", &text(&debian.join("oci")), &text(&oci)])?;
        run_command(&["cp", "-a", "--remove-destination", &text(&debian.join("oci/index.json")), &text(&oci)])?;
        let image = format!("{}:latest", text(&oci));
        run_command(&["umoci", "raw", "add-layer", "--image", &image, &text(&self.tar)])?;
        fs::remove_file(&self.tar).map_err(|e| e.to_string())?;
        Ok(oci)
    }
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

fn run_command(words: &[&str]) -> Result<(), String> {
    run(&words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>()).map(drop)
}

fn write_tar(at: &Path, entries: fn(&mut Builder) -> io::Result<()>) -> io::Result<()> {
    let mut tar = tar::Builder::new(BufWriter::with_capacity(1 << 20, File::create(at)?));
    entries(&mut tar)?;
    tar.into_inner()?.flush()
}

fn layer_entries(tar: &mut Builder) -> io::Result<()> {
    for dir in ["", "/many", "/into"] {
        append(tar, &format!("{LAYER_DIR}{dir}/"), 0, 0)?;
    }
    for number in 0..BIGS {
        append(tar, &format!("{LAYER_DIR}/big-{number}"), BIG, number as u64)?;
    }
    (0..MANY).try_for_each(|number| append(tar, &format!("{LAYER_DIR}/many/file-{number}"), 100, number as u64))
}

/// Files of up to 8 KiB, a hundred in each directory.
fn small_entries(tar: &mut Builder) -> io::Result<()> {
    for number in 0..SMALL {
        if number % 100 == 0 {
            append(tar, &format!("dir-{}/", number / 100), 0, 0)?;
        }
        let size = (number as u64 * 7919) % 8192;
        append(tar, &format!("dir-{}/file-{number}", number / 100), size, number as u64)?;
    }
    Ok(())
}

/// Appends a directory if the name ends in a slash, else a file of this size.
fn append(tar: &mut Builder, name: &str, size: u64, seed: u64) -> io::Result<()> {
    let mut header = tar::Header::new_gnu();
    let is_dir = name.ends_with('/');
    header.set_entry_type(if is_dir { tar::EntryType::Directory } else { tar::EntryType::Regular });
    header.set_mode(if is_dir { 0o755 } else { 0o644 });
    header.set_mtime(1_600_000_000);
    header.set_size(size);
    tar.append_data(&mut header, name, PatternReader(seed).take(size))
}
