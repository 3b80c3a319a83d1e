//! Host capabilities that shape the runtime spec: kernel version, architecture, cgroup version, capability bounding
//! set.

use super::capabilities::Set;
use std::fs;
use std::io;
use std::path::Path;

/// Host properties. They depend on the process and its namespaces, and must be detected where the runtime is called.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HostInfo {
    /// The host name.
    pub hostname: String,
    /// The kernel version, major and minor.
    pub kernel: (u32, u32),
    /// The architecture, a value of [`std::env::consts::ARCH`].
    pub architecture: &'static str,
    /// The capability bounding set.
    pub capabilities: Set,
    /// Whether /sys/fs/cgroup is the unified hierarchy (cgroup v2).
    pub unified_cgroups: bool,
    /// The CPUs' thermal_throttle directories, which are masked: they are a side channel on other programs' activity.
    pub thermal: Vec<String>,
}

/// `CGROUP2_SUPER_MAGIC` of statfs(2).
const CGROUP2: rustix::fs::FsWord = 0x6367_7270;
const PROCESSORS: &str = "/sys/devices/system/cpu";

impl HostInfo {
    /// Detects the properties of this host.
    pub fn detect() -> io::Result<HostInfo> {
        let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
        let cgroup = rustix::fs::statfs("/sys/fs/cgroup");
        Ok(HostInfo {
            hostname: fs::read_to_string("/proc/sys/kernel/hostname")?.trim_end().to_owned(),
            kernel: version(&release),
            architecture: std::env::consts::ARCH,
            capabilities: bounding(&fs::read_to_string("/proc/self/status")?),
            unified_cgroups: cgroup.is_ok_and(|found| found.f_type == CGROUP2),
            thermal: thermal(Path::new(PROCESSORS)),
        })
    }
}

/// Parses a kernel release: `6.18.44-x` is (6, 18). Unparsable numbers are 0.
fn version(release: &str) -> (u32, u32) {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// Parses the bounding set, `CapBnd`, of /proc/self/status.
fn bounding(status: &str) -> Set {
    let line = status.lines().find_map(|line| line.strip_prefix("CapBnd:"));
    Set(line.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0))
}

fn thermal(processors: &Path) -> Vec<String> {
    let names = fs::read_dir(processors).into_iter().flatten().flatten().map(|entry| entry.file_name());
    let mut found: Vec<String> = names
        .filter_map(|name| name.into_string().ok())
        .filter(|name| name.strip_prefix("cpu").is_some_and(|n| n.bytes().all(|b| b.is_ascii_digit())))
        .filter(|name| processors.join(name).join("thermal_throttle").exists())
        .map(|name| format!("{PROCESSORS}/{name}/thermal_throttle"))
        .collect();
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_and_masks_are_read() {
        assert_eq!(version("6.18.44-fc-v595\n"), (6, 18));
        assert_eq!(version("4.8-rc1"), (4, 8));
        assert_eq!(version("odd"), (0, 0));
        let status = "Name:\tcat\nCapEff:\t0000000000000000\nCapBnd:\t00000000a80425fb\n";
        assert_eq!(bounding(status), Set(0xa804_25fb));
        assert_eq!(bounding("Name:\tcat\n"), Set(0));
    }

    #[test]
    fn host_properties_are_detected() {
        let host_info = HostInfo::detect().unwrap();
        assert!(host_info.kernel >= (3, 0) && !host_info.hostname.contains('\n'), "{host_info:?}");
    }

    #[test]
    fn thermal_throttle_directories_are_found() {
        let dir = tempfile::tempdir().unwrap();
        for path in ["cpu1/thermal_throttle", "cpu0/thermal_throttle", "cpu2", "cpufreq/thermal_throttle"] {
            fs::create_dir_all(dir.path().join(path)).unwrap();
        }
        let wanted = ["cpu0", "cpu1"].map(|cpu| format!("/sys/devices/system/cpu/{cpu}/thermal_throttle"));
        assert_eq!(thermal(dir.path()), wanted);
        assert!(thermal(&dir.path().join("none")).is_empty());
    }
}
