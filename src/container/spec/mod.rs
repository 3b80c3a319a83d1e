//! The OCI runtime spec: config.json, made from the container's record, its root file system and the host's
//! capabilities, with Docker's defaults.
//!
//! Only [`HostInfo::detect`] and [`bound`] read the host; all other functions convert data.

mod capabilities;
mod host;
mod mounts;
mod process;
mod seccomp;

use super::User;
use super::userns::Mapping;
use crate::store::containers::{Container, Network};
use crate::sys;
use oci_spec::OciSpecError;
use oci_spec::runtime::{
    Linux, LinuxDeviceCgroup, LinuxDeviceType, LinuxNamespace, LinuxNamespaceType, LinuxResources, Root, Spec,
};
use std::collections::HashMap;
use std::io;
use std::path::Path;

pub use capabilities::Set;
pub use host::HostInfo;
pub use mounts::{Bound, bound, mountpoints};
pub use process::{Exec, PATH, exec, hostname, process};

/// The input of a runtime spec.
#[derive(Clone, Copy)]
pub struct SpecInput<'a> {
    /// The container's record.
    pub container: &'a Container,
    /// The process's credentials, resolved in the root file system.
    pub user: &'a User,
    /// The path of the root file system, absolute or relative to the bundle's directory.
    pub root: &'a Path,
    /// The bind mounts returned by [`bound`].
    pub binds: &'a [Bound],
    /// The ID mapping, if the runtime is called in a user namespace; it creates no other one then.
    pub mapping: Option<&'a Mapping>,
    /// Whether the process has a terminal.
    pub terminal: bool,
    /// The host's properties.
    pub host_info: &'a HostInfo,
}

/// Why a spec could not be made. Messages are one line.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// An unknown capability.
    #[error("invalid {option}: unknown capability: \"CAP_{name}\"")]
    UnknownCapability {
        /// `CapAdd` or `CapDrop`.
        option: &'static str,
        /// Its name, without `CAP_`.
        name: String,
    },
    /// A capability that is not in this process's bounding set.
    #[error(
        "invalid {option}: capability not supported by your kernel or not available in the current environment: \"CAP_{name}\""
    )]
    MissingCapability {
        /// `CapAdd` or `CapDrop`.
        option: &'static str,
        /// Its name, without `CAP_`.
        name: String,
    },
    /// An unknown tmpfs option.
    #[error("Invalid tmpfs option [{0:?}]")]
    TmpfsOption(String),
    /// Neither the image nor the user gives a command.
    #[error("no command specified")]
    NoCommand,
    /// The working directory is not absolute.
    #[error("the working directory '{0}' is invalid, it needs to be an absolute path")]
    Directory(String),
    /// An ID that is not mapped in the user namespace.
    #[error("cannot run as user {uid}:{gid}: {why}")]
    Nobody {
        /// The user ID.
        uid: u32,
        /// The primary group ID.
        gid: u32,
        /// Why.
        why: String,
    },
    /// The source of a bind mount cannot be examined.
    #[error("cannot mount {path}: {why}", why = sys::describe(.why))]
    Source {
        /// The path on the host.
        path: String,
        /// Why.
        why: io::Error,
    },
    /// A part of the spec is incomplete.
    #[error("cannot create config.json for the runtime: {0}")]
    Document(#[from] OciSpecError),
}

/// The version of 2020, which all current runtimes support.
const VERSION: &str = "1.0.2";
/// Masked paths of /proc and /sys, which expose or change host-wide state.
const MASKED: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];
/// The devices that may be opened (major, minor): zero, null, urandom, random, tty, console. The runtime adds
/// pseudoterminals.
const DEVICES: [(i64, i64); 6] = [(1, 5), (1, 3), (1, 9), (1, 8), (5, 0), (5, 1)];

