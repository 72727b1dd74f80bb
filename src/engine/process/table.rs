//! The kernel's process table, as `/proc` shows it (proc_pid_stat(5)).

use std::collections::BTreeMap;
use std::fs;
use std::io;

use rustix::io::Errno;

/// Process ids of one reading of the table.
pub(in crate::engine) type Table = BTreeMap<i32, Process>;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::engine) struct Process {
    pub(in crate::engine) pid: i32,
    pub(in crate::engine) parent: i32,
    pub(in crate::engine) session: i32,
    /// Clock ticks since boot. With the pid, it names a process for good.
    pub(in crate::engine) begun: u64,
    /// Ended with all its threads, and its parent has not waited for it. While a thread still gives back the memory, of a
    /// GPU too, it is not dead.
    pub(in crate::engine) dead: bool,
    pub(in crate::engine) name: String,
}

pub(in crate::engine) fn read(pid: i32) -> io::Result<Process> {
    let stat = fs::read(format!("/proc/{pid}/stat"))?;
    parse(pid, &stat).ok_or_else(|| io::Error::other(format!("/proc/{pid}/stat is not understood")))
}

pub(in crate::engine) fn all() -> io::Result<Table> {
    let mut table = Table::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        match read(pid) {
            Ok(process) => drop(table.insert(pid, process)),
            // Gone since the directory was read, or somebody else's on a system that hides those (`hidepid`).
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied) => {}
            Err(error) if error.raw_os_error() == Some(Errno::SRCH.raw_os_error()) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(table)
}

/// Why the table does not tell of this process's children: then none of them could be found again.
pub(super) fn check() -> Result<(), &'static str> {
    let Ok(status) = fs::read_to_string("/proc/self/status") else {
        return Err("is not mounted, or does not show this process");
    };
    let is_own = is_own(&status, rustix::process::getpid().as_raw_nonzero().get());
    if is_own { Ok(()) } else { Err("is of another process namespace") }
}

/// `NSpid` has a number for each namespace from that of the table's mount down to the process's own
/// (proc_pid_status(5)); kernels without it have `Pid` only.
fn is_own(status: &str, pid: i32) -> bool {
    let line = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
    let numbers = line("NSpid:").or_else(|| line("Pid:")).unwrap_or("");
    numbers.split_ascii_whitespace().eq([pid.to_string()])
}

fn parse(pid: i32, stat: &[u8]) -> Option<Process> {
    // The name stands in parentheses and may hold any byte, parentheses too.
    let open = stat.iter().position(|byte| *byte == b'(')?;
    let close = stat.iter().rposition(|byte| *byte == b')')?;
    let name = String::from_utf8_lossy(stat.get(open + 1..close)?).into_owned();
    let fields: Vec<&str> = std::str::from_utf8(&stat[close + 1..]).ok()?.split_ascii_whitespace().collect();
    Some(Process {
        pid,
        dead: matches!(*fields.first()?, "Z" | "X") && matches!(*fields.get(17)?, "0" | "1"),
        parent: fields.get(1)?.parse().ok()?,
        session: fields.get(3)?.parse().ok()?,
        begun: fields.get(19)?.parse().ok()?,
        name,
    })
}

/// Those that descend from `root`, are not in its session, and did not begin before `since`. What a child that stayed in
/// the session has started is that child's own.
pub(super) fn below(table: &Table, root: &Process, since: u64) -> Vec<Process> {
    let outside = |process: &&Process| process.session != root.session && process.begun >= since;
    table.values().filter(outside).filter(|process| descends(table, process, root)).cloned().collect()
}

