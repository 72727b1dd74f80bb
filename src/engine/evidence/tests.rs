mod log;

use super::*;

const KEY: &str = "348fd1f53f1288e7b7d4f92e3b1446d86243296fd5981cd7dd3f01f5b1fe1c3f";

fn model(rank: &str) -> String {
    format!("/root/.cache/vllm/torch_compile_cache/torch_aot_compile/{KEY}/{rank}/model")
}

fn secs(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

#[track_caller]
fn says(line: &str, expected: Evidence) {
    assert_eq!(Seen::in_line(line).map(|seen| seen.evidence), Some(expected), "{line}");
}

#[track_caller]
fn says_nothing(line: &str) {
    assert_eq!(Seen::in_line(line), None, "{line}");
}

#[test]
fn an_aot_artifact_that_was_loaded_is_seen_in_all_forms_of_the_prefix() {
    let loaded = || Evidence::AotLoaded { path: model("rank_0_0").into() };
    let text = format!("Directly load AOT compilation from path {}", model("rank_0_0"));
    for line in [
        // 0.32, 0.25 with a tag, 0.18 without, 0.16 with one API server, DEBUG level, and no logger at all.
        format!("(EngineCore pid=123) INFO 11-21 05:43:39 [decorators.py:319] [backbone] {text}"),
        format!("(Worker_TP0 pid=79) INFO 07-05 08:55:20 [decorators.py:311] {text}"),
        format!("(EngineCore_DP0 pid=165) INFO 03-18 06:57:23 [decorators.py:465] {text}"),
        format!("INFO 02-18 08:50:24 decorators.py:465] {text}"),
        format!("(Worker_TP3_EP3 pid=4155527) DEBUG 08-20 17:21:21 [compilation/decorators.py:321] {text}"),
        text.clone(),
        format!(
            r#"{{"asctime": "2026-11-21 05:43:39,123", "levelname": "INFO", "name": "vllm.compilation.decorators", "processName": "EngineCore", "process": 123, "message": "{text}"}}"#
        ),
    ] {
        says(&line, loaded());
    }
}

#[test]
fn the_process_that_said_it_is_known() {
    let process = |line: &str| Seen::in_line(line).unwrap().process;
    let text = "INFO 07-05 08:55:20 [monitor.py:53] torch.compile took 2.18 s in total";
    assert_eq!(process(&format!("(Worker_TP0 pid=79) {text}")).as_deref(), Some("Worker_TP0 pid=79"));
    assert_eq!(process(&format!("(VllmWorker rank=1 pid=80) {text}")).as_deref(), Some("VllmWorker rank=1 pid=80"));
    assert_eq!(process(text), None);
    let json = r#"{"processName": "EngineCore", "process": 7, "message": "Available routes are:"}"#;
    assert_eq!(process(json).as_deref(), Some("EngineCore pid=7"));
}

#[test]
fn an_aot_artifact_that_failed_tells_the_reason() {
    for (line, reason) in [
        (
            "(Worker pid=19850) WARNING 06-13 20:03:29 [decorators.py:321] Compiling model again due to a load failure from {}, reason: 'function' object has no attribute 'finalize_loading'",
            "'function' object has no attribute 'finalize_loading'",
        ),
        (
            "(EngineCore pid=7) WARNING 11-21 05:43:39 [decorators.py:331] [backbone] Compiling model again due to a load failure from {}, reason: Compile package was created with a different Python version: 3.11.7, 3.12.1",
            "Compile package was created with a different Python version: 3.11.7, 3.12.1",
        ),
        (
            "WARNING 01-08 10:00:00 [decorators.py:450] Cannot load aot compilation from path {}, error: pickle data was truncated",
            "pickle data was truncated",
        ),
    ] {
        let failed = Evidence::AotFailed { path: model("rank_0_0").into(), reason: reason.to_owned() };
        says(&line.replace("{}", &model("rank_0_0")), failed);
    }
}

#[test]
fn an_aot_artifact_that_was_saved_or_could_not_be_is_seen() {
    let path = || model("rank_1_0").into();
    says(
        &format!(
            "(EngineCore pid=79) INFO 07-30 07:07:29 [decorators.py:708] saved AOT compiled function to {}",
            model("rank_1_0")
        ),
        Evidence::AotSaved { path: path() },
    );
    says(
        &format!(
            "(EngineCore pid=79) WARNING 11-21 07:07:29 [decorators.py:749] [backbone] unable to save AOT compiled function to {}: [Errno 30] Read-only file system",
            model("rank_1_0")
        ),
        Evidence::AotNotSaved { path: path(), reason: "[Errno 30] Read-only file system".to_owned() },
    );
    says(
        "(EngineCore pid=8) INFO 08-23 22:59:26 [caching.py:335] reconstructed serializable fn from standalone compile artifacts. num_artifacts=23 num_submods=65",
        Evidence::ArtifactsLoaded { artifacts: 23, submodules: 65 },
    );
}

#[test]
fn piecewise_graphs_are_seen_with_ranges_and_with_the_shapes_of_older_versions() {
    says(
        "(Worker_TP0 pid=79) INFO 07-05 08:55:19 [backends.py:1089] Using cache directory: /cache/torch_compile_cache/d8d288a9e4/rank_0_0/backbone for vLLM's torch.compile",
        Evidence::PiecewiseDirectory { path: "/cache/torch_compile_cache/d8d288a9e4/rank_0_0/backbone".into() },
    );
    says(
        "(EngineCore pid=7) INFO 11-21 05:43:39 [backends.py:295] [backbone] Directly load the compiled graph(s) for compile range (1, 2048) from the cache, took 1.651 s",
        Evidence::GraphsLoaded { range: "(1, 2048)".to_owned(), took: secs(1.651) },
    );
    says(
        "INFO 02-18 08:50:24 [backends.py:155] Directly load the compiled graph(s) for dynamic shape from the cache, took 4.2 s",
        Evidence::GraphsLoaded { range: "dynamic shape".to_owned(), took: secs(4.2) },
    );
    says(
        "(EngineCore pid=7) INFO 11-21 05:43:39 [backends.py:382] [backbone] Cache the graph of compile range (1, 2048) for later use",
        Evidence::GraphStored { range: "(1, 2048)".to_owned() },
    );
    says(
        "INFO 02-18 08:50:24 [backends.py:160] Cache the graph for shape 8 for later use",
        Evidence::GraphStored { range: "8".to_owned() },
    );
    says(
        "(Worker_TP0_EP0 pid=4155524) INFO 08-20 17:21:54 [backends.py:393] Compiling a graph for compile range (2731, 8192) takes 5.60 s",
        Evidence::GraphCompiled { range: "(2731, 8192)".to_owned(), took: secs(5.6) },
    );
    says(
        "(EngineCore pid=7) INFO 11-21 05:43:39 [backends.py:1102] [backbone] vLLM's torch.compile cache is disabled.",
        Evidence::CompileCacheDisabled,
    );
}

#[test]
fn seconds_are_read_from_every_wording() {
    let dynamo = "(Worker_TP0 pid=79) INFO 07-05 08:55:19 [backends.py:1148] Dynamo bytecode transform time: 1.26 s";
    says(dynamo, Evidence::DynamoTransform { took: secs(1.26) });
    for (text, took) in [
        ("torch.compile takes 92.20 s in total", 92.2),
        ("torch.compile took 2.18 s in total", 2.18),
        ("[backbone] torch.compile took 44.00 s in total", 44.0),
        ("[backbone] torch.compile and initial profiling/warmup run together took 31.50 s in total", 31.5),
    ] {
        says(
            &format!("(EngineCore pid=7) INFO 11-21 05:43:39 [monitor.py:53] {text}"),
            Evidence::TorchCompile { took: secs(took) },
        );
    }
    for (text, took, compiling) in [
        ("took 107.64 seconds", 107.64, None),
        ("took 1115.80 s", 1115.8, None),
        ("took 59.60 s (compilation: 2.91 s)", 59.6, Some(2.91)),
        ("took 60.00 s (compilation: 12.50 s — language_model: 10.00 s, encoder: 2.50 s)", 60.0, Some(12.5)),
    ] {
        let line = format!(
            "(EngineCore pid=58) INFO 07-05 08:56:17 [core.py:302] init engine (profile, create kv cache, warmup model) {text}"
        );
        says(&line, Evidence::EngineInitialized { took: secs(took), compiling: compiling.map(secs) });
    }
}

#[test]
fn lookups_of_pytorch_and_of_the_model_registry_are_hits_or_misses() {
    let lookup = |cache, hit, entry: &str| Evidence::Lookup { cache, hit, entry: entry.to_owned() };
    says(
        "I1121 05:43:39.123000 4242 torch/_inductor/codecache.py:2299] [0/0] fx graph cache hit for key fuvriju7u3wd7",
        lookup(Cache::FxGraph, true, "fuvriju7u3wd7"),
    );
    says(
        "(EngineCore pid=7) [rank0]:I1121 05:43:39.123000 4242 torch/_inductor/codecache.py:2316] [0/0_1] fx graph cache miss for key fuvriju7u3wd7",
        lookup(Cache::FxGraph, false, "fuvriju7u3wd7"),
    );
    says(
        "(Worker pid=7) I1121 05:43:39.123000 42 torch/_functorch/_aot_autograd/autograd_cache.py:1028] [0/0] AOTAutograd cache hit for key a446yuuxics5",
        lookup(Cache::AotAutograd, true, "a446yuuxics5"),
    );
    says(
        "I1121 05:43:39.123000 42 torch/_functorch/_aot_autograd/autograd_cache.py:1052] AOTAutograd cache miss for key a446yuuxics5",
        lookup(Cache::AotAutograd, false, "a446yuuxics5"),
    );
    let class = "vllm.model_executor.models.llama.LlamaForCausalLM";
    let debug = "(APIServer pid=1) DEBUG 11-21 05:43:39 [model_executor/models/registry.py:1065]";
    says(&format!("{debug} Loaded model info for class {class} from cache"), lookup(Cache::ModelInfo, true, class));
    let miss = format!("{debug} Cache model info for class {class} miss. Loading model instead.");
    says(&miss, lookup(Cache::ModelInfo, false, class));
    // Printed after the miss, when it was made.
    says_nothing(&format!("{debug} Loaded model info for class {class}"));
}

#[test]
fn kernels_of_other_libraries_are_seen() {
    says(
        "(Worker_TP0 pid=79) DeepGEMM warmup: 100%|██████████| 1670/1670 [03:15<00:00,  8.55it/s]",
        Evidence::DeepGemmWarmedUp { kernels: 1670, took: Duration::from_secs(195) },
    );
    says(
        "DeepGEMM warmup: 100%|██████████| 9/9 [1:00:01<00:00, 400.1s/it]",
        Evidence::DeepGemmWarmedUp { kernels: 9, took: Duration::from_secs(3601) },
    );
    says_nothing("DeepGEMM warmup:  38%|███▊      | 546/1447 [00:00<00:00, 2191.25it/s]");
    says(
        "[2026-07-27 08:54:44 TP0] Entering DeepGEMM JIT Pre-Compile session. It may take a long time (typically 10-20 mins) if you have not run `sglang.compile_deep_gemm`.",
        Evidence::DeepGemmCompiling,
    );
    let path = "/root/.cache/vllm/flashinfer_autotune_cache/0.6.14/103a/82dc/autotune_configs.json";
    says(
        &format!(
            "(Worker_TP0 pid=79) 2026-07-05 08:55:54,532 - INFO - autotuner.py:1837 - flashinfer.jit: [Autotuner]: Loaded 30 configs from {path}"
        ),
        Evidence::AutotuneLoaded { configs: 30, path: path.into() },
    );
    says(
        &format!(
            "(EngineCore pid=57666) 2026-08-06 21:07:57,810 - INFO - autotuner.py:1808 - flashinfer.jit: [Autotuner]: Saved 12 configs to {path} (10 new, 2 from previous config)"
        ),
        Evidence::AutotuneSaved { configs: 12, new: 10, path: path.into() },
    );
    let late = |library: &str, kernel: &str| Evidence::KernelCompiledLate {
        library: library.to_owned(),
        kernel: kernel.to_owned(),
    };
    says(
        "(Worker_TP0 pid=79) WARNING 07-05 09:03:01 [jit_monitor.py:103] Triton kernel JIT compilation during inference: sample_recovered_tokens_kernel. This causes a latency spike; consider extending warmup to cover this shape/config.",
        late("Triton", "sample_recovered_tokens_kernel"),
    );
    says(
        "(EngineCore pid=57666) WARNING 08-06 21:17:34 [jit_monitor.py:135] CuTeDSL JIT compilation during inference: DequantGatherKCacheKernel. This causes a latency spike",
        late("CuTeDSL", "DequantGatherKCacheKernel"),
    );
}

#[test]
fn the_steps_of_a_start_are_seen() {
    says(
        "(Worker_TP0 pid=79) INFO 07-05 08:55:15 [default_loader.py:397] Loading weights took 27.99 seconds",
        Evidence::WeightsLoaded { took: secs(27.99) },
    );
    says(
        "[2026-07-27 08:54:44 TP0] Load weight end. elapsed=13.25 s, type=LlamaForCausalLM, dtype=torch.bfloat16",
        Evidence::WeightsLoaded { took: secs(13.25) },
    );
    says(
        "(Worker_TP0 pid=79) INFO 07-05 08:56:17 [gpu_model_runner.py:6745] Graph capturing finished in 3 secs, took 0.12 GiB",
        Evidence::GraphsCaptured { took: secs(3.0) },
    );
    says(
        "[2026-03-11 13:53:32 TP0] Capture cuda graph end. Time elapsed: 8.04 s. mem usage=0.80 GB. avail mem=10.30 GB.",
        Evidence::GraphsCaptured { took: secs(8.04) },
    );
    says("(APIServer pid=1) INFO 07-05 08:56:21 [launcher.py:37] Available routes are:", Evidence::ServerStarting);
    says("(APIServer pid=1) INFO:     Application startup complete.", Evidence::ServerStarted);
    says("[2026-07-27 08:54:44] The server is fired up and ready to roll!", Evidence::ServerStarted);
}

#[test]
fn what_went_wrong_is_quoted_without_its_prefix() {
    let oom = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB";
    says(
        &format!("(EngineCore pid=7) ERROR 11-21 05:43:39 [core.py:1510] {oom}"),
        Evidence::OutOfMemory(oom.to_owned()),
    );
    says(
        "[2026-07-27 08:54:44 TP0] RuntimeError: CUDA out of memory.",
        Evidence::OutOfMemory("RuntimeError: CUDA out of memory.".to_owned()),
    );
    for text in [
        "EngineCore failed to start.",
        "Worker proc VllmWorker-0 died unexpectedly (exit code: -9), shutting down executor.",
        "AsyncLLM output_handler failed.",
    ] {
        says(
            &format!("(EngineCore pid=7) ERROR 11-21 05:43:39 [core.py:1510] {text}"),
            Evidence::Fatal(text.to_owned()),
        );
    }
    says(
        "Fatal glibc error: malloc assertion failure in sysmalloc",
        Evidence::Fatal("Fatal glibc error: malloc assertion failure in sysmalloc".to_owned()),
    );
    for text in [
        "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}",
        "torch._inductor.exc.InductorError: ImportError: /cache/x.so: file too short",
        "torch.AcceleratorError: CUDA error: an illegal memory access was encountered",
        "KeyError",
    ] {
        says(&format!("(EngineCore pid=7) {text}"), Evidence::Exception(text.to_owned()));
    }
}

#[test]
fn other_lines_say_nothing() {
    for line in [
        "",
        "{",
        "{\"message\": 7}",
        "(",
        "INFO",
        "[",
        "(APIServer pid=1) INFO:     172.18.0.2:52330 - \"GET /v1/models HTTP/1.1\" 200 OK",
        "(Worker_TP0 pid=79) INFO 07-05 08:55:18 [gpu_model_runner.py:5408] Model loading took 79.52 GiB memory and 197.764892 seconds",
        "(Worker_TP0 pid=79) INFO 07-05 08:55:35 [monitor.py:81] Initial profiling/warmup run took 14.48 s",
        "(EngineCore pid=7) INFO 11-21 05:43:39 [x.py:1] Worker proc VllmWorker-0 is ready",
        "error: no such thing",
        "Compiling a graph for compile range (1, 2) takes a while",
        "torch.compile took ages in total",
    ] {
        says_nothing(line);
    }
}

#[test]
fn what_a_prompt_holds_is_not_evidence() {
    let prompt = "Directly load AOT compilation from path /etc/passwd";
    says_nothing(&format!(
        "(APIServer pid=1) INFO 11-21 05:43:39 [logger.py:50] Received request cmpl-1: prompt: '{prompt}'"
    ));
    says_nothing(&format!(
        "(APIServer pid=1) INFO 11-21 05:43:39 [logger.py:50] Received request cmpl-1: prompt: '(EngineCore pid=7) {prompt}'"
    ));
    says_nothing(&format!("[x y] {prompt}"));
}

proptest::proptest! {
    #[test]
    fn no_line_breaks_the_reader(line in "[(\\[{]?(EngineCore pid=1\\) )?(INFO 11-21 05:43:39 |I1121 1.2 3 )?\\[?[a-z:.\\] -]{0,9}.{0,40}") {
        let _ = Seen::in_line(&line);
    }
}
