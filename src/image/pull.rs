//! Pull: fetches the images of a source into the store and records them in the catalog.

use super::manifest::PLAIN_LAYER;
use super::progress::{Event, Progress};
use super::source::{LayerPlan, Place, Plan, Source, Want};
use super::{Error, FORMATS, Problem, Result, free_space, layer_workers, open, pipeline};
use crate::digest::Digest;
use crate::reference::Reference;
use crate::store::{self, Catalog, Image, Intent, LayerRecord, Session, Store, gc};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// A pulled image.
#[derive(Clone, Debug)]
pub struct Pulled {
    /// The image's record in the catalog.
    pub image: Image,
    /// Names given by this pull.
    pub names: Vec<Reference>,
    /// Digest of the index or manifest that the name refers to in the source.
    pub root: Option<Digest>,
    /// Whether the catalog had the image, with the same names.
    pub up_to_date: bool,
    /// Names taken from other images, with those images' IDs.
    pub taken: Vec<(Reference, Digest)>,
}

/// Pulls the wanted images of a source, or leaves the store unchanged; but after a registry failure the complete layers
/// stay for the next pull.
pub fn pull(session: &Session, source: &dyn Source, want: &Want, progress: &Arc<dyn Progress>) -> Result<Vec<Pulled>> {
    // Read first, so that an unusable store is reported before the work.
    let recorded = recorded_sizes(&session.store().catalog()?);
    let plans = source.images(want)?;
    free_space::check(session.store(), source, &missing(session.store(), &plans, &recorded))?;
    let mut intent = Intent::default();
    for plan in &plans {
        intent.layers.extend(plan.layers.iter().map(|l| l.diff_id.clone()));
        intent.blobs.extend(documents(plan).map(|d| d.descriptor.digest.clone()));
        intent.trees.insert(chain_of(plan));
    }
    session.intend(&intent)?;
    let made = Mutex::new(Intent::default());
    let taken =
        plans.iter().map(|plan| take(session, source, plan, progress, &recorded, &made)).collect::<Result<Vec<_>>>();
    let committed = taken.and_then(|images| commit(session, &plans, images));
    // An abandoned session ends the program; complete layers stay for the next pull.
    if committed.is_err() && !session.is_abandoned() {
        let mut made = made.into_inner();
        if committed.as_ref().is_err_and(is_outage) {
            // The layers are verified: the next pull need not fetch them again.
            made.layers.clear();
        }
        let back = session.give_up().and_then(|()| gc::take_back(session.store(), &made, FORMATS));
        if let Err(error) = back {
            tracing::warn!(%error, "cannot remove the files of a failed pull; `plyfs system gc` will");
        }
    }
    committed
}

/// Whether a registry failed to serve a layer.
fn is_outage(error: &Error) -> bool {
    matches!(error, Error::Layer { problem, .. } if matches!(**problem, Problem::Registry(_)))
}

fn documents(plan: &Plan) -> impl Iterator<Item = &super::manifest::Document> {
    plan.indexes.iter().chain(&plan.manifest).chain(std::iter::once(&plan.config))
}

fn chain_of(plan: &Plan) -> Digest {
    store::chain_ids(plan.layers.iter().map(|l| &l.diff_id)).pop().unwrap_or_else(|| Digest::of(b""))
}

