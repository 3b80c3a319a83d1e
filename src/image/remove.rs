//! Removal and tagging of images, by Docker's rules.

use super::{Error, FORMATS, Result};
use crate::digest::Digest;
use crate::reference::Reference;
use crate::store::containers::{self, State, Status};
use crate::store::lists::ManifestList;
use crate::store::{Catalog, Image, Intent, Session, Store, gc, is_id_prefix, lists, mounts};
use std::collections::BTreeSet;

/// A step of a removal. Prints in Docker's words.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Record {
    /// A name was removed.
    Untagged(Reference),
    /// An image, or a layer given by its ChainID, was removed.
    Deleted(Digest),
}

impl std::fmt::Display for Record {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Record::Untagged(name) => write!(f, "Untagged: {}", name.familiar()),
            Record::Deleted(digest) => write!(f, "Deleted: {digest}"),
        }
    }
}

/// Adds a name to an image.
pub fn tag(store: &Store, image: &str, name: &Reference) -> Result<()> {
    if name.digest().is_some() {
        return Err(Error::Usage("refusing to create a tag with a digest reference".into()));
    }
    store.update(|_, catalog| {
        let id = catalog.resolve(image)?.id.clone();
        catalog.give_name(&id, &name.clone().or_latest());
        Ok(())
    })
}

/// Removes a name, and with its last name the image; or, given an ID, the image with all its names. Layers that no
/// other image uses are taken out of the store and deleted when the trash is dropped. With `force`, an image of stopped
/// containers can be removed; its layers stay while the containers exist. A manifest list of the name is removed too;
/// its images keep their other names.
pub fn remove(store: &Store, wanted: &str, force: bool) -> Result<(Vec<Record>, gc::Trash)> {
    take(store, wanted, force, false)
}

/// Removes an image with all its names. An image that is mounted or used by a container is a conflict, which changes
/// nothing.
pub fn remove_unused(store: &Store, id: &Digest) -> Result<(Vec<Record>, gc::Trash)> {
    take(store, &id.to_string(), true, true)
}

fn take(store: &Store, wanted: &str, force: bool, unused: bool) -> Result<(Vec<Record>, gc::Trash)> {
    let lock = store.lock_exclusive()?;
    let list = if unused { None } else { list_named(store, wanted) };
    let mut records = store.update_locked(&lock, |_, catalog| {
        // A list's name comes before an image ID.
        if list.as_ref().is_some_and(|name| catalog.named(name).is_none()) {
            return Ok(Vec::new());
        }
        let image = catalog.resolve(wanted)?.clone();
        let users = Users::find(store, &image.id, list.as_ref())?;
        if let (true, Some(container)) = (unused, users.first()) {
            return Err(Error::Conflict(format!("image {} is used by container {container}", image.id.short())));
        }
        let plan = plan(catalog, &image, wanted, force, &users)?;
        for record in &plan {
            match record {
                Record::Untagged(name) => catalog.take_name(name),
                Record::Deleted(id) if *id == image.id => drop(catalog.remove(id)),
                Record::Deleted(_) => {}
            }
        }
        Ok::<_, Error>(plan)
    })?;
    if let Some(name) = &list {
        lists::remove(store, &lock, name)?;
        let untagged = Record::Untagged(name.clone());
        if !records.contains(&untagged) {
            records.push(untagged);
        }
    }
    if list.is_some() || records.iter().any(|r| matches!(r, Record::Deleted(_))) {
        let (_garbage, trash) = gc::collect(store, &lock, &store.catalog()?, FORMATS)?;
        return Ok((records, trash));
    }
    Ok((records, gc::Trash::default()))
}

/// Returns the name, if there is a manifest list of that name.
fn list_named(store: &Store, wanted: &str) -> Option<Reference> {
    let name = wanted.parse::<Reference>().ok().map(Reference::or_latest)?;
    (name.digest().is_none() && lists::exists(store, &name)).then_some(name)
}

/// Users of an image: the short ID of one of each kind, and the layers that containers and manifest lists need.
#[derive(Default)]
struct Users {
    /// A running container, or a mount, which counts like a running container in Docker.
    running: Option<String>,
    /// A stopped container.
    stopped: Option<String>,
    /// ChainIDs of the images of all containers and manifest lists.
    chains: BTreeSet<Digest>,
    /// Whether there are further users whose records cannot be read: they may need any layer.
    unknown: bool,
}

