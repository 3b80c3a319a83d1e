//! Wake-up latency: PM QoS or polling, which keep wake-ups cheap while requests arrive.
//!
//! A request takes a few microseconds of work, but waking an idle processor to handle it, and another to receive the
//! reply, costs ten times that on a virtual machine, where an idle processor has exited to the hypervisor. So while
//! requests arrive, and shortly after, either PM QoS keeps idle processors from sleeping, or the worker polls. Both
//! use only time that would have been idle, and none once requests stop.

use crate::sys;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;

/// Wake-up policy (mount option `wake=`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Waking {
    /// The best policy that is available to this process on this machine.
    #[default]
    Auto,
    /// Keep idle processors awake through PM QoS (`/dev/cpu_dma_latency`): the cheapest in processor time, since it
    /// saves exits of the virtual machine, but requires root.
    Latency,
    /// The worker polls for requests.
    Poll,
    /// Leave wake-ups to the kernel.
    Off,
}

const PM_QOS: &str = "/dev/cpu_dma_latency";
/// The cpuidle driver; `none` if there is a single idle state, so that PM QoS has no effect.
const IDLE_DRIVER: &str = "/sys/devices/system/cpu/cpuidle/current_driver";

/// The largest latency, which is no constraint.
const NO_DEMAND: i32 = i32::MAX;

/// A wake-up policy in use, with its descriptor.
pub enum Method {
    Latency(File),
    Poll(OwnedFd),
}

impl Waking {
    /// Replaces [`Waking::Auto`] by the policy for this process on this machine.
    pub fn resolve(self) -> Waking {
        let has_idle_states = || std::fs::read_to_string(IDLE_DRIVER).is_ok_and(|driver| driver.trim() != "none");
        match self {
            Waking::Auto if has_idle_states() && Method::latency().is_ok() => Waking::Latency,
            Waking::Auto => Waking::Poll,
            chosen => chosen,
        }
    }
}

impl Method {
    /// Opens a policy; `None` for [`Waking::Off`]. An error if this process may not use PM QoS.
    pub fn open(waking: Waking, device: OwnedFd) -> io::Result<Option<Method>> {
        match waking {
            Waking::Latency => Method::latency().map(Some),
            Waking::Auto | Waking::Poll => Ok(Some(Method::Poll(device))),
            Waking::Off => Ok(None),
        }
    }

    fn latency() -> io::Result<Method> {
        let open = || {
            let mut file = File::options().write(true).open(PM_QOS)?;
            file.write_all(&NO_DEMAND.to_ne_bytes())?;
            Ok(Method::Latency(file))
        };
        open().map_err(|e: io::Error| io::Error::other(format!("wake=latency needs {PM_QOS}: {}", sys::describe(&e))))
    }

    /// Whether the policy is useful while worker and caller share a processor: a polling worker would preempt its
    /// caller.
    pub fn suits_one_processor(&self) -> bool {
        matches!(self, Method::Latency(_))
    }

    /// Enables or disables the policy.
    pub fn switch(&mut self, on: bool) -> io::Result<()> {
        match self {
            Method::Latency(file) => file.write_all(&(if on { 0 } else { NO_DEMAND }).to_ne_bytes()),
            Method::Poll(device) => sys::set_nonblocking(device, on),
        }
    }
}