fn descends(table: &Table, process: &Process, root: &Process) -> bool {
    let mut parent = process.parent;
    // A reading is not of one moment: parents could form a ring.
    for _ in 0..table.len() {
        if parent == root.pid {
            return true;
        }
        match table.get(&parent) {
            Some(process) if process.session != root.session => parent = process.parent,
            _ => return false,
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn process(pid: i32, parent: i32, session: i32) -> Process {
        Process { pid, parent, session, begun: 100, dead: false, name: "p".to_owned() }
    }

    fn table(processes: &[Process]) -> Table {
        processes.iter().map(|process| (process.pid, process.clone())).collect()
    }

    fn pids(table: &Table, root: i32, since: u64) -> Vec<i32> {
        below(table, &table[&root], since).iter().map(|process| process.pid).collect()
    }

    #[test]
    fn a_name_with_parentheses_and_blanks_does_not_shift_the_fields() {
        let rest = "S 10 11 12 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 3 0 4711 999 5 18446744073709551615";
        for name in ["python", "VLLM::EngineCor", "a) S 1 2 (b", ""] {
            let parsed = parse(42, format!("42 ({name}) {rest}").as_bytes()).unwrap();
            let expected =
                Process { pid: 42, parent: 10, session: 12, begun: 4711, dead: false, name: name.to_owned() };
            assert_eq!(parsed, expected);
        }
    }

    #[test]
    fn a_process_is_dead_when_its_last_thread_is() {
        let dead = |state: &str, threads: u32| {
            let stat = format!("42 (x) {state} 10 11 12 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 {threads} 0 4711 999");
            parse(42, stat.as_bytes()).unwrap().dead
        };
        assert!(dead("Z", 1) && dead("X", 0));
        assert!(!dead("Z", 2) && !dead("S", 1) && !dead("D", 1));
    }

    #[test]
    fn a_table_that_knows_us_by_another_number_too_is_of_another_namespace() {
        assert!(is_own("Name:\tx\nPid:\t42\nNSpid:\t42\n", 42));
        assert!(is_own("Name:\tx\nPid:\t42\n", 42));
        // The outer number may be the inner one by chance.
        assert!(!is_own("Pid:\t42\nNSpid:\t42\t42\n", 42));
        assert!(!is_own("Pid:\t4711\nNSpid:\t4711\t42\n", 42));
        assert!(!is_own("Pid:\t4711\n", 42) && !is_own("", 42));
    }

    #[test]
    #[expect(clippy::print_stderr, reason = "a test that is skipped says so")]
    fn this_process_is_in_its_own_table() {
        if let Err(why) = check() {
            return eprintln!("skipped: /proc {why}");
        }
        let pid = rustix::process::getpid().as_raw_nonzero().get();
        let me = &all().unwrap()[&pid];
        // 0 where the parent is in another namespace, as of what is started in a container from outside.
        assert_eq!(me.parent, i32::try_from(std::os::unix::process::parent_id()).unwrap());
        assert_eq!((me.pid, me.dead), (pid, false));
        assert!(me.begun > 0 && !me.name.is_empty());
    }

    #[test]
    fn the_engine_is_what_descends_from_us_outside_our_session() {
        let table = table(&[
            process(1, 0, 1),
            process(10, 1, 10),
            // The leader, a child, and a child that has left the session.
            process(20, 10, 20),
            process(21, 20, 20),
            process(22, 21, 22),
            // Adopted when their parents ended.
            process(23, 10, 20),
            process(24, 10, 24),
            // Our own helper with what it has started, and somebody else's session.
            process(30, 10, 10),
            process(31, 30, 31),
            process(32, 31, 31),
            process(40, 1, 40),
        ]);
        assert_eq!(pids(&table, 10, 0), [20, 21, 22, 23, 24]);
    }

    #[test]
    fn what_began_before_the_engine_is_not_of_it() {
        let mut old = process(24, 10, 24);
        old.begun = 99;
        let table = table(&[process(10, 1, 10), old, process(25, 10, 25)]);
        assert_eq!(pids(&table, 10, 100), [25]);
    }

    proptest! {
        /// Also of tables that no kernel would show, such as rings of parents.
        #[test]
        fn a_search_ends_and_takes_neither_the_root_nor_its_session(parents in prop::collection::vec((0..12i32, 0..4i32), 12)) {
            let processes: Vec<Process> =
                parents.iter().zip(1..).map(|((parent, session), pid)| process(pid, *parent, *session)).collect();
            let table = table(&processes);
            for found in pids(&table, 1, 0) {
                prop_assert!(found != 1 && table[&found].session != table[&1].session);
            }
        }
    }
}