impl Users {
    /// Finds the users of an image; `gone` is the name of a manifest list that is removed with it.
    fn find(store: &Store, image: &Digest, gone: Option<&Reference>) -> Result<Users> {
        let mut users = Users::default();
        let (containers, damaged) = containers::list_with_damaged(store)?;
        let (mounts, unlisted) = mounts::list_with_damaged(store)?;
        let (lists, unread) = lists::list_with_damaged(store)?;
        users.unknown = !damaged.is_empty() || !unlisted.is_empty() || !unread.is_empty();
        let kept = lists.iter().filter(|list| Some(&list.name) != gone).flat_map(ManifestList::images);
        users.chains.extend(kept.flat_map(Image::chain_ids));
        for container in containers {
            users.chains.extend(container.image.chain_ids());
            if container.image.id != *image {
                continue;
            }
            let running = |state: State| state.status == Status::Running;
            // Reading the state fails only for a running container.
            let runs = containers::state(store, &container.id).map_or(true, running);
            let place = if runs { &mut users.running } else { &mut users.stopped };
            place.get_or_insert_with(|| container.short().to_owned());
        }
        let mount = mounts.into_iter().find(|m| m.image == *image).map(|m| m.id);
        users.running = users.running.or(mount);
        Ok(users)
    }

    fn first(&self) -> Option<&str> {
        self.running.as_deref().or(self.stopped.as_deref())
    }
}

/// Gives up a session's intent that kept an image while it was written out. If another process removed the image
/// meanwhile, removes the parts that it had to leave.
pub(super) fn release_image(session: &Session, image: &Image) -> Result<()> {
    let store = session.store();
    session.give_up()?;
    if store.catalog()?.get(&image.id).is_some() {
        return Ok(());
    }
    Ok(gc::take_back(store, &parts_of(image), FORMATS)?)
}

/// Returns the digests of everything that belongs to an image.
pub(super) fn parts_of(image: &Image) -> Intent {
    Intent {
        layers: image.layers.iter().map(|l| l.diff_id.clone()).collect(),
        blobs: image.blobs().cloned().collect(),
        trees: [image.chain_id()].into(),
    }
}

/// Returns the steps of a removal, or the conflict that forbids it. Changes nothing.
fn plan(catalog: &Catalog, image: &Image, wanted: &str, force: bool, users: &Users) -> Result<Vec<Record>> {
    let short = image.id.short();
    let in_use = |container: &str| {
        Error::Conflict(format!(
            "unable to delete {short} (cannot be forced) - image is being used by running container {container}"
        ))
    };
    let all: Vec<&Reference> = image.references().collect();
    let by_name = wanted.parse::<Reference>().ok().map(Reference::or_latest);
    let by_name = by_name.map(|name| match name.digest() {
        Some(digest) => name.by_digest(digest),
        None => name,
    });
    // The same order as in the lookup: a name first, even one that could be an ID.
    let name = by_name.filter(|name| all.contains(&name));
    debug_assert!(name.is_some() || is_id_prefix(&image.id, wanted));
    let mut records = Vec::new();
    if let Some(name) = name {
        let gone = removed_with(&name, &all);
        if gone.len() < all.len() {
            return Ok(gone.into_iter().cloned().map(Record::Untagged).collect());
        }
        match (users.running.as_deref(), users.first()) {
            (Some(container), _) if force => return Err(in_use(container)),
            (_, Some(container)) if !force => {
                return Err(Error::Conflict(format!(
                    "unable to remove repository reference \"{wanted}\" (must force) - \
                     container {container} is using its referenced image {short}"
                )));
            }
            _ => records.extend(gone.into_iter().cloned().map(Record::Untagged)),
        }
    } else {
        let by_force =
            |why: &str| Err(Error::Conflict(format!("unable to delete {short} (must be forced) - image {why}")));
        match (&users.running, &users.stopped) {
            (Some(container), _) => return Err(in_use(container)),
            _ if force => {}
            _ if !is_single(&all) => return by_force("is referenced in multiple repositories"),
            (_, Some(container)) => return by_force(&format!("is being used by stopped container {container}")),
            _ => {}
        }
        records.extend(all.into_iter().cloned().map(Record::Untagged));
    }
    records.push(Record::Deleted(image.id.clone()));
    let others = catalog.images().iter().filter(|i| i.id != image.id);
    let kept: BTreeSet<Digest> = others.flat_map(Image::chain_ids).collect();
    let needed = |chain: &Digest| users.unknown || kept.contains(chain) || users.chains.contains(chain);
    let chains = image.chain_ids().into_iter().rev().take_while(|chain| !needed(chain));
    records.extend(chains.map(Record::Deleted));
    Ok(records)
}