/// Makes the runtime spec, config.json.
pub fn document(input: &SpecInput) -> Result<Spec, SpecError> {
    let mut root = Root::default();
    root.set_path(input.root.to_path_buf()).set_readonly(Some(input.container.host.read_only));
    let mut spec = Spec::default();
    spec.set_version(VERSION.to_owned())
        .set_root(Some(root))
        .set_hostname(Some(hostname(input.container, &input.host_info.hostname)))
        .set_process(Some(process(input)?))
        .set_mounts(Some(mounts::mounts(input)?))
        .set_linux(Some(linux(input)?));
    Ok(spec)
}

fn linux(input: &SpecInput) -> Result<Linux, SpecError> {
    let mut masked: Vec<String> = MASKED.iter().map(|path| (*path).to_owned()).collect();
    masked.extend(input.host_info.thermal.iter().cloned());
    if mounts::shows_cgroups(input) {
        masked.push(mounts::CGROUP.to_owned());
    }
    let mut linux = Linux::default();
    linux
        .set_namespaces(Some(namespaces(input)))
        .set_seccomp(Some(seccomp::filter(input.host_info, process::chosen(input)?)?))
        .set_masked_paths(Some(masked))
        .set_readonly_paths(Some(READ_ONLY.iter().map(|path| (*path).to_owned()).collect()))
        .set_sysctl(Some(settings(input)))
        .set_resources(None)
        .set_devices(None);
    // An unprivileged user cannot create cgroups.
    if input.mapping.is_none() {
        let mut resources = LinuxResources::default();
        resources.set_devices(Some(devices()));
        linux.set_resources(Some(resources)).set_cgroups_path(Some(Path::new("/plyfs").join(&input.container.id)));
    }
    Ok(linux)
}

fn namespaces(input: &SpecInput) -> Vec<LinuxNamespace> {
    use LinuxNamespaceType::{Cgroup, Ipc, Mount, Network as Net, Pid, Uts};
    let mut kinds = vec![Mount, Uts, Pid, Ipc];
    if input.container.host.network == Network::None {
        kinds.push(Net);
    }
    if input.host_info.unified_cgroups {
        kinds.push(Cgroup);
    }
    let namespace = |kind| {
        let mut namespace = LinuxNamespace::default();
        namespace.set_typ(kind);
        namespace
    };
    kinds.into_iter().map(namespace).collect()
}

/// Sysctls of a container's own network namespace that allow low ports and ping without privileges.
fn settings(input: &SpecInput) -> HashMap<String, String> {
    let mut settings = HashMap::new();
    if input.container.host.network == Network::None {
        if input.host_info.kernel >= (4, 11) {
            settings.insert("net.ipv4.ip_unprivileged_port_start".to_owned(), "0".to_owned());
        }
        // In a user namespace the kernel rejects a range with unmapped groups.
        if input.mapping.is_none() {
            settings.insert("net.ipv4.ping_group_range".to_owned(), "0 2147483647".to_owned());
        }
    }
    settings
}

