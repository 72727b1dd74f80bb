use std::io::{BufRead, BufReader};
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

/// Holds the lock, says so, and hangs.
#[expect(clippy::print_stdout, reason = "the parent waits for this line")]
pub(super) fn hold_until_killed() {
    let root = CacheRoot::open(std::env::var(child::ROOT).unwrap().as_ref()).unwrap();
    let _lock = lock(&root);
    println!("\nholding");
    loop {
        std::thread::park();
    }
}

fn hanging_holder(root: &CacheRoot) -> child::Killed {
    let mut holder = child::Killed(child::of_role("hold-lock").env(child::ROOT, root.path()).spawn().unwrap());
    let lines = BufReader::new(holder.0.stdout.take().unwrap()).lines();
    assert!(lines.map_while(Result::ok).any(|line| line == "holding"));
    holder
}

#[test]
fn a_waiter_gives_up_at_its_deadline_and_knows_who_hangs() {
    let (_dir, root) = root();
    let holder = hanging_holder(&root);
    for wait in [Duration::ZERO, Duration::from_millis(50)] {
        match root.lock(Instant::now() + wait) {
            Err(LockError::TimedOut { holder: Some(pid) }) => assert_eq!(pid, holder.0.id()),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_dead_holder_frees_the_lock_and_the_file_stays() {
    let (_dir, root) = root();
    let holder = hanging_holder(&root);
    let path = root.path().join(layout::CONTROL).join(layout::LOCK);
    let inode = path.metadata().unwrap().ino();
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| root.lock(Instant::now() + Duration::from_secs(60)));
        drop(holder);
        waiter.join().unwrap().unwrap();
    });
    assert_eq!(path.metadata().unwrap().ino(), inode);
}

#[test]
fn threads_that_install_the_same_artifact_take_turns_and_one_of_them_does_it() {
    let (_dir, root) = root();
    let fixture = small();
    let (inside, did) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let lock = root.lock(Instant::now() + Duration::from_secs(60)).unwrap();
                assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "two at once");
                let installation = Installation::begin(&root, &lock, fixture.admitted.clone(), LIMITS).unwrap();
                let needed: Vec<usize> = installation.needed().ones().collect();
                needed.iter().for_each(|index| installation.chunk(*index, &fixture.chunks[*index]).unwrap());
                let done = installation.commit().unwrap();
                did.fetch_add(usize::from(!done.installed.is_empty()), Ordering::SeqCst);
                inside.fetch_sub(1, Ordering::SeqCst);
            });
        }
    });
    assert_eq!(did.load(Ordering::SeqCst), 1);
    assert_eq!(visible(root.path()), fixture.paths());
}
