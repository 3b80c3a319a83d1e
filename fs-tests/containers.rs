//! Container records: `ps`, `inspect`, the images they keep from removal, and damaged records. The tests write the
//! records themselves; no container runs.

use plyfs::store::Store;
use plyfs::store::containers::{self, Bind, Container, Held, Host, Network, State, Status, Tmpfs};
use serde_json::{Map, Value, json};

use super::support::env::{TestEnv, run};
use super::support::eventually;
use super::support::oci::Image;
use super::support::tar::Tar;

/// A store with `app:1` and its parent image `base:1`.
fn create_store() -> (TestEnv, Store) {
    let env = TestEnv::new();
    let tar = |n: u8| Tar::new().file(format!("file-{n}"), vec![n; 5000]).finish();
    for (name, layers) in [("base", &[1u8][..]), ("app", &[1, 2])] {
        let layout = env.path(format!("layout-{name}"));
        let image = Image::new().tag("1").edit_config(move |c| {
            c["config"] = json!({ "Cmd": ["sh"], "Labels": { "of": name } });
        });
        layers.iter().fold(image, |image, n| image.layer(tar(*n))).write_layout(&layout);
        let pulled = env.ok(["pull", "-q", &format!("oci:{}:1", layout.display())]);
        env.ok(["tag", pulled.trim(), &format!("{name}:1")]);
        env.ok(["rmi", pulled.trim()]);
    }
    let store = Store::open(&env.root()).unwrap();
    (env, store)
}

/// Creates a container of an image; `minute` is its creation time.
fn make(store: &Store, name: &str, image: &str, minute: u32, change: impl FnOnce(&mut Container)) -> (Container, Held) {
    let config = json!({
        "Entrypoint": ["/bin/entry point"],
        "Cmd": ["-c", "echo \"hello\" there"],
        "Env": ["A=b"],
        "Hostname": name,
        "Labels": { "b": "2", "a": "1" },
    });
    let Value::Object(config) = config else { unreachable!() };
    let mut container = Container {
        id: containers::new_id().unwrap(),
        name: name.into(),
        image: store.resolve(image).unwrap(),
        reference: image.into(),
        created: format!("2026-01-01T00:{minute:02}:00Z"),
        config,
        host: Host::default(),
    };
    change(&mut container);
    let held = containers::create(store, &container).unwrap();
    (container, held)
}

fn running() -> State {
    let started = Some(jiff::Timestamp::now().to_string());
    State { status: Status::Running, pid: 77, started, ..State::default() }
}

fn exited(code: i32) -> State {
    let finished = (jiff::Timestamp::now() - jiff::SignedDuration::from_secs(125)).to_string();
    State {
        status: Status::Exited,
        exit_code: code,
        started: Some(finished.clone()),
        finished: Some(finished),
        ..State::default()
    }
}

