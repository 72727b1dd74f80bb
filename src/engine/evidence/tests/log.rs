//! What the lines of a whole start say together.

use super::*;

fn collected(lines: &[&str]) -> StartLog {
    let mut log = StartLog::default();
    for line in lines {
        log.line(line);
    }
    log
}

#[test]
fn a_warm_start_is_told_from_a_cold_one() {
    let loaded = format!(
        "(EngineCore pid=7) INFO 11-21 05:43:39 [decorators.py:319] Directly load AOT compilation from path {}",
        model("rank_0_0")
    );
    let failed = format!(
        "(EngineCore pid=7) WARNING 11-21 05:43:39 [decorators.py:321] Compiling model again due to a load failure from {}, reason: boom",
        model("rank_1_0")
    );
    let saved = format!(
        "(EngineCore pid=7) INFO 11-21 05:43:59 [decorators.py:743] saved AOT compiled function to {}",
        model("rank_1_0")
    );
    let log = collected(&[&loaded, &failed, &saved, "(APIServer pid=1) INFO:     Application startup complete."]);
    let slot = |rank: &str| AotSlot { key: KEY.to_owned(), rank: rank.to_owned() };
    assert_eq!(log.aot_loaded().filter_map(AotSlot::of).collect::<Vec<_>>(), [slot("rank_0_0")]);
    let failed: Vec<_> = log.aot_failed().map(|(path, reason)| (AotSlot::of(path), reason)).collect();
    assert_eq!(failed, [(Some(slot("rank_1_0")), "boom")]);
    assert_eq!(log.aot_saved().filter_map(AotSlot::of).collect::<Vec<_>>(), [slot("rank_1_0")]);
    assert!(log.started());
}

#[test]
fn a_path_that_is_not_of_an_aot_artifact_names_no_slot() {
    for path in ["/x/model", "/torch_aot_compile/abc/rank_0_0/model", &format!("/torch_aot_compile/{KEY}/model")] {
        assert_eq!(AotSlot::of(std::path::Path::new(path)), None, "{path}");
    }
}

#[test]
fn processes_compile_side_by_side_so_their_seconds_are_not_added() {
    let took = |process: &str, seconds: u32| {
        format!("({process}) INFO 11-21 05:43:39 [monitor.py:53] torch.compile took {seconds}.00 s in total")
    };
    let workers = [took("Worker_TP0 pid=1", 10), took("Worker_TP1 pid=2", 12), took("Worker_TP0 pid=1", 3)];
    let mut log = collected(&workers.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(log.compiling(), Some(secs(13.0)));
    // The engine's own figure is the best.
    log.line("(EngineCore pid=58) INFO 07-05 08:56:17 [core.py:302] init engine (profile, create kv cache, warmup model) took 59.60 s (compilation: 12.00 s)");
    assert_eq!((log.compiling(), log.initialized()), (Some(secs(12.0)), Some(secs(59.6))));
    assert_eq!(StartLog::default().compiling(), None);
}

#[test]
fn parts_stand_in_where_a_process_tells_no_total() {
    let log = collected(&[
        "Dynamo bytecode transform time: 2.00 s",
        "Compiling a graph for compile range (1, 8) takes 5.50 s",
    ]);
    assert_eq!(log.compiling(), Some(secs(7.5)));
    assert_eq!(log.graphs(), Graphs { compiled: 1, ..Graphs::default() });
}

#[test]
fn lookups_and_measured_kernels_are_counted() {
    let log = collected(&[
        "fx graph cache hit for key a",
        "fx graph cache hit for key b",
        "fx graph cache miss for key c",
        "2026-07-05 08:55:54,532 - INFO - autotuner.py:1 - flashinfer.jit: [Autotuner]: Loaded 30 configs from /c.json",
        "2026-07-05 08:55:54,532 - INFO - autotuner.py:1 - flashinfer.jit: [Autotuner]: Saved 32 configs to /c.json (2 new, 30 from previous config)",
    ]);
    assert_eq!(log.lookups(Cache::FxGraph), (2, 1));
    assert_eq!(log.lookups(Cache::ModelInfo), (0, 0));
    assert_eq!(log.autotuned_files().collect::<Vec<_>>(), [(std::path::Path::new("/c.json"), 30, 2)]);
}

#[test]
fn a_log_without_end_is_held_within_bounds_and_the_first_error_survives() {
    let mut log = StartLog::default();
    for n in 0..10_000 {
        log.line(&format!("ValueError: number {n}"));
        log.line(&format!("Directly load AOT compilation from path /{n}"));
        log.line(&format!("Using cache directory: /{n} for vLLM's torch.compile"));
        log.line(&format!("(p pid={n}) torch.compile took 1.00 s in total"));
    }
    assert_eq!(log.aot_loaded().count(), 4096);
    assert_eq!(log.piecewise_directories().count(), 4096);
    let errors: Vec<&str> = log.errors().collect();
    assert_eq!((errors.len(), errors[0], errors[15]), (16, "ValueError: number 0", "ValueError: number 9999"));
    assert!(log.forgotten() > 0);
}
