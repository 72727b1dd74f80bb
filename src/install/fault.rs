//! Where tests make the machine fail: every call that changes a disk passes here first. Nothing in a normal build.

#[cfg(not(test))]
#[inline(always)]
pub(super) fn point() -> rustix::io::Result<()> {
    Ok(())
}

#[cfg(not(test))]
#[inline(always)]
pub(super) fn removal_point() -> rustix::io::Result<()> {
    Ok(())
}

#[cfg(test)]
pub(super) use injected::{point, removal_point};

#[cfg(test)]
pub(super) mod injected {
    use std::cell::Cell;

    use rustix::io::Errno;
    use rustix::process::{Signal, getpid, kill_process};

    #[derive(Clone, Copy)]
    pub(in crate::install) enum Fault {
        /// As SIGKILL or an OOM kill would.
        Kill,
        /// From then on every call fails so, except removals: a full disk stays full.
        Fail(Errno),
    }

    thread_local! {
        static ARMED: Cell<Option<(u32, Fault)>> = const { Cell::new(None) };
        static PASSED: Cell<u32> = const { Cell::new(0) };
    }

    /// The fault happens in this thread after `calls` more calls; `None` disarms.
    pub(in crate::install) fn arm(fault: Option<(u32, Fault)>) {
        ARMED.set(fault);
        PASSED.set(0);
    }

    /// Calls in this thread since [`arm`].
    pub(in crate::install) fn passed() -> u32 {
        PASSED.get()
    }

    pub(in crate::install) fn point() -> rustix::io::Result<()> {
        PASSED.set(PASSED.get() + 1);
        match ARMED.get() {
            Some((0, Fault::Kill)) => {
                kill_process(getpid(), Signal::KILL)?;
                Err(Errno::INTR)
            }
            Some((0, Fault::Fail(errno))) => Err(errno),
            Some((calls, fault)) => {
                ARMED.set(Some((calls - 1, fault)));
                Ok(())
            }
            None => Ok(()),
        }
    }

    pub(in crate::install) fn removal_point() -> rustix::io::Result<()> {
        match ARMED.get() {
            Some((_, Fault::Fail(_))) => Ok(()),
            _ => point(),
        }
    }
}
