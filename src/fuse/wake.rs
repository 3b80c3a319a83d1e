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
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

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

/// How long after a request the next is waited for awake, at least.
const LINGER: Duration = Duration::from_millis(1);
const PM_QOS: &str = "/dev/cpu_dma_latency";
/// Has `none` where idle processors know one way to wait only, which PM QoS cannot change.
const IDLE_DRIVER: &str = "/sys/devices/system/cpu/cpuidle/current_driver";

/// The largest latency, which asks for nothing.
const NO_DEMAND: i32 = i32::MAX;

enum Method {
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
    fn open(waking: Waking, device: OwnedFd) -> io::Result<Option<Method>> {
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

    fn switch(&mut self, on: bool) -> io::Result<()> {
        match self {
            Method::Latency(file) => file.write_all(&(if on { 0 } else { NO_DEMAND }).to_ne_bytes()),
            Method::Poll(device) => sys::set_nonblocking(device, on),
        }
    }
}

/// Counts requests for the thread that switches.
#[derive(Default)]
pub struct Wake {
    requests: AtomicU64,
    awake: AtomicBool,
    ended: AtomicBool,
    governor: std::sync::OnceLock<std::thread::Thread>,
}

impl Wake {
    /// A request has come. Called at the start of each; costs one counter while requests flow.
    pub fn touch(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        if !self.awake.load(Ordering::Relaxed)
            && let Some(governor) = self.governor.get()
        {
            self.awake.store(true, Ordering::Relaxed);
            governor.unpark();
        }
    }

    fn govern(&self, method: &mut Method) -> io::Result<()> {
        while !self.ended.load(Ordering::Acquire) {
            if !self.awake.load(Ordering::Relaxed) {
                std::thread::park();
                continue;
            }
            method.switch(true)?;
            let mut seen = self.requests.load(Ordering::Relaxed);
            loop {
                std::thread::sleep(LINGER);
                let now = self.requests.load(Ordering::Relaxed);
                if now == std::mem::replace(&mut seen, now) {
                    break;
                }
            }
            method.switch(false)?;
            // A request between the last look and this store finds the worker about to sleep, and costs one wake-up.
            self.awake.store(false, Ordering::Relaxed);
        }
        Ok(())
    }
}

/// The governing thread; ends with this value.
pub struct Governor {
    wake: Arc<Wake>,
    thread: Option<JoinHandle<()>>,
}

impl Governor {
    /// Starts it, if there is anything to govern. `device` is a descriptor of the FUSE connection.
    pub fn start(wake: &Arc<Wake>, waking: Waking, device: OwnedFd) -> io::Result<Governor> {
        let mut governor = Governor { wake: wake.clone(), thread: None };
        if let Some(mut method) = Method::open(waking, device)? {
            let wake = wake.clone();
            let run = move || {
                if let Err(e) = wake.govern(&mut method) {
                    tracing::warn!("wake-ups are no longer kept cheap: {e}");
                }
            };
            let thread = std::thread::Builder::new().name("plyfs-wake".into()).spawn(run)?;
            // The cell is this connection's own and set once.
            governor.wake.governor.set(thread.thread().clone()).ok();
            governor.thread = Some(thread);
        }
        Ok(governor)
    }
}

impl Drop for Governor {
    fn drop(&mut self) {
        self.wake.ended.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            thread.join().ok();
        }
    }
}