#[test]
fn ps_lists_as_docker_does() {
    let (env, store) = create_store();
    let empty = "CONTAINER ID   IMAGE     COMMAND   CREATED   STATUS    PORTS     NAMES\n";
    assert_eq!(env.ok(["ps"]), empty);
    let (new, _) = make(&store, "new", "base:1", 3, |_| {});
    let (web, held) = make(&store, "web", "app:1", 2, |c| {
        c.host.network = Network::None;
        c.host.binds = vec![Bind { source: "/a/rather/long/path".into(), target: "/x".into(), read_only: false }];
    });
    held.set_state(&running()).unwrap();
    let (old, gone) = make(&store, "old", "app:1", 1, |c| c.config = Map::from_iter([("Cmd".into(), json!(["true"]))]));
    gone.set_state(&exited(3)).unwrap();
    drop(gone);
    let table = env.ok(["ps", "--filter", "status=running"]);
    assert_eq!(env.ok(["ps"]), table);
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(lines.len(), 2, "{table}");
    assert!(lines[1].starts_with(&format!("{}   app:1     \"/bin/entry point -c…\"   ", web.short())), "{table}");
    assert!(lines[1].contains(" ago   Up ") && lines[1].ends_with("             web"), "{table}");
    let shown = |format: &str| env.ok(["ps", "-a", "--format", format]);
    assert_eq!(
        shown("{{.Names}} {{.Status}} {{.State}}").lines().collect::<Vec<_>>()[2],
        "old Exited (3) 2 minutes ago exited"
    );
    assert!(shown("{{.Names}} {{.Status}} {{.State}}").starts_with("new Created created\nweb Up "));
    assert_eq!(
        shown("{{.Labels}}|{{.Mounts}}|{{.Networks}}|{{.LocalVolumes}}|{{.Ports}}").lines().nth(1),
        Some("a=1,b=2|/a/rather/long…|none|0|")
    );
    assert_eq!(shown("{{.CreatedAt}}").lines().last(), Some("2026-01-01 00:01:00 +0000 UTC"));
    let untruncated = env.ok(["ps", "-a", "--no-trunc", "--format", "{{.ID}} {{.Command}}"]);
    let want = format!("{} \"/bin/entry point -c 'echo \\\"hello\\\" there'\"", web.id);
    assert_eq!(untruncated.lines().nth(1), Some(&*want));
    std::fs::write(store.container_dir(&old.id).join("upper/file"), [0; 5]).unwrap();
    assert!(env.ok(["ps", "-as"]).lines().last().unwrap().ends_with("old       5B (virtual 13.3kB)"));
    // A tag that has moved to another image no longer names the container's image.
    env.ok(["tag", "base:1", "app:1"]);
    assert_eq!(env.ok(["ps", "--format", "{{.Image}}"]), format!("{}\n", web.image.id.short()));
    let both = run(&mut env.command(["ps", "-q", "--format", "{{.Names}}"]));
    assert_eq!(both.stdout, format!("{}\n", web.short()));
    assert_eq!(both.stderr, "WARNING: Ignoring custom format, because both --format and --quiet are set.\n");
    drop(held);
    // Processes that other tests are forking may hold the lock for a moment.
    eventually("it runs no more", || env.ok(["ps"]) == empty);
    assert_eq!(env.ok(["ps", "-l", "--format", "{{.ID}}"]), format!("{}\n", new.short()));
    assert_eq!(env.ok(["ps", "-a", "--format", "{{.Status}}", "-f", "name=web"]), "Exited (137)\n");
}

#[test]
fn ps_filters_containers() {
    let (env, store) = create_store();
    let (_, _c) = make(&store, "c-1", "base:1", 3, |_| {});
    let (b, held) = make(&store, "b-1", "app:1", 2, |c| drop(c.config.insert("Labels".into(), json!({ "x": "y" }))));
    held.set_state(&running()).unwrap();
    let (_, gone) = make(&store, "a-2", "app:1", 1, |_| {});
    gone.set_state(&exited(3)).unwrap();
    drop(gone);
    let names = |args: &[&str]| {
        let all: Vec<&str> = ["ps", "--format", "{{.Names}}"].iter().chain(args).copied().collect();
        env.ok(all).split_whitespace().collect::<Vec<_>>().join(" ")
    };
    for (args, want) in [
        (&["-a"][..], "c-1 b-1 a-2"),
        (&["-n", "2"], "c-1 b-1"),
        (&["-l"], "c-1"),
        (&["--last=-1"], "b-1"),
        (&["-f", "name=1"], "b-1"),
        (&["-a", "-f", "name=^/?[ab]-"], "b-1 a-2"),
        (&["-a", "-f", "name=a-2", "-f", "name=c-1"], "c-1 a-2"),
        (&["-f", &format!("id={}", b.short())], "b-1"),
        (&["-f", "status=exited", "-f", "status=created"], "c-1 a-2"),
        (&["-a", "-f", "exited=3"], "a-2"),
        (&["-a", "-f", "exited=0"], ""),
        (&["-a", "-f", "ancestor=app:1"], "b-1 a-2"),
        (&["-a", "-f", "ancestor=base:1"], "c-1 b-1 a-2"),
        (&["-a", "-f", "ancestor=none"], ""),
        (&["-a", "-f", "label=a", "-f", "label=b=2"], "c-1 a-2"),
        (&["-a", "-f", "label=x=y"], "b-1"),
        (&["-a", "-f", "before=c-1"], "b-1 a-2"),
        (&["-a", "-f", "since=a-2", "-f", "before=c-1"], "b-1"),
    ] {
        assert_eq!(names(args), want, "{args:?}");
    }
    let end = |filter: &str| {
        let output = run(&mut env.command(["ps", "-f", filter]));
        (output.code, output.stderr)
    };
    let bad = "invalid argument \"name\" for \"-f, --filter\" flag: bad format of filter (expected name=value)\n";
    assert_eq!(end("name"), (125, bad.to_owned()));
    for (filter, message) in [
        ("foo=bar", "invalid filter 'foo'"),
        ("status=asleep", "invalid filter 'status=asleep'"),
        ("exited=x", "invalid filter 'exited=x'"),
        ("before=nope", "No such container: nope"),
    ] {
        assert_eq!(end(filter), (1, format!("Error: {message}\n")));
    }
}