/// Returns the names removed with `name`: with a repository's last tag also its names by digest.
fn removed_with<'a>(name: &Reference, all: &[&'a Reference]) -> Vec<&'a Reference> {
    let mut gone: Vec<&Reference> = all.iter().copied().filter(|r| *r == name).collect();
    let same_repo = |r: &&&Reference| r.name() == name.name() && **r != name;
    let last_tag = !all.iter().filter(same_repo).any(|r| r.digest().is_none());
    if name.digest().is_none() && last_tag {
        gone.extend(all.iter().filter(same_repo).copied());
    }
    gone
}

/// Whether the names count as one: at most one tag, and names by digest of its repository only.
fn is_single(all: &[&Reference]) -> bool {
    let tags = all.iter().filter(|r| r.digest().is_none()).count();
    tags <= 1 && all.iter().all(|r| r.name() == all[0].name())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Error as StoreError, LayerRecord};

    struct Fixture {
        _dir: tempfile::TempDir,
        store: Store,
    }

    impl Fixture {
        fn new() -> Fixture {
            let dir = tempfile::tempdir().unwrap();
            let store = Store::open(dir.path()).unwrap();
            Fixture { _dir: dir, store }
        }

        fn add(&self, seed: &str, names: &[&str], layers: &[&str]) -> Digest {
            let id = Digest::of(seed.as_bytes());
            let by_digest = |t: &&str| t.contains('@');
            let parse = |t: &str| t.replace("@D", &format!("@{}", Digest::of(b"manifest"))).parse().unwrap();
            let image = Image {
                id: id.clone(),
                manifest: None,
                indexes: vec![],
                others: vec![],
                layers: layers
                    .iter()
                    .map(|l| LayerRecord {
                        diff_id: Digest::of(l.as_bytes()),
                        blob: None,
                        media_type: String::new(),
                        compressed_size: 1,
                        size: 1,
                    })
                    .collect(),
                tags: names.iter().filter(|t| !by_digest(t)).map(|t| parse(t)).collect(),
                digests: names.iter().filter(|t| by_digest(t)).map(|t| parse(t)).collect(),
                created: None,
                pulled: String::new(),
            };
            for layer in &image.layers {
                let _there = std::fs::create_dir(self.store.layer_dir(&layer.diff_id));
                std::fs::write(self.store.layer_tar(&layer.diff_id), "x").unwrap();
            }
            let insert = |_: &_, c: &mut Catalog| {
                c.insert(image);
                Ok::<_, StoreError>(())
            };
            self.store.update(insert).unwrap();
            id
        }

        fn rm(&self, wanted: &str, force: bool) -> std::result::Result<Vec<String>, String> {
            let (records, _trash) = remove(&self.store, wanted, force).map_err(|e| e.to_string())?;
            Ok(records.iter().map(Record::to_string).collect())
        }
    }

    #[test]
    fn names_first_then_the_image_and_its_own_layers() {
        let f = Fixture::new();
        let id = f.add("1", &["a:1", "a:2", "a@D"], &["base", "top"]);
        f.add("2", &["b:1"], &["base"]);
        assert_eq!(f.rm("a:2", false).unwrap(), ["Untagged: a:2"]);
        let manifest = Digest::of(b"manifest");
        let chain = crate::store::chain_ids([&Digest::of(b"base"), &Digest::of(b"top")]);
        let lines = f.rm("a:1", false).unwrap();
        let want = [
            "Untagged: a:1".to_owned(),
            format!("Untagged: a@{manifest}"),
            format!("Deleted: {id}"),
            format!("Deleted: {}", chain[1]),
        ];
        assert_eq!(lines, want);
        assert!(f.store.has_layer(&Digest::of(b"base")) && !f.store.has_layer(&Digest::of(b"top")));
        assert_eq!(f.rm("a:1", false).unwrap_err(), "No such image: a:1");
    }

    #[test]
    fn a_digest_name_of_another_repository_keeps_the_image() {
        let f = Fixture::new();
        f.add("1", &["a:1", "a@D", "b@D"], &[]);
        assert_eq!(f.rm("a:1", false).unwrap().len(), 2);
        assert_eq!(f.store.catalog().unwrap().images().len(), 1);
    }

    #[test]
    fn by_id() {
        let f = Fixture::new();
        let id = f.add("1", &["a:1", "b:1"], &[]);
        let short = id.short();
        let error = f.rm(short, false).unwrap_err();
        let want = format!(
            "conflict: unable to delete {short} (must be forced) - image is referenced in multiple repositories"
        );
        assert_eq!(error, want);
        assert_eq!(f.rm(short, true).unwrap().len(), 3);
        let id = f.add("2", &["a:1", "a@D"], &[]);
        assert_eq!(f.rm(&id.to_string(), false).unwrap().len(), 3);
        let id = f.add("3", &[], &[]);
        assert_eq!(f.rm(&id.hex()[..8], false).unwrap(), [format!("Deleted: {id}")]);
    }

    #[test]
    fn mounted_images_stay() {
        let f = Fixture::new();
        let id = f.add("1", &["a:1", "a:2"], &[]);
        let guard = mounts::register(&f.store, &id, "a:1", "/mnt".as_ref(), false).unwrap();
        let (mount, short) = (guard.info().id.clone(), id.short());
        // One of two names may still be removed.
        assert_eq!(f.rm("a:2", false).unwrap(), ["Untagged: a:2"]);
        let soft = format!(
            "conflict: unable to remove repository reference \"a:1\" (must force) - \
             container {mount} is using its referenced image {short}"
        );
        assert_eq!(f.rm("a:1", false).unwrap_err(), soft);
        let hard = format!(
            "conflict: unable to delete {short} (cannot be forced) - \
             image is being used by running container {mount}"
        );
        assert_eq!(f.rm("a:1", true).unwrap_err(), hard);
        assert_eq!(f.rm(short, true).unwrap_err(), hard);
        guard.release().unwrap();
        assert_eq!(f.rm("a:1", false).unwrap().len(), 2);
    }

    #[test]
    fn what_containers_use() {
        let f = Fixture::new();
        let id = f.add("1", &["a:1", "a:2"], &["base", "top"]);
        let (image, short) = (f.store.resolve("a:1").unwrap(), id.short());
        let container = containers::Container {
            id: containers::new_id().unwrap(),
            name: "web".into(),
            image,
            reference: "a:1".into(),
            created: String::new(),
            config: serde_json::Map::new(),
            host: containers::Host::default(),
        };
        let held = containers::create(&f.store, &container).unwrap();
        let user = container.short();
        assert!(matches!(remove_unused(&f.store, &id), Err(Error::Conflict(_))));
        let multiple = "is referenced in multiple repositories";
        let soft = |why: &str| Err(format!("conflict: unable to delete {short} (must be forced) - image {why}"));
        assert_eq!(f.rm(short, false), soft(multiple));
        assert_eq!(f.rm("a:2", false).unwrap(), ["Untagged: a:2"]);
        let by_name = format!(
            "conflict: unable to remove repository reference \"a:1\" (must force) - \
             container {user} is using its referenced image {short}"
        );
        assert_eq!(f.rm("a:1", false).unwrap_err(), by_name);
        assert_eq!(f.rm(short, false), soft(&format!("is being used by stopped container {user}")));
        let hard = format!(
            "conflict: unable to delete {short} (cannot be forced) - \
             image is being used by running container {user}"
        );
        held.set_state(&containers::State { status: Status::Running, ..Default::default() }).unwrap();
        assert_eq!(f.rm("a:1", false).unwrap_err(), by_name);
        for (wanted, force) in [("a:1", true), (short, false), (short, true)] {
            assert_eq!(f.rm(wanted, force).unwrap_err(), hard, "{wanted}");
        }
        // The container has exited. Its layers stay and are not reported as deleted.
        drop(held);
        let other = f.add("2", &[], &["base", "top", "more"]);
        assert_eq!(f.rm("a:1", true).unwrap(), ["Untagged: a:1".to_owned(), format!("Deleted: {id}")]);
        assert_eq!(f.rm(other.short(), false).unwrap().len(), 2);
        assert!(f.store.has_layer(&Digest::of(b"base")) && !f.store.has_layer(&Digest::of(b"more")));
        let held = containers::try_hold(&f.store, &container.id).unwrap().unwrap();
        std::fs::remove_dir_all(containers::take_out(&f.store, held).unwrap()).unwrap();
        let lock = f.store.lock_exclusive().unwrap();
        drop(gc::collect(&f.store, &lock, &f.store.catalog().unwrap(), FORMATS).unwrap());
        assert!(!f.store.has_layer(&Digest::of(b"base")));
    }
}
