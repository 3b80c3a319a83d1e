//! `inspect` of a container: its description in Docker's JSON format.

use crate::cli::container::ps::written;
use crate::cli::image::document::{CONFIG_LISTS, CONFIG_MAPS, CONFIG_TEXTS, record};
use crate::store::Store;
use crate::store::containers::{self, Bind, Container, Network, State, Status};
use crate::template::Data;
use serde_json::{Map, Value, json};
use std::path::Path;
use std::rc::Rc;

/// Go's zero time.
const NEVER: &str = "0001-01-01T00:00:00Z";

/// The JSON description of a container; with `SizeRw` and `SizeRootFs` if `sizes` is set.
pub(in crate::cli) fn describe(store: &Store, container: &Container, sizes: bool) -> anyhow::Result<Value> {
    let state = containers::state(store, &container.id)?;
    let dir = store.container_dir(&container.id);
    // As in Docker: empty for a file that does not exist yet.
    let file = |name: &str| Some(dir.join(name)).filter(|path| path.exists()).map(|path| path.display().to_string());
    let words = container.command();
    let (path, args) = words.split_first().map_or(("", &[][..]), |(path, args)| (&path[..], args));
    let (upper, work) = store.container_upper(&container.id);
    let mut all = json!({
        "Id": container.id,
        "Created": container.created,
        "Path": path,
        "Args": args,
        "State": describe_state(&state),
        "Image": container.image.id,
        "ResolvConfPath": file("resolv.conf").unwrap_or_default(),
        "HostnamePath": file("hostname").unwrap_or_default(),
        "HostsPath": file("hosts").unwrap_or_default(),
        "LogPath": dir.join("log").display().to_string(),
        "Name": format!("/{}", container.name),
        "RestartCount": 0,
        "Driver": "plyfs",
        "Platform": "linux",
        "MountLabel": "",
        "ProcessLabel": "",
        "AppArmorProfile": "",
        "ExecIDs": null,
        "HostConfig": host_config(container, &state),
        "GraphDriver": {
            "Data": {
                "Engine": if container.host.engine.is_empty() { "fuse" } else { &container.host.engine },
                "UpperDir": upper.display().to_string(),
                "WorkDir": work.display().to_string(),
            },
            "Name": "plyfs",
        },
        "Mounts": container.host.binds.iter().map(|bind| mount(bind, &dir)).collect::<Vec<_>>(),
        "Config": config(container),
        "NetworkSettings": network_settings(container),
    });
    if let (true, Some(all)) = (sizes, all.as_object_mut()) {
        let written = written(store, container);
        all.insert("SizeRw".into(), json!(written));
        all.insert("SizeRootFs".into(), json!(written + container.image.size()));
    }
    Ok(all)
}

fn describe_state(state: &State) -> Value {
    let moment = |text: &Option<String>| text.clone().unwrap_or_else(|| NEVER.into());
    json!({
        "Status": state.status.name(),
        "Running": state.status == Status::Running,
        "Paused": false,
        "Restarting": false,
        "OOMKilled": false,
        "Dead": false,
        "Pid": state.pid,
        "ExitCode": state.exit_code,
        "Error": state.error,
        "StartedAt": moment(&state.started),
        // As in Docker: reset when the container starts again.
        "FinishedAt": moment(&state.finished),
    })
}

fn network_name(container: &Container) -> &'static str {
    match container.host.network {
        Network::Host => "host",
        Network::None => "none",
    }
}

fn host_config(container: &Container, state: &State) -> Value {
    let host = &container.host;
    let or_null = |list: Vec<String>| if list.is_empty() { Value::Null } else { json!(list) };
    let bind = |bind: &Bind| format!("{}:{}{}", bind.source, bind.target, if bind.read_only { ":ro" } else { "" });
    let mut all = json!({
        "Binds": or_null(host.binds.iter().map(bind).collect()),
        "NetworkMode": network_name(container),
        "PortBindings": {},
        "RestartPolicy": { "Name": "no", "MaximumRetryCount": 0 },
        "AutoRemove": host.auto_remove,
        "CapAdd": or_null(host.cap_add.clone()),
        "CapDrop": or_null(host.cap_drop.clone()),
        "Privileged": false,
        "ReadonlyRootfs": host.read_only,
        "Runtime": host.runtime.as_deref().unwrap_or(&state.runtime),
    });
    if let (false, Some(all)) = (host.tmpfs.is_empty(), all.as_object_mut()) {
        let tmpfs = host.tmpfs.iter().map(|tmpfs| (tmpfs.target.clone(), json!(tmpfs.options)));
        all.insert("Tmpfs".into(), Value::Object(tmpfs.collect()));
    }
    all
}

