//! Container commands: create, run, exec, attach, copy, list, inspect, stop, remove; and `chroot` and `bundle`.

pub(super) mod attach;
pub(super) mod bundle;
pub(super) mod changes;
pub(super) mod chroot;
pub(super) mod commit;
pub(super) mod cp;
pub(super) mod create;
pub(super) mod exec;
pub(super) mod inspect;
pub(super) mod lifecycle;
pub(super) mod logs;
pub(super) mod ps;
pub(super) mod run;
