//! Whatever is wrong around it, `warmd exec` starts the engine, and says what is wrong and what to do.

mod hangs;

use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::process::{Signal, geteuid, kill_process};
use warmd::caches::{Fact, Known};

use super::exec::{KEY, Pod, engine, family, program, python, served};
use super::harness::cluster::{Cluster, DEADLINE, Node};
use super::harness::engine::{Entry, FakeEngine, Step, own_proc, skipped};

/// One that needs no caches.
fn server() -> FakeEngine {
    FakeEngine::new(vec![Step::Serve { unavailable: 0 }])
}

/// One that is started, and that is all.
fn code_7() -> FakeEngine {
    FakeEngine::new(vec![Step::Exit(7)])
}

/// A cluster in which node `a` has published what [`engine`] compiled, and an agent `b`.
async fn published() -> (Cluster, Node, Node) {
    let cluster = Cluster::start().await;
    let (a, b) = (cluster.agent("a").await, cluster.agent("b").await);
    let cold = Pod::new(&cluster, "a").run(&engine(), "vllm-aot 59af47c66413: published").await;
    assert_eq!(cold.code, Some(0), "{}", cold.stderr);
    (cluster, a, b)
}

/// Below which a pod's caches are.
fn root(pod: &Pod) -> PathBuf {
    pod.dir.path().join(".cache/vllm")
}

fn make(directory: &Path) {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).unwrap();
}