/// A mount of the container: an anonymous volume or a bind mount.
fn mount(bind: &Bind, dir: &Path) -> Value {
    let source = Path::new(&bind.source);
    let volume = source.strip_prefix(dir.join("volumes")).ok().map(|name| name.display().to_string());
    let mut all = json!({ "Type": if volume.is_some() { "volume" } else { "bind" } });
    if let Some(all) = all.as_object_mut() {
        let mut put = |name: &str, value: Value| drop(all.insert(name.into(), value));
        if let Some(name) = &volume {
            put("Name", json!(name));
        }
        put("Source", json!(bind.source));
        put("Destination", json!(bind.target));
        if volume.is_some() {
            put("Driver", json!("local"));
        }
        put("Mode", json!(if bind.read_only { "ro" } else { "" }));
        put("RW", json!(!bind.read_only));
        put("Propagation", json!(if volume.is_some() { "" } else { "rprivate" }));
    }
    all
}

/// The container's config, with Docker's defaults for missing fields.
fn config(container: &Container) -> Value {
    let detached = container.host.detached;
    let Value::Object(mut all) = json!({
        "Hostname": container.id[..12],
        "Domainname": "",
        "User": "",
        "AttachStdin": false,
        "AttachStdout": !detached,
        "AttachStderr": !detached,
        "Tty": false,
        "OpenStdin": false,
        "StdinOnce": false,
        "Env": [],
        "Cmd": null,
        "Image": container.reference,
        "Volumes": null,
        "WorkingDir": "",
        "Entrypoint": null,
        "Labels": {},
    }) else {
        return Value::Null;
    };
    all.extend(container.config.clone());
    all.insert("Image".into(), json!(container.reference));
    Value::Object(all)
}

fn network_settings(container: &Container) -> Value {
    let network = json!({ "IPAMConfig": null, "MacAddress": "", "Gateway": "", "IPAddress": "", "IPPrefixLen": 0 });
    json!({
        "SandboxID": "",
        "SandboxKey": "",
        "Ports": {},
        "IPAddress": "",
        "IPPrefixLen": 0,
        "Gateway": "",
        "MacAddress": "",
        "Networks": Map::from_iter([(network_name(container).to_owned(), network)]),
    })
}

/// Converts a description to template data with Docker's Go types.
pub(in crate::cli) fn typed(container: &Value) -> Data {
    let mut all = record(container, "container.InspectResponse", &[], &["ExecIDs"], &[]);
    for (name, value) in &mut all.fields {
        let part = &container[&*name];
        *value = match name.as_str() {
            "Config" => {
                Data::Struct(Rc::new(record(part, "container.Config", CONFIG_TEXTS, CONFIG_LISTS, CONFIG_MAPS)))
            }
            "HostConfig" => {
                let lists = ["Binds", "CapAdd", "CapDrop"];
                Data::Struct(Rc::new(record(part, "container.HostConfig", &[], &lists, &["Tmpfs"])))
            }
            "State" => Data::Struct(Rc::new(record(part, "container.State", &[], &[], &[]))),
            "GraphDriver" => Data::Struct(Rc::new(record(part, "storage.DriverData", &[], &[], &[]))),
            "NetworkSettings" => Data::Struct(Rc::new(record(part, "container.NetworkSettings", &[], &[], &[]))),
            "Mounts" => {
                let of =
                    |mount| Data::Struct(Rc::new(record(mount, "container.MountPoint", &["Name", "Driver"], &[], &[])));
                Data::List(Rc::new(part.as_array().into_iter().flatten().map(of).collect()))
            }
            _ => continue,
        };
    }
    // The field `Id` of the JSON is `ID` in Go.
    all.empty.push(("ID".into(), Data::from(&container["Id"])));
    Data::Struct(Rc::new(all))
}