#[test]
fn inspect_prints_containers_in_dockers_shape() {
    let (env, store) = create_store();
    let (web, held) = make(&store, "web", "app:1", 2, |c| {
        let volume = store.container_dir(&c.id).join("volumes/0").display().to_string();
        let bind =
            |source: &str, target: &str, read_only| Bind { source: source.into(), target: target.into(), read_only };
        c.host.binds = vec![bind("/etc", "/x", true), bind(&volume, "/data", false)];
        c.host.tmpfs = vec![Tmpfs { target: "/tmp".into(), options: "size=1m".into() }];
        c.host.cap_add = vec!["NET_ADMIN".into()];
        c.config.insert("Tty".into(), json!(true));
    });
    held.set_state(&State { runtime: "runc".into(), ..running() }).unwrap();
    let out = env.ok(["inspect", "web"]);
    let all: Value = serde_json::from_str(&out).unwrap();
    let keys: Vec<&str> = all[0].as_object().unwrap().keys().map(String::as_str).collect();
    let want = "Id Created Path Args State Image ResolvConfPath HostnamePath HostsPath LogPath Name RestartCount Driver \
                Platform MountLabel ProcessLabel AppArmorProfile ExecIDs HostConfig GraphDriver Mounts Config NetworkSettings";
    assert_eq!(keys.join(" "), want);
    let found = &all[0];
    let dir = store.container_dir(&web.id);
    assert_eq!((&found["Path"], &found["Args"]), (&json!("/bin/entry point"), &json!(["-c", "echo \"hello\" there"])));
    let state = &found["State"];
    assert_eq!((&state["Status"], &state["Running"], &state["Pid"]), (&json!("running"), &json!(true), &json!(77)));
    assert_eq!(state["FinishedAt"], json!("0001-01-01T00:00:00Z"));
    assert_eq!(found["HostConfig"]["Binds"][0], json!("/etc:/x:ro"));
    assert_eq!(found["HostConfig"]["Runtime"], json!("runc"));
    assert_eq!(found["GraphDriver"]["Data"]["UpperDir"], json!(dir.join("upper")));
    assert_eq!(found["Mounts"][0]["Type"], json!("bind"));
    let volume = json!({
        "Type": "volume", "Name": "0", "Source": dir.join("volumes/0"), "Destination": "/data", "Driver": "local",
        "Mode": "", "RW": true, "Propagation": "",
    });
    assert_eq!(found["Mounts"][1], volume);
    assert_eq!((&found["Config"]["Tty"], &found["Config"]["Image"]), (&json!(true), &json!("app:1")));
    let shown = |format: &str| env.ok(["inspect", "-f", format, "web"]);
    assert_eq!(shown("{{.ID}} {{.Id}} {{.Name}}"), format!("{0} {0} /web\n", web.id));
    assert_eq!(
        shown("{{.State.Status}} {{.HostConfig.NetworkMode}} {{range .Mounts}}{{.Name}}{{end}}"),
        "running host 0\n"
    );
    assert_eq!(shown("{{json .HostConfig.Tmpfs}} {{index .Config.Labels \"b\"}}"), "{\"/tmp\":\"size=1m\"} 2\n");
    let output = env.fails(["inspect", "-f", "{{.State.Health}}", "web"]);
    assert!(output.ends_with("map has no entry for key \"Health\""), "{output}");
}

#[test]
fn inspect_prefers_containers_and_falls_back_to_images() {
    let (env, store) = create_store();
    let (web, held) = make(&store, "app", "app:1", 2, |_| {});
    drop(held);
    let name = |args: &[&str]| env.ok(["inspect", "-f", "{{.Id}}"].iter().chain(args)).trim().to_owned();
    assert_eq!(name(&["app"]), web.id);
    assert_eq!(name(&["app:1"]), web.image.id.to_string());
    assert_eq!(name(&["--type", "container", web.short(), "/app"]), format!("{0}\n{0}", web.id));
    assert_eq!(name(&["--type=image", "app:1"]), web.image.id.to_string());
    let sizes = env.ok(["inspect", "-s", "-f", "{{.SizeRw}} {{.SizeRootFs}}", "app"]);
    assert_eq!(sizes, format!("0 {}\n", web.image.size()));
    let output = env.fails(["inspect", "--type", "volume", "app"]);
    assert_eq!(output, "Error: unknown type: \"volume\": must be one of \"container\", \"image\"");
}

