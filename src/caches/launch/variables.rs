//! Which environment variables decide what an engine compiles.

use super::super::{Environment, directories};
use super::options::listed;

/// Not in vLLM's key although they begin like its own: the ignore list of `vllm.envs.compile_factors` (0.32), what 0.33
/// added to it, and what names places.
const VLLM_IGNORED: &[&str] = &[
    "VLLM_API_KEY",
    "VLLM_ASSETS_CACHE",
    "VLLM_ASSETS_CACHE_MODEL_CLEAN",
    "VLLM_CACHE_ROOT",
    "VLLM_CONFIG_ROOT",
    "VLLM_CPU_KVCACHE_SPACE",
    "VLLM_CPU_MOE_PREPACK",
    "VLLM_CUDA_COMPATIBILITY_PATH",
    "VLLM_DEBUG_DUMP_PATH",
    "VLLM_DEBUG_LOG_API_SERVER_RESPONSE",
    "VLLM_DO_NOT_TRACK",
    "VLLM_DP_MASTER_IP",
    "VLLM_DP_MASTER_PORT",
    "VLLM_ELASTIC_EP_SCALE_UP_LAUNCH",
    "VLLM_ENABLE_CUDA_COMPATIBILITY",
    "VLLM_ENABLE_STARTUP_PLAN",
    "VLLM_ENABLE_V1_MULTIPROCESSING",
    "VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS",
    "VLLM_FLASHINFER_AUTOTUNE_CACHE_DIR",
    "VLLM_FLASHINFER_AUTOTUNE_SKIP_OPS",
    "VLLM_FORCE_AOT_LOAD",
    "VLLM_HOST_IP",
    "VLLM_HTTP_TIMEOUT_KEEP_ALIVE",
    "VLLM_KEEP_ALIVE_ON_ENGINE_DEATH",
    "VLLM_LOGGING_*",
    "VLLM_LOG_STATS_INTERVAL",
    "VLLM_MAX_AUDIO_*",
    "VLLM_MAX_EMBED_DECODE_BYTES",
    "VLLM_MAX_IMAGE_PIXELS",
    "VLLM_MEDIA_*",
    "VLLM_IMAGE_FETCH_TIMEOUT",
    "VLLM_AUDIO_FETCH_TIMEOUT",
    "VLLM_VIDEO_FETCH_TIMEOUT",
    "VLLM_VIDEO_LOADER_BACKEND",
    "VLLM_MODEL_REDIRECT_PATH",
    "VLLM_NIXL_SIDE_CHANNEL_HOST",
    "VLLM_NO_USAGE_STATS",
    "VLLM_OBJECT_STORAGE_SHM_BUFFER_NAME",
    "VLLM_PORT",
    "VLLM_RANDOMIZE_DP_DUMMY_INPUTS",
    "VLLM_RAY_BUNDLE_INDICES",
    "VLLM_RINGBUFFER_WARNING_INTERVAL",
    "VLLM_RPC_BASE_PATH",
    "VLLM_SERVER_DEV_MODE",
    "VLLM_SKIP_MODEL_NAME_VALIDATION",
    "VLLM_SKIP_VERSION_SUFFIX",
    "VLLM_TEST_FORCE_LOAD_FORMAT",
    "VLLM_TRITON_JIT_WARMUP_NUM_THREADS",
    "VLLM_TUNED_CONFIG_FOLDER",
    "VLLM_USAGE_*",
    "VLLM_USE_MODELSCOPE",
    "VLLM_V1_OUTPUT_PROC_CHUNK_SIZE",
    "VLLM_WORKER_MULTIPROC_METHOD",
    "VLLM_WORKER_SHUTDOWN_TIMEOUT_SECONDS",
    "VLLM_XLA_CACHE_PATH",
    "VLLM_ZENTORCH_WEIGHT_PREPACK",
];