/// Brings an image's layers, tree and documents into the store. `recorded` has the sizes of layers of earlier images,
/// `made` collects what is new.
fn take(
    session: &Session,
    source: &dyn Source,
    plan: &Plan,
    progress: &Arc<dyn Progress>,
    recorded: &BTreeMap<Digest, u64>,
    made: &Mutex<Intent>,
) -> Result<Image> {
    progress.image(plan);
    let store = session.store();
    let made = |note: &dyn Fn(&mut Intent)| note(&mut made.lock());
    let mut queue = Vec::new();
    let mut queued = BTreeSet::new();
    for (at, layer) in plan.layers.iter().enumerate() {
        if queued.contains(&layer.diff_id) {
            continue;
        }
        if has_whole(session, &layer.diff_id, recorded.get(&layer.diff_id).copied())? {
            source.taken(layer);
            progress.layer(layer, Event::AlreadyExists);
        } else {
            queued.insert(&layer.diff_id);
            queue.push((at, layer));
            progress.layer(layer, Event::Planned);
        }
    }
    // The largest first, so that it does not run alone at the end.
    queue.sort_by_key(|(_, layer)| std::cmp::Reverse(layer.size()));
    for (_, layer) in queue.iter().skip(layer_workers::AT_ONCE) {
        progress.layer(layer, Event::Waiting);
    }
    let stop = AtomicBool::new(false);
    let one = |(at, layer): (usize, &LayerPlan)| -> Result<(Digest, u64)> {
        let (size, fresh) = loop {
            match take_layer(session, source, layer, &stop, progress) {
                Err(Fault::Layer(wrong)) if wrong.is_content() && source.discard(layer, &wrong) => {}
                done => break done.map_err(|fault| fault.at(source.origin(), at + 1, plan.layers.len(), layer))?,
            }
        };
        source.taken(layer);
        if fresh {
            made(&|m| m.layers.extend([layer.diff_id.clone()]));
        }
        progress.layer(layer, Event::Complete);
        Ok((layer.diff_id.clone(), size))
    };
    let failed = || {
        stop.store(true, Ordering::Relaxed);
        source.cancel();
    };
    let compressed = layer_workers::run(queue, one, failed)?.into_iter().collect();
    progress.taken(plan);
    let chain = chain_of(plan);
    if open::map_tree(store, &chain).is_none() {
        made(&|m| m.trees.extend([chain.clone()]));
        let diff_ids: Vec<&Digest> = plan.layers.iter().map(|l| &l.diff_id).collect();
        open::make_tree(session, &diff_ids, source.origin())?;
    }
    for document in documents(plan) {
        let digest = &document.descriptor.digest;
        if session.publish_blob(digest, &document.bytes)? {
            made(&|m| m.blobs.extend([digest.clone()]));
        }
    }
    record(store, plan, &compressed)
}

/// Returns the sizes of all layers, as recorded in the catalog.
pub(super) fn recorded_sizes(catalog: &Catalog) -> BTreeMap<Digest, u64> {
    catalog.images().iter().flat_map(|i| &i.layers).map(|l| (l.diff_id.clone(), l.size)).collect()
}

/// Whether the store has the layer, with a tar of the recorded size.
fn is_whole(store: &Store, diff_id: &Digest, recorded: Option<u64>) -> bool {
    match fs::metadata(store.layer_tar(diff_id)) {
        Ok(tar) => recorded.is_none_or(|size| size == tar.len()),
        Err(_) => false,
    }
}

/// Lists the distinct layers that must be fetched.
fn missing<'a>(store: &Store, plans: &'a [Plan], recorded: &BTreeMap<Digest, u64>) -> Vec<&'a LayerPlan> {
    let mut seen = BTreeSet::new();
    let layers = plans.iter().flat_map(|plan| &plan.layers).filter(|layer| seen.insert(&layer.diff_id));
    layers.filter(|l| !is_whole(store, &l.diff_id, recorded.get(&l.diff_id).copied())).collect()
}

/// Whether the store has the layer. One that is incomplete is moved away, to be fetched again.
pub(super) fn has_whole(session: &Session, diff_id: &Digest, recorded: Option<u64>) -> Result<bool> {
    let store = session.store();
    let is_whole = || is_whole(store, diff_id, recorded);
    if is_whole() {
        return Ok(true);
    }
    if store.has_layer(diff_id) {
        let _lock = store.lock_exclusive()?;
        // Another pull may have done this meanwhile.
        if is_whole() {
            return Ok(true);
        }
        tracing::warn!("layer {} is damaged; fetching it again", diff_id.short());
        session.set_layer_aside(diff_id)?;
    }
    Ok(false)
}

/// Error of a layer's pull.
enum Fault {
    Layer(Problem),
    Store(store::Error),
}

impl Fault {
    fn at(self, origin: &str, position: usize, count: usize, layer: &LayerPlan) -> Error {
        let problem = match self {
            // The error of a full disk names the layer too.
            Fault::Store(store::Error::Io { path, cause, .. }) => Problem::Write { path, cause },
            Fault::Store(e) => return Error::Store(e),
            Fault::Layer(problem) => problem,
        };
        Error::Layer {
            origin: origin.to_owned(),
            position,
            count,
            digest: layer.short().to_owned(),
            problem: Box::new(problem),
        }
    }
}