#[test]
fn an_image_of_a_container_is_not_removed() {
    let (env, store) = create_store();
    let (web, held) = make(&store, "web", "app:1", 2, |_| {});
    std::fs::write(store.container_dir(&web.id).join("upper/file"), [0; 5]).unwrap();
    held.set_state(&running()).unwrap();
    let usage =
        || env.ok(["system", "df", "--format", "{{.Type}} {{.TotalCount}} {{.Active}} {{.Size}} {{.Reclaimable}}"]);
    assert_eq!(usage().lines().nth(1), Some("Containers 1 1 5B 0B (0%)"));
    let tree = env.ok(["images", "--tree"]);
    assert!(tree.lines().any(|line| line.starts_with("app:1") && line.ends_with('U')), "{tree}");
    drop(held);
    assert_eq!(usage().lines().nth(1), Some("Containers 1 0 5B 5B (100%)"));
    env.ok(["image", "prune", "-af"]);
    assert_eq!(env.ok(["images", "--format", "{{.Repository}}"]), "app\n");
    let (user, image) = (web.short(), web.image.id.short());
    let output = env.fails(["rmi", "app:1"]);
    let want = format!(
        "Error: conflict: unable to remove repository reference \"app:1\" (must force) - \
         container {user} is using its referenced image {image}"
    );
    assert_eq!(output, want);
    assert_eq!(env.ok(["rmi", "-f", "app:1"]).lines().count(), 2);
    assert_eq!(env.ok(["system", "gc"]), "Total reclaimed space: 0B\n");
    assert!(web.image.layers.iter().all(|layer| store.has_layer(&layer.diff_id)));
    assert_eq!(env.ok(["ps", "-a", "--format", "{{.Image}}"]), "app:1\n");
}

#[test]
fn a_damaged_container_record_blocks_no_command_and_repair_sets_it_aside() {
    let (env, store) = create_store();
    let (web, held) = make(&store, "web", "app:1", 2, |_| {});
    drop(held);
    let dir = store.container_dir(&web.id);
    std::fs::write(dir.join("upper/file"), "kept").unwrap();
    std::fs::write(dir.join("record.json"), "{\"id\":").unwrap();
    let record = dir.join("record.json").display().to_string();
    let warns = |args: &[&str]| {
        let output = run(&mut env.command(args));
        assert_eq!((output.code, output.stderr.lines().count()), (0, 1), "{args:?}: {output:#?}");
        assert!(output.stderr.contains(&record), "{args:?}: {output:#?}");
        assert!(output.stderr.contains("plyfs system fsck --repair"), "{args:?}: {output:#?}");
        output.stdout
    };
    // Its image is unknown, so every layer that it may need is kept.
    let deleted = warns(&["rmi", "-f", "app:1"]);
    assert_eq!(deleted.matches("Deleted: ").count(), 1, "its layers stay: {deleted}");
    let other = env.root().join("tmp/1-0");
    std::fs::create_dir(&other).unwrap();
    assert!(warns(&["system", "gc"]).contains("Deleted partial download: "));
    assert!(!other.exists());
    assert!(web.image.layers.iter().all(|layer| store.has_layer(&layer.diff_id)));
    warns(&["image", "prune", "-af"]);
    warns(&["ps"]);
    let found = run(&mut env.command(["system", "fsck"]));
    assert_eq!((found.code, found.stdout.lines().count()), (1, 1), "{found:#?}");
    assert!(found.stdout.contains(&record), "{found:#?}");
    let mended = env.ok(["system", "fsck", "--repair"]);
    assert!(mended.contains(&record) && mended.contains("record.json.damaged"), "{mended}");
    assert!(mended.ends_with("(repaired)\n"), "{mended}");
    assert_eq!(std::fs::read_to_string(dir.join("record.json.damaged")).unwrap(), "{\"id\":");
    // Only the record kept the layers; nothing refers to them now.
    let collected = env.run(["system", "gc"]);
    assert_eq!((collected.code, collected.stderr.as_str()), (0, ""));
    assert!(!web.image.layers.iter().any(|layer| store.has_layer(&layer.diff_id)));
    assert_eq!(std::fs::read_to_string(dir.join("upper/file")).unwrap(), "kept");
    let checked = env.run(["system", "fsck"]);
    assert_eq!((checked.code, checked.stdout.as_str()), (0, ""));
}