fn succeeds(words: &[&str]) -> bool {
    let status = Command::new(words[0]).args(&words[1..]).stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

/// Words before a command that give it namespaces of its own; `None` where that is not allowed.
fn unshare(kinds: &[&'static str]) -> Option<Vec<&'static str>> {
    let found = [&["unshare"][..], &["unshare", "--user", "--map-root-user"]].into_iter().find_map(|words| {
        let words = [words, kinds].concat();
        succeeds(&[&words[..], &["true"]].concat()).then_some(words)
    });
    if found.is_none() {
        skipped(&format!("`unshare {}` is not allowed here", kinds.join(" ")));
    }
    found
}

/// The pod's caches are on a file system of their own, which `script` mounts on `$1`.
fn on_mount(pod: &mut Pod, script: &str) -> bool {
    let Some(words) = unshare(&["--mount"]) else { return false };
    make(&root(pod));
    let script = format!("{script} && shift && exec \"$@\"");
    pod.within = words.into_iter().map(str::to_owned).collect();
    pod.within.extend(["sh", "-c", &script, "sh", root(pod).to_str().unwrap()].map(str::to_owned));
    true
}

/// The engine becomes ready with nothing installed, and what is `told` is on standard error.
async fn starts_cold(pod: &Pod, told: &[&str]) {
    let ran = pod.run(&server(), "warmd: ready after").await;
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    for told in told {
        assert!(ran.stderr.contains(told), "`{told}` in {}", ran.stderr);
    }
    let installed = |name| family(&ran, name)["installed"].as_u64();
    assert_eq!((installed("vllm-aot"), installed("modelinfos")), (Some(0), Some(0)), "{}", ran.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn into_caches_of_another_user_nothing_is_installed() {
    if !own_proc() {
        return;
    }
    if !geteuid().is_root() {
        return skipped("only root can give directories away");
    }
    let (cluster, _a, _b) = published().await;
    let pod = Pod::new(&cluster, "b");
    for family in ["torch_compile_cache/torch_aot_compile", "modelinfos"] {
        let directory = root(&pod).join(family);
        make(&directory);
        std::os::unix::fs::chown(directory, Some(65_534), None).unwrap();
    }
    starts_cold(&pod, &["torch_aot_compile` belongs to user 65534, we are user 0: use a directory of our own"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn into_caches_that_cannot_be_written_nothing_is_installed() {
    if !own_proc() {
        return;
    }
    let (cluster, _a, _b) = published().await;
    let mut pod = Pod::new(&cluster, "b");
    if !geteuid().is_root() {
        make(&root(&pod));
        std::fs::set_permissions(root(&pod), PermissionsExt::from_mode(0o555)).unwrap();
    } else if !on_mount(&mut pod, "mount -t tmpfs -o ro tmpfs \"$1\"") {
        return;
    }
    starts_cold(
        &pod,
        &["vllm-aot: cold: ", "mount it writable, or set WARMD_CACHE_ROOT", "nothing will be quarantined"],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn into_caches_that_are_there_and_read_only_nothing_is_installed() {
    if !own_proc() {
        return;
    }
    let (cluster, _a, _b) = published().await;
    let mut pod = Pod::new(&cluster, "b");
    let script = "mount -t tmpfs -o mode=700 tmpfs \"$1\" && mkdir -m 700 -p \"$1/torch_compile_cache/torch_aot_compile\" \
                  && mount -o remount,bind,ro \"$1\"";
    if on_mount(&mut pod, script) {
        starts_cold(&pod, &["is on a read-only file system: mount it writable"]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_disk_without_room_beside_the_reserve_nothing_is_installed() {
    if !own_proc() {
        return;
    }
    let (cluster, _a, _b) = published().await;
    let pod = Pod::new(&cluster, "b").with("--reserve-bytes", &u64::MAX.to_string());
    starts_cold(&pod, &["vllm-aot: cold: no-space: no room in ", "make some, or lower --reserve-bytes"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_full_disk_nothing_is_installed_or_remembered() {
    if !own_proc() {
        return;
    }
    let (cluster, _a, _b) = published().await;
    let mut pod = Pod::new(&cluster, "b");
    let script =
        "mount -t tmpfs -o size=16k,mode=700 tmpfs \"$1\" && { head -c 64k /dev/zero >\"$1/full\" 2>/dev/null || :; }";
    if on_mount(&mut pod, script) {
        starts_cold(&pod, &["vllm-aot: cold: no-space: no room in ", "make some, or lower --reserve-bytes"]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_never_gets_ready_runs_on_and_publishes_nothing() {
    if !own_proc() {
        return;
    }
    let cluster = Cluster::start().await;
    let a = cluster.agent("a").await;
    let entry = Entry::Aot { key: KEY.to_owned(), rank: "rank_0_0".to_owned() };
    let engine = FakeEngine::new(vec![Step::Cache { root: "$VLLM_CACHE_ROOT".to_owned(), entry }]);
    let pod = Pod::new(&cluster, "a").with("--ready-timeout", "100ms");
    let ran = pod.run(&engine, "not ready within 100ms at ").await;
    // It was alive to be told: it ends by itself at SIGTERM.
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert!(ran.stderr.contains("nothing will be published. See --ready-url, --ready-timeout"), "{}", ran.stderr);
    assert!(ran.report.is_none());
    assert_eq!(a.client.status().await.unwrap().artifacts, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_interpreter_lacks_or_says_wrong_is_told_and_cannot_reach_the_terminal() {
    let cluster = Cluster::start().await;
    let _a = cluster.agent("a").await;
    let engine = code_7();
    let value = |text: &str| Known::Value(text.to_owned());
    for (known, told) in [
        (Known::Absent("no package".to_owned()), "python3 has no torch (no package): if that is not the engine's"),
        (
            Known::Failed("METADATA is damaged".to_owned()),
            "torch could not be read: METADATA is damaged; mend the package",
        ),
        (value("2.14\u{1b}[2J"), "torch could not be read: the value has control characters: 2.14\\u{1b}[2J; mend"),
        (value(&"2".repeat(1 << 16)), "torch could not be read: the value is longer than"),
    ] {
        let pod = Pod::new(&cluster, "a");
        python(pod.dir.path(), &[(Fact::Torch, known)]);
        let ran = pod.run(&engine, "\0").await;
        assert_eq!(ran.code, Some(7), "{}", ran.stderr);
        assert!(ran.stderr.contains(told) && ran.stderr.contains("--python"), "`{told}` in {}", ran.stderr);
        assert!(!ran.stderr.contains('\u{1b}'), "{}", ran.stderr);
    }
    let program = engine.program();
    let command = [program.to_str().unwrap(), "serve", "mo\u{1b}del"];
    let ran = Pod::new(&cluster, "a").follow(&command, |_, _| ()).await;
    assert_eq!(ran.code, Some(7), "{}", ran.stderr);
    assert!(ran.stderr.contains("model could not be read: the value has control characters: mo\\u{1b}del; mend the"));
    assert!(!ran.stderr.contains('\u{1b}'), "{}", ran.stderr);
}

#[test]
fn a_command_without_two_dashes_before_it_is_shown_where_they_belong() {
    for subcommand in ["exec", "doctor", "facts"] {
        let output =
            Command::new(env!("CARGO_BIN_EXE_warmd")).args([subcommand, "vllm", "serve", "m"]).output().unwrap();
        let told = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{told}");
        assert!(told.contains("the engine's command comes after `--`: `-- vllm ...`"), "{told}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn where_an_engine_cannot_be_watched_it_takes_the_place_of_warmd() {
    let Some(words) = unshare(&["--pid", "--fork"]) else { return };
    let cluster = Cluster::start().await;
    let _a = cluster.agent("a").await;
    let info = Entry::ModelInfo { class: "LlamaForCausalLM".to_owned() };
    let cache = Step::Cache { root: "$VLLM_CACHE_ROOT".to_owned(), entry: info };
    let engine = FakeEngine::new(vec![cache, Step::Exit(7)]);
    let mut pod = Pod::new(&cluster, "a");
    pod.within = words.into_iter().map(str::to_owned).collect();
    let ran = pod.run(&engine, "\0").await;
    assert_eq!(ran.code, Some(7), "{}", ran.stderr);
    assert!(ran.stderr.contains("/proc is of another process namespace; mount it in this container"), "{}", ran.stderr);
    assert!(root(&pod).join("modelinfos/LlamaForCausalLM.json").exists(), "it has the variables that were set for it");
    pod.within.extend(["env", "-u", "HOME"].map(str::to_owned));
    let ran = pod.follow(&["no-such-engine"], |_, _| ()).await;
    assert_eq!(ran.code, Some(1));
    assert!(ran.stderr.contains("`no-such-engine` was not found in PATH"), "{}", ran.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_family_with_too_many_files_is_left_alone_and_the_others_are_not() {
    if !own_proc() {
        return;
    }
    let cluster = Cluster::start().await;
    let _a = cluster.agent("a").await;
    let pod = Pod::new(&cluster, "a");
    let crowded = root(&pod).join("modelinfos");
    make(&crowded);
    // Names of a few files: file systems bound how many one may have.
    let mut file = PathBuf::new();
    for n in 0..=warmd::artifact::MAX_FILES {
        let name = crowded.join(format!("{n}.json"));
        if n % 30_000 == 0 {
            std::fs::write(&name, "{}").unwrap();
            file = name;
        } else {
            std::fs::hard_link(&file, name).unwrap();
        }
    }
    let ran = pod.run(&engine(), "vllm-aot 59af47c66413: published").await;
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let told = "modelinfos holds more than 200000 files and directories: remove what no engine needs";
    assert!(ran.stderr.contains(told), "{}", ran.stderr);
    assert!(ran.stderr.contains("nothing of it is proven or published"), "{}", ran.stderr);
    assert!(!ran.stderr.contains("modelinfos: published"), "{}", ran.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_that_is_half_written_after_the_quiet_time_is_published_when_it_is_whole() {
    if !own_proc() {
        return;
    }
    let cluster = Cluster::start().await;
    let (_a, _b) = (cluster.agent("a").await, cluster.agent("b").await);
    let pod = Pod::new(&cluster, "a");
    let go_on = pod.dir.path().join("go-on");
    let kernel = |path: &str| Step::Cache {
        root: "$TRITON_CACHE_DIR".to_owned(),
        entry: Entry::Silent { path: path.to_owned() },
    };
    let engine = FakeEngine::new(vec![
        kernel("WHOLE/launcher.so"),
        kernel("HALF/kernel.cubin"),
        Step::Serve { unavailable: 0 },
        Step::AwaitFile(go_on.clone()),
        kernel("HALF/launcher.so"),
    ]);
    // What each generation brings to another pod.
    let pulled = |into: &str| {
        let mut warm = Command::new(env!("CARGO_BIN_EXE_warmd"));
        warm.arg("exec").args(["--socket", cluster.config("b").local.socket.to_str().unwrap()]);
        warm.args(["--policy", cluster.policy_path().to_str().unwrap(), "--reserve-bytes", "0"]);
        warm.arg("--python").arg(pod.dir.path().join("python3")).arg("--cache-root").arg(cluster.path(into));
        warm.args(["--", "true"]);
        let output = warm.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let mut names: Vec<String> = ["WHOLE/launcher.so", "HALF/kernel.cubin", "HALF/launcher.so"]
            .into_iter()
            .filter(|name| cluster.path(into).join("triton").join(name).exists())
            .map(str::to_owned)
            .collect();
        names.sort();
        names
    };
    let mut generations = Vec::new();
    let command = served(&engine);
    let ran = pod.follow(&command, |line, pid| {
        if !line.contains("triton: published as generation") {
            return;
        }
        generations.push(pulled(&format!("pod-{}", generations.len())));
        match generations.len() {
            1 => std::fs::write(&go_on, "").unwrap(),
            _ => kill_process(pid, Signal::TERM).unwrap(),
        }
    });
    let ran = ran.await;
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let all = ["HALF/kernel.cubin", "HALF/launcher.so", "WHOLE/launcher.so"];
    assert_eq!(generations, [&all[2..], &all[..]], "{}", ran.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_installed_by_a_warmd_that_was_killed_is_suspect() {
    if !own_proc() {
        return;
    }
    let (cluster, _a, _b) = published().await;
    let pod = Pod::new(&cluster, "b");
    let command = served(&server());
    let ran = pod.follow(&command, |line, pid| {
        if line.contains("vllm-aot: warm: 1 entries installed") {
            kill_process(pid, Signal::KILL).unwrap();
        }
    });
    assert_eq!(ran.await.code, None);
    let record = std::fs::read_to_string(root(&pod).join(".warmd/starts.json")).unwrap();
    assert!(record.contains(KEY), "{record}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_doctor_names_what_is_wrong_and_the_way_out() {
    let dir = tempfile::tempdir().unwrap();
    let cache = dir.path().join("file");
    std::fs::write(&cache, "").unwrap();
    let answers = python(dir.path(), &[(Fact::Torch, Known::Absent("no package".to_owned()))]);
    let hangs = program(&dir.path().join("hangs"), "exec sleep 1000");
    for (python, timeout, told) in [
        (&answers, "10s", &["has no torch (no package)", "file is no directory: move it away", "no agent answers"][..]),
        (&hangs, "200ms", &["hangs did not end within 200ms; give it more time"]),
    ] {
        let mut doctor = tokio::process::Command::new(env!("CARGO_BIN_EXE_warmd"));
        doctor
            .env_clear()
            .env("HOME", dir.path())
            .arg("doctor")
            .args(["--socket", "/nowhere"])
            .arg("--python")
            .arg(python);
        doctor.arg("--cache-root").arg(&cache).args(["--timeout", timeout, "--", "vllm", "serve", "m"]);
        let output = tokio::time::timeout(DEADLINE, doctor.output()).await.unwrap().unwrap();
        let page = String::from_utf8(output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(1), "{page}");
        for told in told {
            assert!(page.contains(told), "`{told}` in {page}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_is_cold_for_the_reason_that_it_has() {
    let cluster = Cluster::start().await;
    let node = cluster.agent("a").await;
    let (socket, policy) = (node.agent.socket().display().to_string(), cluster.policy_path().display().to_string());
    let file = cluster.path("file");
    std::fs::write(&file, "").unwrap();
    let (file, empty) = (file.display().to_string(), cluster.path("empty").display().to_string());
    for (socket, policy, into, told) in [
        ("/nowhere", &policy, &empty, "cold: transient: no agent answers on /nowhere"),
        (&*socket, &file, &empty, "cold: untrusted: "),
        (&*socket, &policy, &file, "cold: incompatible: cache root: "),
        (&*socket, &policy, &empty, "cold: none-found: "),
    ] {
        let mut warm = tokio::process::Command::new(env!("CARGO_BIN_EXE_warmd"));
        warm.env_clear().args(["warm", "--fact", "torch=none", "--socket", socket, "--policy", policy, "--into", into]);
        let output = tokio::time::timeout(DEADLINE, warm.output()).await.unwrap().unwrap();
        let (page, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.status.code(), Some(0), "{page}{errors}");
        assert!(page.starts_with(told) && !errors.contains("REVOKED"), "`{told}` in {page}{errors}");
    }
}