/// Of torch and Triton: places, logs, and how processes talk.
const OTHERS_IGNORED: &[&str] = &[
    "TORCHELASTIC_*",
    "TORCHINDUCTOR_CACHE_DIR",
    "TORCHINDUCTOR_COMPILE_THREADS",
    "TORCHINDUCTOR_WORKER_START",
    "TORCH_CPP_LOG_LEVEL",
    "TORCH_DISTRIBUTED_*",
    "TORCH_EXTENSIONS_DIR",
    "TORCH_FR_*",
    "TORCH_GLOO_*",
    "TORCH_HOME",
    "TORCH_LOGS*",
    "TORCH_NCCL_*",
    "TORCH_SHOW_CPP_STACKTRACES",
    "TORCH_TRACE",
    "TRITON_CACHE_DIR",
    "TRITON_CACHE_MANAGER",
    "TRITON_DUMP_DIR",
    "TRITON_HOME",
    "TRITON_OVERRIDE_DIR",
    "TRITON_PRINT_AUTOTUNING",
];

/// In vLLM's key without its prefix, or read by the compilers. `TORCH*` are settings of Dynamo and Inductor, which both
/// hash their own.
const HASHED: &[&str] = &[
    "ATEN_CPU_CAPABILITY",
    "CMAKE_BUILD_TYPE",
    "CUDA_HOME",
    "MOONCAKE_PREFERRED_SEGMENT",
    "MOONCAKE_REQUESTER_LOCAL_HOSTNAME",
    "NVCC_THREADS",
    "RAY_EXPERIMENTAL_NOSET_*",
    "TORCH*",
    "TRITON_*",
    "VERBOSE",
    "VLLM_*",
];

/// The variables that count, in the order of names.
pub(super) fn hashed(environment: &Environment) -> impl Iterator<Item = (&str, &str)> {
    environment.iter().filter(|(name, _)| is_hashed(name))
}

fn is_hashed(name: &str) -> bool {
    listed(HASHED, name)
        && !listed(VLLM_IGNORED, name)
        && !listed(OTHERS_IGNORED, name)
        && !directories::VARIABLES.contains(&name)
        && !is_secret(name)
        && !is_service_link(name)
}

/// Of a variable or an option, by the end of its name: `TOKENS` are settings.
pub(super) fn is_secret(name: &str) -> bool {
    let name = name.trim_start_matches('-').replace('-', "_").to_ascii_uppercase();
    let last = |end: &str| name.strip_suffix(end).is_some_and(|rest| rest.is_empty() || rest.ends_with('_'));
    ["KEY", "KEY_ID", "TOKEN", "SECRET", "PASSWORD", "CREDENTIALS"].iter().any(|end| last(end))
}

/// Kubernetes puts the address of each service into the environment of every pod: of one named `vllm`, in variables that
/// look like vLLM's.
fn is_service_link(name: &str) -> bool {
    let port = |at: &str| {
        at.split_once('_').is_some_and(|(port, rest)| {
            port.parse::<u16>().is_ok() && ["TCP", "UDP", "SCTP"].iter().any(|protocol| rest.starts_with(protocol))
        })
    };
    name.ends_with("_SERVICE_HOST")
        || name.contains("_SERVICE_PORT")
        || name.match_indices("_PORT_").any(|(at, found)| port(&name[at + found.len()..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_count_and_places_secrets_and_services_do_not() {
        for name in [
            "VLLM_USE_DEEP_GEMM",
            "VLLM_MAX_TOKENS_PER_EXPERT_FP4_MOE",
            "VLLM_LORA_RESOLVER_CACHE_DIR",
            "VLLM_DP_RANK",
            "CUDA_HOME",
            "TORCHINDUCTOR_MAX_AUTOTUNE",
            "TRITON_F32_DEFAULT",
            "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES",
        ] {
            assert!(is_hashed(name), "{name}");
        }
        for name in [
            "VLLM_API_KEY",
            "VLLM_GATEWAY_TOKEN",
            "VLLM_LOGGING_LEVEL",
            "VLLM_CACHE_ROOT",
            "VLLM_SERVICE_HOST",
            "VLLM_SERVICE_PORT_HTTP",
            "VLLM_PORT_8000_TCP_ADDR",
            "VLLM_PORT",
            "TRITON_CACHE_DIR",
            "TORCH_NCCL_AVOID_RECORD_STREAMS",
            "HOME",
            "LD_LIBRARY_PATH",
            "CUDA_VISIBLE_DEVICES",
        ] {
            assert!(!is_hashed(name), "{name}");
        }
    }
}
