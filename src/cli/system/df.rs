//! `system df`: disk usage of images, containers, indexes and the build cache.

use crate::cli::container::ps::written;
use crate::cli::filter::created;
use crate::cli::image::images::{self, cells, rows};
use crate::cli::output::format::{self, Columns};
use crate::cli::output::stdout as output;
use crate::cli::output::units;
use crate::cli::{Global, usage_errors};
use crate::digest::Digest;
use crate::store::containers::{self, Status};
use crate::store::{Image, Store, builds, mounts};
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};

const COLUMNS: Columns = Columns {
    type_name: "*formatter.diskUsageImagesContext",
    fields: &[
        ("Active", "ACTIVE"),
        ("Reclaimable", "RECLAIMABLE"),
        ("Size", "SIZE"),
        ("TotalCount", "TOTAL"),
        ("Type", "TYPE"),
    ],
};
const TABLE: &str = r"{{.Type}}\t{{.TotalCount}}\t{{.Active}}\t{{.Size}}\t{{.Reclaimable}}";
const TABLE_OF_IMAGES: &str = r"{{.Repository}}\t{{.Tag}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}\t{{.SharedSize}}\t{{.UniqueSize}}\t{{.Containers}}";

/// The files that describe layers and images: the layers' indexes, the merged indexes and the EROFS images.
#[derive(Default)]
struct Indexes {
    count: u64,
    size: u64,
    /// Those of active images.
    active: u64,
    used: u64,
}

impl Indexes {
    fn find(store: &Store, images: &[Image], active: &[&Image]) -> anyhow::Result<Indexes> {
        let layers = |images: &mut dyn Iterator<Item = &Image>| -> BTreeSet<Digest> {
            images.flat_map(|image| image.layers.iter().map(|layer| layer.diff_id.clone())).collect()
        };
        let used_layers = layers(&mut active.iter().copied());
        let mut found = Indexes::default();
        for id in layers(&mut images.iter()) {
            // One that is missing is made again when it is needed.
            if let Ok(file) = store.layer_index(&id).metadata() {
                found.add(file.len(), used_layers.contains(&id));
            }
        }
        let chains: BTreeSet<String> = active.iter().map(|image| image.chain_id().hex().to_owned()).collect();
        for entry in std::fs::read_dir(store.root().join("trees"))? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let chain = name.split('.').next().unwrap_or_default();
            found.add(entry.metadata()?.len(), chains.contains(chain));
        }
        Ok(found)
    }

    fn add(&mut self, size: u64, is_active: bool) {
        self.count += 1;
        self.size += size;
        if is_active {
            self.active += 1;
            self.used += size;
        }
    }
}

#[derive(clap::Args)]
#[command(after_help = "Examples:\n  plyfs system df\n  plyfs system df -v --format json")]
pub(in crate::cli) struct DfArgs {
    /// Show detailed information on each image
    #[arg(short, long)]
    verbose: bool,
    /// Output format: `table`, `table TEMPLATE`, `json`, or a Go template over Type, TotalCount, Active, Size,
    /// Reclaimable; with -v, over the fields of an image
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
    #[arg(hide = true)]
    args: Vec<String>,
}