/// Fetches a layer. Returns its blob's size, and whether the layer is new in the store.
fn take_layer(
    session: &Session,
    source: &dyn Source,
    layer: &LayerPlan,
    stop: &AtomicBool,
    progress: &Arc<dyn Progress>,
) -> std::result::Result<(u64, bool), Fault> {
    progress.layer(layer, Event::Started);
    let (told, known) = (Arc::clone(progress), layer.clone());
    let waits = move |left: Duration| {
        let seconds = u64::try_from(left.as_millis().div_ceil(1000)).unwrap_or(u64::MAX);
        told.layer(&known, Event::Retrying(seconds));
    };
    let stream = source.layer(layer, Arc::new(waits)).map_err(Fault::Layer)?;
    // Another process may have published it while this one waited for the partial.
    if session.store().has_layer(&layer.diff_id) {
        return Ok((0, false));
    }
    let blob = match &layer.place {
        Place::Blob(descriptor) => Some((&descriptor.digest, descriptor.size)),
        Place::Member(..) => None,
    };
    let dir = session.temp_path("layer");
    fs::create_dir(&dir).map_err(store::Error::io("make", &dir)).map_err(Fault::Store)?;
    let expected = pipeline::Expected { blob, diff_id: Some(&layer.diff_id) };
    let tell = |event| progress.layer(layer, event);
    let fill = || -> std::result::Result<u64, Fault> {
        let done = pipeline::run(stream, &expected, &dir.join("layer.tar"), stop, &tell).map_err(Fault::Layer)?;
        let t = done.timings;
        tracing::debug!(
            target: "plyfs::pull",
            layer = layer.short(), entries = done.draft.entries(), bytes = done.size,
            total_ms = t.total.as_millis(), index_ms = t.index.as_millis(), write_ms = t.write.as_millis(),
            wait_ms = t.wait.as_millis(), "layer taken"
        );
        for text in done.draft.warnings() {
            progress.warning(layer, text);
        }
        store::write_new(&dir.join("index"), &done.draft.seal(&layer.diff_id)).map_err(Fault::Store)?;
        Ok(done.compressed_size)
    };
    let size = fill().inspect_err(|_| drop(fs::remove_dir_all(&dir)))?;
    let fresh = session.publish_layer(&dir, &layer.diff_id).map_err(Fault::Store)?;
    Ok((size, fresh))
}

/// Makes the image's record for the catalog.
fn record(store: &Store, plan: &Plan, compressed: &BTreeMap<Digest, u64>) -> Result<Image> {
    let mut layers = Vec::new();
    for layer in &plan.layers {
        let path = store.layer_tar(&layer.diff_id);
        let size = fs::metadata(&path).map_err(store::Error::io("read", &path))?.len();
        layers.push(match &layer.place {
            Place::Blob(blob) => LayerRecord {
                diff_id: layer.diff_id.clone(),
                blob: Some(blob.digest.clone()),
                media_type: blob.media_type.clone(),
                compressed_size: blob.size,
                size,
            },
            Place::Member(..) => LayerRecord {
                diff_id: layer.diff_id.clone(),
                blob: None,
                media_type: PLAIN_LAYER.into(),
                compressed_size: compressed.get(&layer.diff_id).copied().unwrap_or(size),
                size,
            },
        });
    }
    let (tags, digests) = plan.names.iter().cloned().partition(|n| n.digest().is_none());
    Ok(Image {
        id: plan.config.descriptor.digest.clone(),
        manifest: plan.manifest.as_ref().map(|m| m.descriptor.digest.clone()),
        indexes: plan.indexes.iter().map(|d| d.descriptor.digest.clone()).collect(),
        others: Vec::new(),
        layers,
        tags,
        digests,
        created: plan.created.clone(),
        pulled: jiff::Timestamp::now().to_string(),
    })
}

/// Adds the images to the catalog, all or none. Until now the session's intent has protected their parts.
fn commit(session: &Session, plans: &[Plan], images: Vec<Image>) -> Result<Vec<Pulled>> {
    session.store().update_by(session, |_, catalog| {
        let mut pulled = Vec::new();
        for (plan, mut image) in plans.iter().zip(images) {
            let owner = |name: &Reference| catalog.named(name).map(|i| i.id.clone());
            let known = catalog.get(&image.id).cloned();
            let same = known.as_ref().is_some_and(|k| image.manifest.iter().all(|m| k.origins().any(|o| o == m)));
            let up_to_date = same && plan.names.iter().all(|name| owner(name).as_ref() == Some(&image.id));
            let others = plan.names.iter().filter_map(|name| Some((name.clone(), owner(name)?)));
            let taken = others.filter(|(name, id)| *id != image.id && name.tag().is_some()).collect();
            if let Some(known) = known.filter(|_| up_to_date) {
                image.pulled = known.pulled;
            }
            let id = image.id.clone();
            // An archive without a manifest does not remove the image's known manifest.
            if let (None, Some(known)) = (&image.manifest, catalog.get(&id)) {
                image.manifest.clone_from(&known.manifest);
                image.indexes.clone_from(&known.indexes);
                image.layers.clone_from(&known.layers);
            }
            catalog.insert(image);
            pulled.extend(catalog.get(&id).cloned().map(|image| Pulled {
                image,
                names: plan.names.clone(),
                root: plan.root.clone(),
                up_to_date,
                taken,
            }));
        }
        Ok(pulled)
    })
}