#[test]
fn a_damaged_record_of_a_running_container_is_not_set_aside() {
    let (env, store) = create_store();
    let (web, held) = make(&store, "web", "app:1", 2, |_| {});
    let record = store.container_dir(&web.id).join("record.json");
    std::fs::write(&record, "").unwrap();
    let found = run(&mut env.command(["system", "fsck", "--repair"]));
    assert_eq!(found.code, 1, "{found:#?}");
    assert!(found.stdout.contains("is running"), "{found:#?}");
    assert!(record.exists());
    drop(held);
}

#[test]
fn a_damaged_container_state_blocks_no_command_and_repair_rebuilds_it() {
    let (env, store) = create_store();
    let (web, held) = make(&store, "web", "app:1", 2, |_| {});
    let state = store.container_dir(&web.id).join("state.json");
    std::fs::write(&state, "{").unwrap();
    // While the container runs, no other process may write its state.
    let output = env.fails(["rmi", "-f", &web.image.id.to_string()]);
    assert!(output.contains("is being used by running container"), "{output}");
    let found = run(&mut env.command(["system", "fsck", "--repair"]));
    assert!(found.code == 1 && found.stdout.contains("is running"), "{found:#?}");
    drop(held);
    eventually("it runs no more", || !containers::is_held(&store, &web.id));
    let listed = run(&mut env.command(["ps", "-a", "--format", "{{.Names}} {{.Status}}"]));
    assert_eq!(listed.stdout, "web Exited (137)\n", "{listed:#?}");
    assert!(listed.stderr.contains(state.to_str().unwrap()) && listed.stderr.lines().count() == 1, "{listed:#?}");
    assert_eq!(env.run(["rmi", "-f", "app:1"]).code, 0);
    assert_eq!(env.run(["system", "gc"]).code, 0);
    let mended = env.ok(["system", "fsck", "--repair"]);
    assert!(mended.contains(state.to_str().unwrap()) && mended.ends_with("(repaired)\n"), "{mended}");
    assert_eq!(containers::state(&store, &web.id).unwrap().status, Status::Exited);
    assert_eq!(env.ok(["system", "fsck"]), "");
}

#[test]
fn a_damaged_mount_or_pull_record_keeps_every_layer_and_blocks_no_command() {
    let (env, store) = create_store();
    let image = store.resolve("app:1").unwrap();
    let layers = || image.layers.iter().filter(|layer| store.has_layer(&layer.diff_id)).count();
    let guard = plyfs::store::mounts::register(&store, &image.id, "app:1", "/nowhere".as_ref(), false).unwrap();
    let info = guard.dir().join("info.json");
    std::fs::write(&info, "[").unwrap();
    let removed = run(&mut env.command(["rmi", "-f", "app:1"]));
    assert_eq!((removed.code, removed.stderr.lines().count()), (0, 1), "{removed:#?}");
    assert!(removed.stderr.contains(info.to_str().unwrap()), "{removed:#?}");
    assert_eq!(layers(), 2);
    let found = run(&mut env.command(["system", "fsck", "--repair"]));
    assert!(found.code == 1 && found.stdout.contains(info.to_str().unwrap()), "{found:#?}");
    guard.release().unwrap();
    let session = plyfs::store::Session::begin(&store).unwrap();
    session.intend(&plyfs::store::Intent::default()).unwrap();
    let intent = session.temp_path("x").with_file_name("intent.json");
    std::fs::write(&intent, "").unwrap();
    let collected = run(&mut env.command(["system", "gc"]));
    assert_eq!(collected.code, 0, "{collected:#?}");
    assert!(collected.stderr.contains(intent.to_str().unwrap()), "{collected:#?}");
    assert_eq!(layers(), 2);
    drop(session);
    assert!(env.ok(["system", "gc"]).contains("Deleted layer: "));
}