fn devices() -> Vec<LinuxDeviceCgroup> {
    let rule = |allow: bool, device: Option<(i64, i64)>| {
        let mut rule = LinuxDeviceCgroup::default();
        rule.set_allow(allow).set_access(Some("rwm".to_owned()));
        if let Some((major, minor)) = device {
            rule.set_typ(Some(LinuxDeviceType::C)).set_major(Some(major)).set_minor(Some(minor));
        }
        rule
    };
    let mut rules = vec![rule(false, None)];
    rules.extend(DEVICES.iter().map(|device| rule(true, Some(*device))));
    // /dev/fuse: mounting FUSE needs privileges that a container lacks.
    rules.push(rule(false, Some((10, 229))));
    rules
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;
    use crate::store::Image;
    use crate::store::containers::{Bind, Host, Tmpfs};
    use serde_json::{Value, json};
    use std::fs;

    /// A typical host.
    pub(super) fn host_info() -> HostInfo {
        HostInfo {
            hostname: "box".into(),
            kernel: (6, 18),
            architecture: "x86_64",
            capabilities: Set((1 << 41) - 1),
            unified_cgroups: false,
            thermal: vec!["/sys/devices/system/cpu/cpu0/thermal_throttle".into()],
        }
    }

    fn container(config: Value, host: Host) -> Container {
        let Value::Object(config) = config else { panic!("no map: {config}") };
        Container {
            id: format!("{:064x}", 0xabc),
            name: "web".into(),
            image: Image {
                id: Digest::of(b"image"),
                manifest: None,
                indexes: vec![],
                others: vec![],
                layers: vec![],
                tags: vec![],
                digests: vec![],
                created: None,
                pulled: String::new(),
            },
            reference: "a:1".into(),
            created: String::new(),
            config,
            host,
        }
    }

    /// The owner of what a [`SpecInput`] borrows.
    struct Case {
        container: Container,
        user: User,
        binds: Vec<Bound>,
        mapping: Option<Mapping>,
        terminal: bool,
        host_info: HostInfo,
    }

    impl Case {
        fn new(config: Value, host: Host) -> Case {
            let user = User { uid: 0, gid: 0, groups: vec![0], home: "/root".into() };
            let container = container(config, host);
            Case { container, user, binds: vec![], mapping: None, terminal: false, host_info: host_info() }
        }

        /// One that runs `sh`.
        fn plain(host: Host) -> Case {
            Case::new(json!({"Cmd": ["sh"]}), host)
        }

        fn in_user_namespace(self, mapping: Mapping) -> Case {
            Case { mapping: Some(mapping), ..self }
        }

        fn input(&self) -> SpecInput<'_> {
            SpecInput {
                container: &self.container,
                user: &self.user,
                root: Path::new("rootfs"),
                binds: &self.binds,
                mapping: self.mapping.as_ref(),
                terminal: self.terminal,
                host_info: &self.host_info,
            }
        }

        fn document(&self) -> Value {
            serde_json::to_value(document(&self.input()).unwrap()).unwrap()
        }

        fn error(&self) -> String {
            document(&self.input()).unwrap_err().to_string()
        }

        fn mount(&self, target: &str) -> Option<Value> {
            let document = self.document();
            let mounts = document["mounts"].as_array().unwrap().clone();
            mounts.into_iter().find(|mount| mount["destination"] == target)
        }

        fn targets(&self) -> Vec<String> {
            let document = self.document();
            let targets = document["mounts"].as_array().unwrap().iter();
            targets.map(|mount| mount["destination"].as_str().unwrap().to_owned()).collect()
        }
    }

    fn ranges() -> Mapping {
        Mapping::Ranges { last_user: 65_536, last_group: 65_536 }
    }

    fn own() -> Mapping {
        Mapping::Own { why: "/etc/subuid has no IDs for user 7".into() }
    }

    fn without_network() -> Host {
        Host { network: Network::None, ..Host::default() }
    }

    fn to(source: &str, target: &str) -> Bind {
        Bind { source: source.into(), target: target.into(), read_only: false }
    }

    fn has(list: &Value, item: &str) -> bool {
        list.as_array().unwrap().iter().any(|other| other == item)
    }

    #[test]
    fn the_spec_has_dockers_defaults() {
        let document = Case::plain(Host::default()).document();
        assert_eq!(document["ociVersion"], "1.0.2");
        assert_eq!(document["root"], json!({"path": "rootfs", "readonly": false}));
        assert_eq!(document["hostname"], "box");
        let process = &document["process"];
        assert_eq!(process["args"], json!(["sh"]));
        assert_eq!(process["cwd"], "/");
        assert_eq!(process["user"], json!({"uid": 0, "gid": 0, "umask": 18, "additionalGids": [0]}));
        assert_eq!((&process["noNewPrivileges"], &process["terminal"]), (&json!(false), &json!(false)));
        assert!(process.get("rlimits").is_none() && process["capabilities"].get("ambient").is_none());
        let linux = &document["linux"];
        let kinds: Vec<&Value> = linux["namespaces"].as_array().unwrap().iter().map(|one| &one["type"]).collect();
        assert_eq!(kinds, ["mount", "uts", "pid", "ipc"]);
        assert_eq!(linux["cgroupsPath"], format!("/plyfs/{:064x}", 0xabc));
        let devices = linux["resources"]["devices"].as_array().unwrap();
        assert_eq!(devices[0], json!({"allow": false, "access": "rwm"}));
        assert_eq!(devices[2], json!({"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rwm"}));
        assert_eq!(devices.len(), 8);
        assert!(has(&linux["maskedPaths"], "/proc/kcore") && has(&linux["readonlyPaths"], "/proc/sys"));
        assert!(has(&linux["maskedPaths"], "/sys/devices/system/cpu/cpu0/thermal_throttle"));
        assert_eq!(linux["sysctl"], json!({}));
        let seccomp = linux["seccomp"]["syscalls"].as_array().unwrap();
        assert!(has(&seccomp[0]["names"], "chroot") && !has(&seccomp[0]["names"], "mount"));
        let order = ["/proc", "/dev", "/dev/pts", "/sys", "/sys/fs/cgroup", "/dev/mqueue", "/dev/shm"];
        assert_eq!(Case::plain(Host::default()).targets(), order);
    }

    #[test]
    fn arguments_and_environment_come_from_image_and_user() {
        let args = |config: Value| Case::new(config, Host::default()).document()["process"]["args"].clone();
        assert_eq!(args(json!({"Entrypoint": ["/e", "-x"], "Cmd": ["a"]})), json!(["/e", "-x", "a"]));
        assert_eq!(args(json!({"Entrypoint": ["/e"], "Cmd": null})), json!(["/e"]));
        assert_eq!(args(json!({"Cmd": "one word"})), json!(["one word"]));
        let none = Case::new(json!({"Entrypoint": null}), Host::default());
        assert_eq!(none.error(), "no command specified");
        let there = Case::new(json!({"Cmd": ["a"], "WorkingDir": "/srv"}), Host::default());
        assert_eq!(there.document()["process"]["cwd"], "/srv");
        let relative = Case::new(json!({"Cmd": ["a"], "WorkingDir": "srv"}), Host::default());
        assert_eq!(relative.error(), "the working directory 'srv' is invalid, it needs to be an absolute path");
    }

    #[test]
    fn variables_have_docker_s_order_and_the_last_word_counts() {
        let env = |case: &Case| case.document()["process"]["env"].clone();
        let path = format!("PATH={}", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        let plain = Case::plain(Host::default());
        assert_eq!(env(&plain), json!([path, "HOSTNAME=box", "HOME=/root"]));
        let config = json!({"Cmd": ["a"], "Env": ["PATH=/x", "A=1", "A=2=3", "HOSTNAME", "NONE", "HOME=/h", "E="]});
        let case = Case { terminal: true, ..Case::new(config, Host::default()) };
        assert_eq!(env(&case), json!(["PATH=/x", "TERM=xterm", "A=2=3", "HOME=/h", "E="]));
        assert_eq!(case.document()["process"]["terminal"], true);
    }

    #[test]
    fn its_name_is_its_own_unless_the_network_is_not() {
        let name = |config: Value, host: Host| hostname(&container(config, host), "box");
        assert_eq!(name(json!({}), Host::default()), "box");
        assert_eq!(name(json!({"Hostname": ""}), without_network()), "000000000000");
        assert_eq!(name(json!({"Hostname": "db"}), Host::default()), "db");
        let case = Case::plain(without_network());
        assert_eq!(case.document()["hostname"], "000000000000");
        assert!(has(&case.document()["process"]["env"], "HOSTNAME=000000000000"));
    }

    #[test]
    fn rights_are_roots() {
        let sets = |case: &Case| case.document()["process"]["capabilities"].clone();
        let size = |set: &Value| set.as_array().unwrap().len();
        let root = sets(&Case::plain(Host::default()));
        assert_eq!((size(&root["bounding"]), size(&root["permitted"]), size(&root["effective"])), (14, 14, 14));
        assert_eq!(size(&root["inheritable"]), 0);
        let user = User { uid: 1000, gid: 50, groups: vec![50, 4], home: "/home/ann".into() };
        let ann = Case { user, ..Case::plain(Host { cap_add: vec!["net_admin".into()], ..Host::default() }) };
        let rights = sets(&ann);
        assert_eq!((size(&rights["bounding"]), size(&rights["permitted"]), size(&rights["effective"])), (15, 0, 0));
        assert!(has(&rights["bounding"], "CAP_NET_ADMIN"));
        assert_eq!(ann.document()["process"]["user"]["additionalGids"], json!([50, 4]));
        let admin = Case::plain(Host { cap_add: vec!["SYS_ADMIN".into()], ..Host::default() });
        assert!(has(&admin.document()["linux"]["seccomp"]["syscalls"][0]["names"], "mount"));
        let wrong = Case::plain(Host { cap_drop: vec!["x".into()], ..Host::default() });
        assert_eq!(wrong.error(), "invalid CapDrop: unknown capability: \"CAP_X\"");
    }

    #[test]
    fn a_network_of_its_own_can_be_used_without_rights() {
        let case = Case::plain(without_network());
        let linux = case.document()["linux"].clone();
        assert!(linux["namespaces"].as_array().unwrap().contains(&json!({"type": "network"})));
        assert_eq!(linux["sysctl"]["net.ipv4.ping_group_range"], "0 2147483647");
        let inside = Case::plain(without_network()).in_user_namespace(ranges()).document()["linux"].clone();
        assert_eq!(inside["sysctl"], json!({"net.ipv4.ip_unprivileged_port_start": "0"}));
    }

    #[test]
    fn control_groups_are_as_this_machine_has_them() {
        let mut case = Case::plain(Host::default());
        case.host_info.unified_cgroups = true;
        let cgroup = json!({"type": "cgroup"});
        assert!(case.document()["linux"]["namespaces"].as_array().unwrap().contains(&cgroup));
        let case = case.in_user_namespace(ranges());
        assert!(case.mount("/sys/fs/cgroup").is_some());
        assert!(case.document()["linux"].get("resources").is_none());
        let old = Case::plain(Host::default()).in_user_namespace(ranges());
        assert!(old.mount("/sys/fs/cgroup").is_none(), "nobody but root may mount one");
        assert!(old.document()["linux"].get("cgroupsPath").is_none());
    }

    #[test]
    fn the_spec_has_no_privileged_settings_in_a_user_namespace() {
        let plain = Case::plain(Host::default());
        assert_eq!(plain.mount("/sys").unwrap()["type"], "sysfs");
        let options = |case: &Case, target: &str| case.mount(target).unwrap()["options"].clone();
        assert!(has(&options(&plain, "/dev/pts"), "gid=5"));
        let case = Case::plain(Host::default()).in_user_namespace(ranges());
        let sys = json!({"destination": "/sys", "type": "bind", "source": "/sys",
            "options": ["nosuid", "noexec", "nodev", "ro", "rbind", "rprivate"]});
        assert_eq!(case.mount("/sys").unwrap(), sys);
        let masked = |case: &Case| has(&case.document()["linux"]["maskedPaths"], "/sys/fs/cgroup");
        assert!(masked(&case) && !masked(&plain), "what of it is delegated could be changed there");
        assert!(has(&options(&case, "/dev/pts"), "gid=5"));
        assert!(!case.document()["linux"]["namespaces"].as_array().unwrap().contains(&json!({"type": "user"})));
        let alone = Case::plain(without_network()).in_user_namespace(own());
        assert_eq!(alone.mount("/sys").unwrap()["type"], "sysfs");
        assert!(!has(&options(&alone, "/dev/pts"), "gid=5"));
        assert_eq!(alone.document()["process"]["user"], json!({"uid": 0, "gid": 0, "umask": 18}));
    }

    #[test]
    fn an_unmapped_user_is_an_error_with_the_reason() {
        let who = |uid: u32, gid: u32, groups: &[u32], mapping: Mapping| {
            let user = User { uid, gid, groups: groups.to_vec(), home: "/".into() };
            Case { user, ..Case::plain(Host::default()) }.in_user_namespace(mapping)
        };
        let alone = "cannot run as user 1:0: only root is mapped: /etc/subuid has no IDs for user 7";
        assert_eq!(who(1, 0, &[0], own()).error(), alone);
        assert_eq!(who(0, 1, &[1], own()).error(), alone.replace("1:0", "0:1"));
        who(65_536, 65_536, &[65_536], ranges()).document();
        let far = "cannot run as user 65537:0: the ID exceeds your range in /etc/subuid";
        assert_eq!(who(65_537, 0, &[0], ranges()).error(), far);
        let group = "cannot run as user 0:0: a group ID exceeds your range in /etc/subgid";
        assert_eq!(who(0, 0, &[0, 70_000], ranges()).error(), group);
    }

    #[test]
    fn binds_are_looked_at_and_sorted() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        fs::write(path("resolv.conf"), "").unwrap();
        fs::write(path("hosts"), "").unwrap();
        fs::write(path("file"), "").unwrap();
        fs::create_dir(path("data")).unwrap();
        let deep = Bind { read_only: true, ..to(&path("file"), "/srv//x/./y/../file/") };
        let host = Host {
            binds: vec![deep, to(&path("data"), "/srv"), to(&path("file"), "/etc/hosts")],
            tmpfs: vec![Tmpfs { target: "/run/".into(), options: String::new() }],
            ..Host::default()
        };
        let mut case = Case::plain(host);
        let volumes = [to(&path("data"), "/var/lib"), to(&path("data"), "/srv"), to(&path("data"), "/run")];
        case.binds = bound(&case.container, dir.path(), &volumes).unwrap();
        let own = case.targets().split_off(7);
        assert_eq!(own, ["/srv", "/run", "/etc/resolv.conf", "/var/lib", "/etc/hosts", "/srv/x/file"]);
        let deep = case.mount("/srv/x/file").unwrap();
        assert_eq!(deep["options"], json!(["rbind", "rprivate", "ro"]));
        assert_eq!((&deep["type"], &deep["source"]), (&json!("bind"), &json!(path("file"))));
        assert_eq!(case.mount("/etc/hosts").unwrap()["source"], path("file"), "the user's wins");
        assert_eq!(case.mount("/run").unwrap()["type"], "tmpfs");
        let points = |case: &Case| mountpoints(&case.input());
        let wanted = [
            ("/proc", true),
            ("/dev", true),
            ("/sys", true),
            ("/srv", true),
            ("/run", true),
            ("/etc/resolv.conf", false),
            ("/var/lib", true),
            ("/etc/hosts", false),
        ];
        assert_eq!(points(&case), wanted.map(|(path, is_dir)| (path.to_owned(), is_dir)));
        case.container.host.binds = vec![to(&path("gone"), "/x")];
        let said = bound(&case.container, dir.path(), &[]).unwrap_err().to_string();
        assert_eq!(said, format!("cannot mount {}: No such file or directory", path("gone")));
    }

    #[test]
    fn bind_mounts_keep_locked_flags_in_a_user_namespace() {
        let bind = Bind { read_only: true, ..to("/x", "/x") };
        let bound = Bound { bind, is_dir: true, options: vec!["ro", "nosuid", "relatime"] };
        let mut case = Case { binds: vec![bound], ..Case::plain(Host::default()) };
        let options = |case: &Case| case.mount("/x").unwrap()["options"].clone();
        assert_eq!(options(&case), json!(["rbind", "rprivate", "ro"]));
        case.mapping = Some(ranges());
        assert_eq!(options(&case), json!(["rbind", "rprivate", "ro", "nosuid", "relatime"]));
        case.binds[0].bind.read_only = false;
        assert_eq!(options(&case), json!(["rbind", "rprivate", "ro", "nosuid", "relatime"]), "it can only be read");
    }

    #[test]
    fn the_users_dev_takes_the_place_of_all_in_it() {
        let bound = |target: &str| Bound { bind: to("/x", target), is_dir: true, options: vec![] };
        let case = Case { binds: vec![bound("/dev")], ..Case::plain(Host::default()) };
        assert_eq!(case.targets(), ["/proc", "/sys", "/sys/fs/cgroup", "/dev"]);
        let case = Case { binds: vec![bound("/dev/shm")], ..Case::plain(Host::default()) };
        assert_eq!(case.mount("/dev/shm").unwrap()["type"], "bind");
        assert_eq!(case.targets().len(), 7);
    }

    #[test]
    fn tmpfs_has_docker_s_options_and_the_users() {
        let options = |given: &str| {
            let tmpfs = vec![Tmpfs { target: "/t".into(), options: given.into() }];
            let case = Case::plain(Host { tmpfs, ..Host::default() });
            document(&case.input()).map(|_| case.mount("/t").unwrap()["options"].clone()).map_err(|e| e.to_string())
        };
        assert_eq!(options("").unwrap(), json!(["noexec", "nosuid", "nodev", "rprivate"]));
        assert_eq!(options("defaults,").unwrap(), options("").unwrap());
        let mixed = options("rw,size=1m,exec,size=2m,mode=1770,ro").unwrap();
        assert_eq!(mixed, json!(["nosuid", "nodev", "rprivate", "exec", "size=2m", "mode=1770", "ro"]));
        assert_eq!(options("sync=1").unwrap_err(), "Invalid tmpfs option [\"sync=1\"]");
        assert_eq!(options("bogus").unwrap_err(), "Invalid tmpfs option [\"bogus\"]");
    }

    #[test]
    fn a_root_that_can_only_be_read_has_such_files_too() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("hosts"), "").unwrap();
        let mut case = Case::plain(Host { read_only: true, ..Host::default() });
        case.binds = bound(&case.container, dir.path(), &[]).unwrap();
        assert_eq!(case.document()["root"]["readonly"], true);
        assert!(has(&case.mount("/etc/hosts").unwrap()["options"], "ro"));
        assert!(!has(&case.mount("/dev/shm").unwrap()["options"], "ro"));
    }

    #[test]
    fn an_exec_overrides_the_containers_process() {
        let mut case = Case::new(json!({"Cmd": ["a"], "Env": ["A=1"], "WorkingDir": "/w"}), Host::default());
        case.terminal = true;
        case.user = User { uid: 5, gid: 6, groups: vec![6], home: "/h".into() };
        let (args, env) = (["ls".to_owned()], ["A=2".to_owned()]);
        let asked = Exec { args: &args, env: &env, directory: None };
        let made = serde_json::to_value(exec(&case.input(), &asked).unwrap()).unwrap();
        assert_eq!((&made["args"], &made["cwd"], &made["terminal"]), (&json!(["ls"]), &json!("/w"), &json!(true)));
        assert!(has(&made["env"], "A=2") && has(&made["env"], "TERM=xterm") && has(&made["env"], "HOME=/h"));
        assert_eq!(made["user"]["uid"], 5);
        assert_eq!(made["capabilities"]["bounding"].as_array().unwrap().len(), 14);
        let there = exec(&case.input(), &Exec { directory: Some("/x"), ..asked }).unwrap();
        assert_eq!(there.cwd(), Path::new("/x"));
        assert!(matches!(exec(&case.input(), &Exec { args: &[], ..asked }), Err(SpecError::NoCommand)));
    }

    #[test]
    fn malformed_config_values_are_ignored() {
        let config = json!({"Cmd": ["a", 7, null], "Env": {"A": 1}, "WorkingDir": 3, "Hostname": [], "Entrypoint": {}});
        let document = Case::new(config, Host::default()).document();
        assert_eq!((&document["process"]["args"], &document["process"]["cwd"]), (&json!(["a"]), &json!("/")));
    }
}
