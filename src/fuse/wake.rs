//! Keeping wake-ups cheap while requests flow.
//!
//! A request is a few microseconds of work, but waking an idle processor to do it, and another to take the answer,
//! costs ten times that on a virtual machine, where an idle processor has left the machine. So while requests flow, and
//! for a moment after, either idle processors are asked to wait awake, or the worker does not sleep between requests.
//! Both burn only time that would have been idle, and none once requests stop.

use crate::sys;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;

/// What is done against the cost of wake-ups.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Waking {
    /// The best of the others that this process may do here.
    #[default]
    Auto,
    /// Ask for idle processors to stay awake (PM QoS, `/dev/cpu_dma_latency`): the cheapest in processor time, for it
    /// saves the virtual machine's exits, but root's alone.
    Latency,
    /// The worker asks again at once when there is no request yet.
    Poll,
    /// Nothing.
    Off,
}

const PM_QOS: &str = "/dev/cpu_dma_latency";
/// Has `none` where idle processors know one way to wait only, which PM QoS cannot change.
const IDLE_DRIVER: &str = "/sys/devices/system/cpu/cpuidle/current_driver";

/// The largest latency, which asks for nothing.
const NO_DEMAND: i32 = i32::MAX;

/// What a process can do about it.
pub enum Method {
    Latency(File),
    Poll(OwnedFd),
}

impl Waking {
    /// What [`Waking::Auto`] comes to for this process on this machine.
    pub fn settle(self) -> Waking {
        let heeded = || std::fs::read_to_string(IDLE_DRIVER).is_ok_and(|driver| driver.trim() != "none");
        match self {
            Waking::Auto if heeded() && Method::latency().is_ok() => Waking::Latency,
            Waking::Auto => Waking::Poll,
            chosen => chosen,
        }
    }
}

impl Method {
    /// `None` if nothing is to be done; an error if this process may not do what was asked for.
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

    /// Whether it may stay on while workers and callers share a processor. A polling worker would take it from its caller.
    pub fn suits_one_processor(&self) -> bool {
        matches!(self, Method::Latency(_))
    }

    /// Begins with it, or ends it.
    pub fn switch(&mut self, on: bool) -> io::Result<()> {
        match self {
            Method::Latency(file) => file.write_all(&(if on { 0 } else { NO_DEMAND }).to_ne_bytes()),
            Method::Poll(device) => sys::set_nonblocking(device, on),
        }
    }
}