pub(in crate::cli) fn df(global: &Global, a: &DfArgs) -> anyhow::Result<()> {
    usage_errors::none("system df", &a.args)?;
    let store = global.store()?;
    let catalog = store.catalog()?;
    let users = Users::find(&store)?;
    // Per layer: the number of images that use it, and its size.
    let mut layers = BTreeMap::new();
    for image in catalog.images() {
        let own: BTreeMap<_, _> = image.layers.iter().map(|l| (&l.diff_id, l.size)).collect();
        for (id, size) in own {
            layers.entry(id).or_insert((0u64, size)).0 += 1;
        }
    }
    if a.verbose {
        return verbose(a, catalog.images(), &layers, &users);
    }
    let total: u64 = layers.values().map(|(_, size)| size).sum();
    let active: Vec<&Image> = catalog.images().iter().filter(|i| users.count(i) > 0).collect();
    let used: BTreeMap<_, _> = active.iter().flat_map(|i| &i.layers).map(|l| (&l.diff_id, l.size)).collect();
    let free = total - used.values().sum::<u64>().min(total);
    let indexes = Indexes::find(&store, catalog.images(), &active)?;
    let cache = builds::usage(&store)?;
    let percent = |part: u64, whole: u64| match whole {
        0 => String::new(),
        _ => format!(" ({}%)", u128::from(part) * 100 / u128::from(whole)),
    };
    let row = |cells: [String; 5]| cells.to_vec();
    let table = vec![
        row([
            active.len().to_string(),
            units::precise_size(free) + &percent(free, total),
            units::precise_size(total),
            catalog.images().len().to_string(),
            "Images".into(),
        ]),
        row([
            users.active.to_string(),
            units::precise_size(users.idle) + &percent(users.idle, users.written),
            units::precise_size(users.written),
            users.images.len().to_string(),
            "Containers".into(),
        ]),
        row([
            indexes.active.to_string(),
            units::precise_size(indexes.size - indexes.used) + &percent(indexes.size - indexes.used, indexes.size),
            units::precise_size(indexes.size),
            indexes.count.to_string(),
            "Indexes".into(),
        ]),
        row([
            "0".into(),
            units::precise_size(cache.size),
            units::precise_size(cache.size),
            cache.count.to_string(),
            "Build Cache".into(),
        ]),
    ];
    format::list(a.format.as_deref(), TABLE, &COLUMNS, table)
}

/// Prints the images with their shared and unique sizes. `layers` has the number of images that use a layer, and its
/// size.
fn verbose(a: &DfArgs, images: &[Image], layers: &BTreeMap<&Digest, (u64, u64)>, users: &Users) -> anyhow::Result<()> {
    let mut images: Vec<&Image> = images.iter().collect();
    images.sort_by_key(|i| std::cmp::Reverse(created(i)));
    let now = Timestamp::now();
    let mut table = Vec::new();
    for image in images {
        let own: BTreeMap<_, _> = image.layers.iter().map(|l| (&l.diff_id, l.size)).collect();
        let unique = own.iter().filter(|(id, _)| layers.get(*id).is_some_and(|(n, _)| *n == 1)).map(|(_, s)| s).sum();
        let shared = image.size().saturating_sub(unique);
        let counted = [users.count(image).to_string(), units::precise_size(shared), units::precise_size(unique)];
        // One row per image, under its first name.
        let line = rows(image, false).into_iter().next();
        table.extend(line.map(|line| cells(&line, image.id.short().to_owned(), now, counted)));
    }
    if matches!(a.format.as_deref(), None | Some("" | "table")) {
        output::text("Images space usage:\n\n")?;
    }
    format::list(a.format.as_deref(), TABLE_OF_IMAGES, &images::COLUMNS, table)
}

/// The users of images: containers and mounts. A mount counts as a running container.
struct Users {
    /// The image ID of each user.
    images: Vec<Digest>,
    /// The number of running ones.
    active: usize,
    /// Bytes written by all of them.
    written: u64,
    /// Bytes written by those that do not run.
    idle: u64,
}

impl Users {
    fn find(store: &Store) -> anyhow::Result<Users> {
        let images: Vec<Digest> = mounts::list(store)?.into_iter().map(|mount| mount.image).collect();
        let mut users = Users { active: images.len(), images, written: 0, idle: 0 };
        for container in containers::list(store)? {
            // The container may have been removed since it was listed.
            let Ok(state) = containers::state(store, &container.id) else { continue };
            let bytes = written(store, &container);
            users.written += bytes;
            match state.status {
                Status::Running => users.active += 1,
                _ => users.idle += bytes,
            }
            users.images.push(container.image.id);
        }
        Ok(users)
    }

    fn count(&self, image: &Image) -> usize {
        self.images.iter().filter(|id| **id == image.id).count()
    }
}
